//! The emulation catches what it is there for: bugs planted in the text of a kernel.

use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order, source};

/// A sum over a block through shared memory, the smallest kernel that needs its barriers.
const BLOCK_SUM: &str = r#"
#include "common.cuh"
extern "C" __global__ void block_sum(const float *x, float *y) {
    SHARED_ARRAY(float, values, [128]);
    values[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
    __syncthreads();
    for (unsigned half = 64; half > 0; half /= 2) {
        if (threadIdx.x < half) values[threadIdx.x] += values[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) y[blockIdx.x] = values[0];
}
FERRY_KERNEL(block_sum, 128);
"#;

/// What each order says of a source that should have `from` instead of `to`.
fn block_sum(from: &str, to: &str) -> Option<Vec<Result<f32, String>>> {
    assert!(BLOCK_SUM.contains(from), "{from}");
    let source = BLOCK_SUM.replacen(from, to, 1);
    let emulator = Emulator::of_source("block_sum", &source)?;
    let x: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let x = Buffer::floats("x", &x);
    let run = |order| {
        let y = Buffer::output("y", Number::F32, 2);
        let launch = Launch::new([2, 1, 1], 128);
        emulator.launch(
            "block_sum",
            launch,
            order,
            &[Argument::Buffer(&x), Argument::Buffer(&y)],
        )?;
        let y = y.to_floats(Number::F32);
        Ok(y[0] + y[1])
    };
    Some(Order::ALL.map(run).to_vec())
}

fn assert_all_say(results: &[Result<f32, String>], what: &str) {
    for (result, order) in results.iter().zip(Order::ALL) {
        let error = result.as_ref().expect_err("the planted bug is seen");
        assert!(error.contains(what), "{order:?}: {error}");
    }
    println!("caught: {}", results[0].as_ref().expect_err("an error"));
}

#[test]
fn a_kernel_without_bugs_passes() {
    let Some(results) = block_sum("half", "half") else {
        return;
    };
    assert!(
        results.iter().all(|r| *r == Ok(255.0 * 128.0)),
        "{results:?}"
    );
}

#[test]
fn a_missing_barrier_is_a_race() {
    let Some(results) = block_sum("    __syncthreads();\n    for", "    for") else {
        return;
    };
    assert_all_say(&results, "race at values");
    let loop_end = "half];\n        __syncthreads();";
    if let Some(results) = block_sum(loop_end, "half];") {
        assert_all_say(&results, "race at values");
    }
}

#[test]
fn a_barrier_that_not_all_threads_reach_is_divergence() {
    let start = "if (threadIdx.x == 7) return;\n    SHARED_ARRAY";
    if let Some(results) = block_sum("SHARED_ARRAY", start) {
        assert_all_say(&results, "divergent barrier");
    }
}

#[test]
fn an_index_beyond_a_buffer_or_a_shared_array_is_out_of_bounds() {
    let Some(results) = block_sum("blockIdx.x * 128 +", "blockIdx.x * 128 + 1 +") else {
        return;
    };
    assert_all_say(&results, "at x[256], which has 256 elements");
    if let Some(results) = block_sum("half = 64", "half = 65") {
        assert_all_say(&results, "at values[128], which has 128 elements");
    }
    if let Some(results) = block_sum("values[0]", "values[-1]") {
        assert_all_say(&results, "at values[");
    }
}

#[test]
fn bugs_planted_in_residual_norm_are_caught() {
    let original = source("residual_norm");
    let plant = |from: &str, to: &str| {
        assert!(original.contains(from), "{from}");
        let emulator = Emulator::of_source("residual_norm", &original.replacen(from, to, 1))?;
        let ones = |name| Buffer::floats(name, &[1.0; 8]);
        let rows = |name| Buffer::floats(name, &[2.0; 40]);
        let (x, residual) = (rows("x"), rows("residual"));
        let (bias, weight, norm_bias) = (ones("bias"), ones("weight"), ones("norm_bias"));
        let launch = Launch::new([2, 1, 1], 128);
        let arguments = [
            Argument::Buffer(&x),
            Argument::Buffer(&residual),
            Argument::Buffer(&bias),
            Argument::Buffer(&weight),
            Argument::Buffer(&norm_bias),
            Argument::F32(1e-5),
            Argument::I32(5),
            Argument::I32(8),
        ];
        let result = emulator.launch(
            "ferry_residual_norm_f32",
            launch,
            Order::Forward,
            &arguments,
        );
        Some(result.expect_err("the planted bug is seen"))
    };
    for (from, to) in [
        (
            "if (token >= tokens) return;",
            "if (token > tokens) return;",
        ),
        ("residual + column)", "residual + column + 4)"),
        ("size_t(token) * hidden", "size_t(token) * (hidden + 1)"),
    ] {
        if let Some(error) = plant(from, to) {
            assert!(
                error.contains("out of bounds") || error.contains("race"),
                "{error}"
            );
            println!("caught: {error}");
        }
    }
}
