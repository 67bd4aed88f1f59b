//! What a step of generation costs beside the model: composing it, and sampling a row of a large
//! vocabulary.
//!
//! `compose` is one whole iteration of the scheduler (compose, complete, a token appended to each
//! row) with 256 running sequences, of 1024 tokens each. The items counter counts rows, so
//! `1 / (items/s)` is the time a row costs.

use std::{hint::black_box, sync::Arc, time::Instant};

use divan::{Bencher, counter::ItemsCount};
use ferry::{
    batching::Priority,
    generation::{
        NewSequence, RowStatistics, Sampler, SamplingParameters, Scheduler, SchedulerOptions,
        SequenceId,
    },
};

const RUNNING: usize = 256;
const PROMPT: usize = 1024;
const VOCABULARY: usize = 262_144;

fn main() {
    divan::main();
}

/// Sequences that all decode, and more that wait for a place.
fn decoding() -> Scheduler {
    let mut scheduler = Scheduler::new(SchedulerOptions {
        block_size: 16,
        // For the prompts and twice as many generated tokens.
        blocks: 3 * RUNNING * PROMPT / 16,
        max_step_tokens: 512,
        max_running: RUNNING,
        max_waiting: 1024,
        max_sequence_tokens: 1 << 24,
        max_prompt_logits: 64,
        share_prefixes: true,
    })
    .expect("options are valid");
    for at in 0..RUNNING as u64 + 64 {
        let new = NewSequence {
            id: SequenceId::new(at),
            prompt: (0..PROMPT as u32).map(|token| token * at as u32).collect(),
            max_new_tokens: 4 * PROMPT as u32,
            deadline: None,
            priority: Priority::NORMAL,
            tenant: Arc::from(format!("tenant {}", at % 8)),
            all_logits: false,
        };
        scheduler.add(new).expect("room to wait");
    }
    while step(&mut scheduler) < RUNNING {}
    scheduler
}

fn step(scheduler: &mut Scheduler) -> usize {
    let step = scheduler.compose(Instant::now());
    for row in &step.rows {
        black_box((scheduler.tokens(row), scheduler.blocks(row)));
    }
    scheduler.complete(&step);
    for row in step.rows.iter().filter(|row| row.samples) {
        scheduler.append(row.id, row.first_position);
    }
    step.rows.len()
}

#[divan::bench]
fn compose(bencher: Bencher) {
    let mut scheduler = decoding();
    bencher
        .counter(ItemsCount::new(RUNNING))
        .bench_local(|| step(&mut scheduler));
}

/// Logits as a model gives them: a few tokens that stand out of a broad floor.
fn logits() -> (Vec<f32>, RowStatistics) {
    let logits: Vec<f32> = (0..VOCABULARY as u64)
        .map(|at| {
            let noise = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 24) as f32;
            // Exponential tail: the largest of 262144 is about 12.5 above the median.
            -noise.max(1e-7).ln() * 1.5 - 12.0
        })
        .collect();
    let argmax = (0..VOCABULARY).fold(
        0,
        |best, at| {
            if logits[at] > logits[best] { at } else { best }
        },
    );
    let max = logits[argmax];
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    let statistics = RowStatistics {
        argmax: argmax as u32,
        max,
        log_sum_exp: max + sum.ln() as f32,
    };
    (logits, statistics)
}

fn bench_sampler(bencher: Bencher, parameters: &SamplingParameters, mask: Option<&[u32]>) {
    let (logits, statistics) = logits();
    let mut sampler = Sampler::new(parameters, 7);
    for token in 0..512 {
        sampler.accept(token * 97);
    }
    bencher
        .counter(ItemsCount::new(1_usize))
        .bench_local(|| sampler.sample(black_box(&logits), statistics, mask));
}

fn warm() -> SamplingParameters {
    SamplingParameters {
        temperature: 0.7,
        ..SamplingParameters::greedy()
    }
}

#[divan::bench]
fn sample_greedy(bencher: Bencher) {
    bench_sampler(bencher, &SamplingParameters::greedy(), None);
}

#[divan::bench]
fn sample_greedy_with_penalties(bencher: Bencher) {
    let parameters = SamplingParameters {
        repetition_penalty: 1.1,
        ..SamplingParameters::greedy()
    };
    bench_sampler(bencher, &parameters, None);
}

#[divan::bench]
fn sample_greedy_with_mask(bencher: Bencher) {
    let mask: Vec<u32> = (0..VOCABULARY as u32 / 32)
        .map(|at| at * 2_654_435_769)
        .collect();
    bench_sampler(bencher, &SamplingParameters::greedy(), Some(&mask));
}

#[divan::bench]
fn sample_greedy_with_20_logprobs(bencher: Bencher) {
    let parameters = SamplingParameters {
        top_logprobs: 20,
        ..SamplingParameters::greedy()
    };
    bench_sampler(bencher, &parameters, None);
}

#[divan::bench]
fn sample_temperature(bencher: Bencher) {
    bench_sampler(bencher, &warm(), None);
}

#[divan::bench]
fn sample_temperature_top_p(bencher: Bencher) {
    let parameters = SamplingParameters {
        top_p: 0.9,
        ..warm()
    };
    bench_sampler(bencher, &parameters, None);
}

#[divan::bench]
fn sample_temperature_top_k(bencher: Bencher) {
    let parameters = SamplingParameters {
        top_k: 40,
        ..warm()
    };
    bench_sampler(bencher, &parameters, None);
}

#[divan::bench]
fn sample_temperature_min_p(bencher: Bencher) {
    let parameters = SamplingParameters {
        min_p: 0.05,
        ..warm()
    };
    bench_sampler(bencher, &parameters, None);
}
