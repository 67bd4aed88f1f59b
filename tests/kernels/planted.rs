//! The emulation catches what it is there for: bugs planted in the text of a kernel.

use super::agreement::Random;
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
        let arguments = [Argument::Buffer(&x), Argument::Buffer(&y)];
        emulator.launch("block_sum", launch, order, &arguments)?;
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
        assert_all_say(&results, ", which has 128 elements");
    }
    if let Some(results) = block_sum("values[0]", "values[-1]") {
        assert_all_say(&results, "at values[");
    }
}

/// Runs the attention of a source with a bug in it.
fn attention(from: &str, to: &str, number: Number, order: Order) -> Option<Result<(), String>> {
    let original = source("attention");
    assert!(original.contains(from), "{from}");
    // Of one size, to compile faster.
    let planted = (original.replacen(from, to, 1))
        .replace("ENTRIES(64);", "")
        .replace("ENTRIES(128);", "");
    let emulator = Emulator::of_source("attention", &planted)?;
    let (tokens, heads, dim) = (150, 2, 32);
    let hidden = heads * dim;
    let qkv = Random::new(1).values(tokens * 3 * hidden, 1.0);
    let qkv = Buffer::numbers("qkv", number, &qkv);
    let y = Buffer::output("y", number, tokens * hidden);
    let ends = Buffer::indices("cu_seqlens", &[0, 20, tokens as u32]);
    let launch = Launch::new([3, heads as u32, 2], 128);
    let arguments = [
        Argument::Buffer(&y),
        Argument::Buffer(&qkv),
        Argument::Null,
        Argument::Buffer(&ends),
        Argument::I32(hidden as i32),
        Argument::I32(dim as i32),
    ];
    let kernel = format!("ferry_attention_{}_d32", number.name());
    Some(emulator.launch(&kernel, launch, order, &arguments))
}

#[test]
fn a_barrier_missing_from_attention_is_caught_in_every_order() {
    for (barrier, array) in [
        ("__syncthreads(); // K is here", "keys"),
        ("__syncthreads(); // V is here", "values"),
    ] {
        for order in Order::ALL {
            let Some(result) = attention(barrier, "//", Number::F16, order) else {
                return;
            };
            let error = result.expect_err("the planted bug is seen");
            assert!(error.contains("race"), "{array}, {order:?}: {error}");
            println!("caught: {error}");
        }
    }
}

#[test]
fn copies_that_nobody_waits_for_are_caught() {
    let wait = "wait_for_copies<0>();\n        __syncthreads(); // V is here";
    let without = "wait_for_copies<1>();\n        __syncthreads(); // V is here";
    if let Some(result) = attention(wait, without, Number::Bf16, Order::Forward) {
        println!("{result:?}");
        // What is read is the poison of the shared memory: the result says so, if no race does.
        assert!(result.is_err());
    }
}

#[test]
fn wrong_indices_in_attention_are_out_of_bounds() {
    for (from, to) in [
        ("first + key < head.length && column", "column"),
        (
            "query + row * 8 >= head.length",
            "query + row * 8 > head.length",
        ),
        (
            "keys[pair * 16 + lane / 16 * 8",
            "keys[pair * 16 + lane / 8 * 8",
        ),
        (
            "size_t(begin + query + row * 8)",
            "size_t(begin + query + row * 9)",
        ),
    ] {
        let Some(result) = attention(from, to, Number::F16, Order::Forward) else {
            return;
        };
        let error = result.expect_err("the planted bug is seen");
        assert!(
            error.contains("out of bounds") || error.contains("race"),
            "{error}"
        );
        println!("caught: {error}");
    }
}

#[test]
fn a_launch_that_does_not_fit_the_kernel_is_refused() {
    let Some(emulator) = Emulator::of("residual_norm") else {
        return;
    };
    for (kernel, grid, threads, what) in [
        ("ferry_residual_norm_f8", [1, 1, 1], 128, "no kernel"),
        (
            "ferry_residual_norm_f32",
            [1, 1, 1],
            256,
            "must have 128x1x1",
        ),
        ("ferry_residual_norm_f32", [0, 1, 1], 128, "grid"),
        ("ferry_residual_norm_f32", [1, 1, 1], 2048, "2048x1x1"),
    ] {
        let launch = Launch::new(grid, threads);
        let error = emulator.launch(kernel, launch, Order::Forward, &[]);
        assert!(error.is_err_and(|error| error.contains(what)), "{what}");
    }
}
