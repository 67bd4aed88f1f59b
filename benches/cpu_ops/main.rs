//! The encoder's ops on one thread, each at the shapes of MiniLM-L6 (hidden 384): time, GFLOP/s, and
//! the share of what this core can do at most, which is measured first and again at the end.
//!
//! `cargo bench --bench cpu_ops`. Each figure is the least of many short runs, the precisions in
//! turn, so that what else the machine does falls on all of them alike.

mod peak;

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use ferry::ops::{Activation, Attention, BiasActivation, Compute, Linear, ResidualNorm};
use peak::Peak;

/// What the server uses: large activations are not given back to the kernel after every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HIDDEN: usize = 384;
const HEADS: usize = 12;
const INNER: usize = 1536;
const PRECISIONS: [Compute; 3] = [Compute::F32, Compute::Bf16, Compute::Int8];
/// Seconds of one timed run, about.
const RUN: f64 = 0.004;
const RUNS: usize = 60;

fn main() -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.expect("a thread").install(|| {
        let before = Peak::measure();
        println!("peak of a core before: {before}");
        products(&before)?;
        attention(&before)?;
        row_ops()?;
        println!("peak of a core after: {}", Peak::measure());
        Ok(())
    })
}

#[allow(clippy::needless_range_loop, reason = "one index into several lists")]
/// Seconds per call, of each of `calls`: the least of [`RUNS`] short runs, in turn.
fn time<const N: usize>(mut calls: [&mut dyn FnMut(); N]) -> [f64; N] {
    let once = calls.each_mut().map(|call| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    });
    let repeats = once.map(|once| (RUN / once).ceil().clamp(1.0, 1e5) as usize);
    let mut least = [f64::INFINITY; N];
    for _ in 0..RUNS {
        for i in 0..N {
            let start = Instant::now();
            for _ in 0..repeats[i] {
                calls[i]();
            }
            least[i] = least[i].min(start.elapsed().as_secs_f64() / repeats[i] as f64);
        }
    }
    least
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
}

fn products(peak: &Peak) -> Result<()> {
    println!(
        "\nproduct [rows, in] x [in, out]: µs, GOP/s (% of the core's peak in that precision)"
    );
    println!(
        "rows    in   out   {:>22} {:>22} {:>22}",
        "f32", "bf16", "int8"
    );
    for (inputs, outputs) in [
        (HIDDEN, 3 * HIDDEN),
        (HIDDEN, HIDDEN),
        (HIDDEN, INNER),
        (INNER, HIDDEN),
    ] {
        let weight = random(&[outputs, inputs])?;
        let linears = PRECISIONS.map(|compute| Linear::with_compute(&weight, None, compute));
        let [f32, bf16, int8] = linears;
        let (f32, bf16, int8) = (f32?, bf16?, int8?);
        for rows in [1, 8, 36, 128, 512] {
            let x = random(&[rows, inputs])?;
            let call = |linear: &Linear| {
                black_box(linear.apply(&x).expect("a product"));
            };
            let times = time([&mut || call(&f32), &mut || call(&bf16), &mut || call(&int8)]);
            print!("{rows:4} {inputs:5} {outputs:5}   ");
            for (compute, seconds) in PRECISIONS.into_iter().zip(times) {
                let speed = 2.0 * (rows * inputs * outputs) as f64 / seconds / 1e9;
                let share = 100.0 * speed / peak.of(compute);
                print!("{:9.1} {speed:6.0} ({share:3.0}%)", 1e6 * seconds);
            }
            println!();
        }
    }
    Ok(())
}

fn attention(peak: &Peak) -> Result<()> {
    println!(
        "\nattention, 12 heads of 32, rows of one length: µs a token, GFLOP/s (% of f32 peak)"
    );
    for len in [8, 16, 36, 64, 128, 256, 512] {
        let rows = 512usize.div_ceil(len);
        let tokens = rows * len;
        let qkv = random(&[tokens, 3 * HIDDEN])?;
        let ends: Vec<u32> = (0..=rows).map(|row| (row * len) as u32).collect();
        let cu_seqlens = Tensor::from_vec(ends, rows + 1, &Device::Cpu)?;
        let op = Attention {
            heads: HEADS,
            bias: Some(random(&[3 * HIDDEN])?),
        };
        let [seconds] = time([&mut || {
            black_box(op.apply(&qkv, &cu_seqlens).expect("attention"));
        }]);
        let speed = 4.0 * (tokens * len * HIDDEN) as f64 / seconds / 1e9;
        println!(
            "len {len:4} {:6.2} {speed:6.0} ({:3.0}%)",
            1e6 * seconds / tokens as f64,
            100.0 * speed / peak.of(Compute::F32)
        );
    }
    Ok(())
}

fn row_ops() -> Result<()> {
    println!("\nops on rows of 128 tokens: µs a token");
    let bias = random(&[INNER])?;
    for (name, activation) in [
        ("bias + GELU (erf), 1536 wide", Activation::Gelu),
        ("bias + GELU (tanh), 1536 wide", Activation::GeluTanh),
        ("bias, 1536 wide", Activation::Identity),
    ] {
        let x = random(&[128, INNER])?;
        let [seconds] = time([&mut || {
            BiasActivation(activation).apply(&x, &bias).expect("a GELU");
        }]);
        println!("{name:32} {:6.3}", 1e6 * seconds / 128.0);
    }
    let norm = ResidualNorm {
        bias: random(&[HIDDEN])?,
        weight: random(&[HIDDEN])?,
        norm_bias: random(&[HIDDEN])?,
        epsilon: 1e-12,
    };
    let (x, residual) = (random(&[128, HIDDEN])?, random(&[128, HIDDEN])?);
    let [seconds] = time([&mut || norm.apply(&x, &residual).expect("a norm")]);
    println!(
        "{:32} {:6.3}",
        "bias + residual + norm, 384 wide",
        1e6 * seconds / 128.0
    );
    Ok(())
}
