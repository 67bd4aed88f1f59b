//! A step of decoding beside what the machine can do: tokens a second of whole models, the bytes that
//! a step reads as a share of the measured memory bandwidth, and its multiply-adds as a share of the
//! measured int8 peak. The larger of the two shares is how near the step is to its roofline.
//!
//! `cargo bench --bench decode [-- MODEL...]`, with folders of GGUF models (`models/gemma3-270m/1` and
//! `models/smollm2-135m/1` when none is named); says so where one is missing. `RAYON_NUM_THREADS` sets
//! the threads (2). Bandwidth is measured before and after, since a shared machine has more or less of
//! it from minute to minute.

#[path = "cpu_ops/peak.rs"]
mod peak;

use std::{env, hint::black_box, path::Path, time::Instant};

use candle_core::Device;
use ferry::{
    models::{DecoderBatch, DecoderModel, DecoderOptions, DecoderRow, KvCache},
    ops::{CacheType, Compute},
};
use peak::Peak;
use rayon::prelude::*;

/// What the server uses: large activations are not given back to the kernel after every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MODELS: [&str; 2] = ["models/gemma3-270m/1", "models/smollm2-135m/1"];
const BLOCK: usize = 16;
/// Tokens of each sequence before the first measured step.
const CONTEXT: usize = 256;
const STREAMS: [usize; 5] = [1, 4, 8, 16, 32];
const STEPS: usize = 48;

fn main() {
    let threads = env::var("RAYON_NUM_THREADS").ok();
    let threads = threads
        .and_then(|threads| threads.parse().ok())
        .unwrap_or(2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().expect("threads");

    let peak = Peak::measure().of(Compute::Int8) * threads as f64;
    let before = bandwidth(threads);
    println!("{threads} threads: {before:.1} GB/s read from memory, {peak:.0} GOP/s in int8");
    let named: Vec<String> = env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let models = if named.is_empty() {
        MODELS
            .map(|model| format!("{}/{model}", env!("CARGO_MANIFEST_DIR")))
            .to_vec()
    } else {
        named
    };
    for model in models {
        let file = Path::new(&model).join("model.gguf");
        if file.is_file() {
            measure(&file, before, peak);
        } else {
            eprintln!(
                "NOTHING MEASURED: {} is missing; run models/fetch.py",
                file.display()
            );
        }
    }
    println!(
        "\nafterwards {:.1} GB/s read from memory",
        bandwidth(threads)
    );
}

/// 10⁹ bytes a second that all threads together read from memory, at best.
fn bandwidth(threads: usize) -> f64 {
    // Larger than any cache of it.
    let words = vec![1_u64; (512 << 20) / 8];
    let least = (0..8)
        .map(|_| {
            let start = Instant::now();
            let sum: u64 = words.par_chunks(words.len() / threads).map(sum).sum();
            black_box(sum);
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    (words.len() * 8) as f64 / least / 1e9
}

/// In lanes, so that additions don't wait for each other.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0_u64; 64];
    for chunk in words.chunks_exact(64) {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.into_iter().fold(0, u64::wrapping_add)
}

fn measure(file: &Path, bandwidth: f64, peak: f64) {
    let model =
        DecoderModel::load(file, &DecoderOptions::default(), &Device::Cpu).expect("a model");
    let most = STREAMS[STREAMS.len() - 1];
    let sequence_blocks = (CONTEXT + STEPS + 1).div_ceil(BLOCK);
    let cache = model
        .new_cache(most * sequence_blocks, BLOCK, CacheType::F16)
        .expect("a cache");
    for stream in 0..most {
        let batch = step(&[stream], sequence_blocks, 0, CONTEXT);
        model.forward(&batch, &cache).expect("a prompt");
    }

    let weights = model.memory_bytes() as f64;
    println!(
        "\n{}: {:.0} MB of weights, {:.0} M parameters, {CONTEXT} tokens in the cache of each stream",
        file.display(),
        weights / 1e6,
        model.parameters() as f64 / 1e6
    );
    println!("streams  ms a step  tokens/s  GB/s read  of bandwidth   GOP/s  of int8 peak");
    for streams in STREAMS {
        let seconds = decode(&model, &cache, streams, sequence_blocks);
        let block = KvCache::bytes_per_block(model.spec(), BLOCK, CacheType::F16) as f64;
        let keys = block / BLOCK as f64 * (streams * (CONTEXT + STEPS / 2)) as f64;
        let read = (weights + keys) / seconds / 1e9;
        let speed = 2.0 * (model.parameters() * streams) as f64 / seconds / 1e9;
        println!(
            "{streams:7} {:10.2} {:9.1} {read:10.1} {:12.0} % {speed:7.0} {:12.0} %",
            1e3 * seconds,
            streams as f64 / seconds,
            100.0 * read / bandwidth,
            100.0 * speed / peak,
        );
    }
}

/// Seconds of a step in which each of `streams` sequences gets a token: the median.
fn decode(model: &DecoderModel, cache: &KvCache, streams: usize, blocks: usize) -> f64 {
    let all: Vec<usize> = (0..streams).collect();
    let mut times: Vec<f64> = (0..STEPS)
        .map(|at| {
            let batch = step(&all, blocks, CONTEXT + at, 1);
            let start = Instant::now();
            black_box(model.forward(&batch, cache).expect("a step"));
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// `tokens` more of each of `streams`, each of which owns `blocks` blocks, from `position` on.
fn step(streams: &[usize], blocks: usize, position: usize, tokens: usize) -> DecoderBatch {
    let mut batch = DecoderBatch::default();
    for stream in streams {
        let first = (stream * blocks) as u32;
        batch.rows.push(DecoderRow {
            first_position: position as u32,
            tokens: tokens as u32,
            blocks: (first..first + (position + tokens).div_ceil(BLOCK) as u32).collect(),
        });
        let ids = (0..tokens).map(|at| 100 + ((stream * 31 + position + at) * 7 % 900) as u32);
        batch.tokens.extend(ids);
        batch.logit_tokens.push(batch.tokens.len() as u32 - 1);
    }
    batch
}
