//! Speed of the encoder on real weights: MiniLM-L6 (22 M parameters, hidden 384), tokens per second
//! over a whole forward, from token ids to normalised embeddings.
//!
//! Needs `models/minilm/1` (see `models/fetch.py`); says so and measures nothing without it.

use std::path::Path;

use divan::Bencher;
use divan::counter::ItemsCount;
use ferry::models::{EncoderModel, Head, LoadOptions, PackedBatch};
use ferry::ops::{Compute, Pooling};

/// What the server uses: large activations are not given back to the kernel after every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/minilm/1");

fn main() {
    if Path::new(WEIGHTS).join("model.safetensors").is_file() {
        divan::main();
    } else {
        eprintln!("NOTHING MEASURED: {WEIGHTS} has no model.safetensors; run models/fetch.py");
    }
}

/// Rows and tokens per row.
const SHAPES: [(usize, usize); 4] = [(1, 16), (1, 128), (32, 36), (32, 128)];

#[divan::bench(args = SHAPES.map(Shape))]
fn minilm_mean(bencher: Bencher, shape: &Shape) {
    let head = Head::Embed {
        pooling: Pooling::Mean,
        normalize: true,
        dimension: None,
    };
    let device = candle_core::Device::Cpu;
    let model = EncoderModel::load(
        Path::new(WEIGHTS),
        &LoadOptions {
            head,
            quantize: None,
            compute: Compute::F32,
        },
        &device,
    )
    .expect("the weights load");
    let batch = shape.batch();
    bencher
        .counter(ItemsCount::new(batch.tokens().len()))
        .bench_local(|| model.forward(&batch).expect("a forward"));
}

struct Shape((usize, usize));

impl Shape {
    /// Ordinary words between `[CLS]` and `[SEP]`.
    fn batch(&self) -> PackedBatch {
        let (rows, len) = self.0;
        let mut batch = PackedBatch::with_capacity(rows, rows * len);
        for row in 0..rows {
            let words = (0..len - 2).map(|i| 1996 + ((row * 131 + i * 7919) % 20_000) as u32);
            let tokens: Vec<u32> = [101].into_iter().chain(words).chain([102]).collect();
            batch.push_row(&tokens, None);
        }
        batch
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows x {} tokens", self.0.0, self.0.1)
    }
}
