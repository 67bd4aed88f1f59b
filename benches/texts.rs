//! MiniLM-L6 in process: texts a second from token ids to normalised embeddings, in each precision,
//! with the cosines to f32; the protocol of the figures for other engines in
//! docs/performance-cpu.md.
//!
//! 2,000 texts of 7 to 126 tokens (mean 36.5), sorted by length, in batches of 32, on 2 threads
//! (`RAYON_NUM_THREADS` sets others). The precisions take turns, batch by batch; the time of a
//! batch is the least of its rounds.
//!
//! `cargo bench --bench texts`. Needs `models/minilm/1` (see `models/fetch.py`); says so and
//! measures nothing without it.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use ferry::models::{EncoderModel, Head, LoadOptions, PackedBatch, RowOutput};
use ferry::ops::{Compute, Pooling};

/// What the server uses: large activations are not given back to the kernel after every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/minilm/1");
const TEXTS: usize = 2000;
const BATCH: usize = 32;
const ROUNDS: usize = 5;
const PRECISIONS: [Compute; 3] = [Compute::F32, Compute::Bf16, Compute::Int8];

fn main() {
    if !Path::new(WEIGHTS).join("model.safetensors").is_file() {
        eprintln!("NOTHING MEASURED: {WEIGHTS} has no model.safetensors; run models/fetch.py");
        return;
    }
    let threads = std::env::var("RAYON_NUM_THREADS").ok();
    let threads = threads
        .and_then(|threads| threads.parse().ok())
        .unwrap_or(2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().expect("threads");
    let models = PRECISIONS.map(load);

    println!("{threads} threads");
    report("2,000 texts, mixed", &models, &batches(&mixed_lengths()));
    let long: Vec<usize> = (0..200).map(|i| 250 + i * 152 / 199).collect();
    report("200 texts of 250 to 402 tokens", &models, &batches(&long));
    for rows in [1, 4] {
        let one = vec![36; rows];
        report(
            &format!("{rows} texts of 36 tokens at a time"),
            &models,
            &batches(&one),
        );
    }
}

fn load(compute: Compute) -> EncoderModel {
    let head = Head::Embed {
        pooling: Pooling::Mean,
        normalize: true,
        dimension: None,
    };
    let options = LoadOptions {
        head,
        quantize: None,
        compute,
    };
    EncoderModel::load(Path::new(WEIGHTS), &options, &Device::Cpu).expect("the weights load")
}

#[allow(clippy::needless_range_loop, reason = "one index into several lists")]
/// Runs all batches in all precisions, in turn, and prints what they took.
fn report(name: &str, models: &[EncoderModel; 3], batches: &[PackedBatch]) {
    let mut seconds = [0f64; 3];
    let mut cosines = [const { Vec::<f64>::new() }; 3];
    for batch in batches {
        let mut least = [f64::INFINITY; 3];
        let mut outputs = [const { Vec::<RowOutput>::new() }; 3];
        let rounds = if batches.len() == 1 { 200 } else { ROUNDS };
        for _ in 0..rounds {
            for i in 0..3 {
                let start = Instant::now();
                outputs[i] = models[i].forward(batch).expect("a forward");
                least[i] = least[i].min(start.elapsed().as_secs_f64());
            }
        }
        for i in 0..3 {
            seconds[i] += least[i];
            let pairs = outputs[i].iter().zip(&outputs[0]);
            cosines[i].extend(pairs.map(|(a, b)| cosine(a, b)));
        }
    }
    let texts = cosines[0].len() as f64;
    println!("\n{name}");
    for i in 0..3 {
        let mean = cosines[i].iter().sum::<f64>() / texts;
        let least = cosines[i].iter().copied().fold(1.0, f64::min);
        println!(
            "{:5} {:7.0} texts/s  {:8.3} ms a batch  {:.2}x f32  cosine to f32: mean {mean:.5}, least {least:.5}",
            PRECISIONS[i].name(),
            texts / seconds[i],
            1e3 * seconds[i] / batches.len() as f64,
            seconds[0] / seconds[i],
        );
    }
}

fn cosine(a: &RowOutput, b: &RowOutput) -> f64 {
    let (RowOutput::Embedding(a), RowOutput::Embedding(b)) = (a, b) else {
        return f64::NAN;
    };
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Many short texts and a tail of long ones: 7 to 126, 36.5 in the mean.
fn mixed_lengths() -> Vec<usize> {
    (0..TEXTS)
        .map(|i| {
            let share = (i as f64 + 0.5) / TEXTS as f64;
            (7.0 + 119.0 * share.powf(3.034)).round() as usize
        })
        .collect()
}

/// Ordinary words between `[CLS]` and `[SEP]`.
fn batches(lengths: &[usize]) -> Vec<PackedBatch> {
    let batch = |(nth, lengths): (usize, &[usize])| {
        let mut batch = PackedBatch::new();
        for (row, len) in lengths.iter().enumerate() {
            let word = |i: usize| 1996 + ((nth * 31 + row * 131 + i * 7919) % 20_000) as u32;
            let words = (0..len - 2).map(word);
            let tokens: Vec<u32> = [101].into_iter().chain(words).chain([102]).collect();
            batch.push_row(&tokens, None);
        }
        batch
    };
    lengths.chunks(BATCH).enumerate().map(batch).collect()
}
