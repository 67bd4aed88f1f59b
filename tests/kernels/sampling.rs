//! `kernels/sampling.cu`, `logit_statistics.cu` and `top_logprobs.cu` against `ferry::generation`'s
//! sampler and `ferry::ops::logit_statistics`: the same draw of the same seed gives the same token.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use ferry::generation::{RowStatistics, Sampler, SamplingParameters};
use ferry::ops::{logit_statistics, soft_cap};

use super::agreement::{Agreement, Random, tensor, values};
use super::buffer::{Buffer, Number};
use super::emulator::{Argument, Emulator, Launch, Order};

const CHUNK: usize = 8192;
const STATISTICS_THREADS: u32 = 256;
const WEIGH_THREADS: u32 = 256;
const THREADS: u32 = 1024;
/// Bytes of `ChunkStatistics`, `RowState` and `ChunkMasses`.
const STATISTICS_BYTES: usize = 16;
const STATE_BYTES: usize = 16;
const MASSES_BYTES: usize = 80;
const MOST: usize = 20;

/// One row of a batch.
#[derive(Clone)]
struct Row {
    logits: Vec<f32>,
    parameters: SamplingParameters,
    seed: u64,
    draws: u64,
    prompt: Vec<u32>,
    generated: Vec<u32>,
    mask: Option<Vec<u32>>,
}

/// The kernels' sources, which are libraries of their own here.
struct Kernels {
    statistics: std::sync::Arc<Emulator>,
    sampling: std::sync::Arc<Emulator>,
    top: std::sync::Arc<Emulator>,
}

fn kernels() -> Option<Kernels> {
    Some(Kernels {
        statistics: Emulator::of("logit_statistics")?,
        sampling: Emulator::of("sampling")?,
        top: Emulator::of("top_logprobs")?,
    })
}

fn statistics_of(row: &[f32]) -> RowStatistics {
    let logits = Tensor::from_slice(row, (1, row.len()), &Device::Cpu).expect("a row");
    let statistics = logit_statistics(&logits).expect("its statistics")[0];
    RowStatistics {
        argmax: statistics.argmax,
        max: statistics.max,
        log_sum_exp: statistics.log_sum_exp,
    }
}

/// Token and log probability, as the CPU's sampler has them; tokens below 0 as the kernel says it.
fn expected(row: &Row) -> (i32, f32) {
    let mut sampler = Sampler::new(&row.parameters, row.seed);
    sampler.accept_prompt(&row.prompt);
    for &token in &row.generated {
        sampler.accept(token);
    }
    let statistics = statistics_of(&row.logits);
    let mut last = None;
    for _ in 0..=row.draws {
        last = Some(sampler.sample(&row.logits, statistics, row.mask.as_deref()));
    }
    match last.expect("a draw") {
        Ok(sampled) => (sampled.token as i32, sampled.logprob),
        Err(ferry::generation::SampleError::NotFinite { .. }) => (-1, f32::NAN),
        Err(_) => (-2, f32::NAN),
    }
}

/// The bytes of a row's `SampleRow`, and of its changes.
fn describe(row: &Row, first_change: usize, mask: i32) -> (Vec<u8>, Vec<u8>) {
    let all = &row.parameters;
    let mut changes = BTreeMap::<u32, (u32, u32, f32)>::new();
    for &(token, bias) in &all.logit_bias {
        changes.entry(token).or_default().2 += bias;
    }
    let repeats = (all.repetition_penalty - 1.0).abs() > 0.0;
    if repeats {
        for &token in &row.prompt {
            changes.entry(token).or_default().0 = 1;
        }
    }
    if repeats || all.presence_penalty.abs() > 0.0 || all.frequency_penalty.abs() > 0.0 {
        for &token in &row.generated {
            let change = changes.entry(token).or_default();
            change.0 = 1;
            change.1 += 1;
        }
    }
    let mut bytes = Vec::new();
    bytes.extend(row.seed.to_le_bytes());
    bytes.extend(row.draws.to_le_bytes());
    bytes.extend(all.temperature.to_le_bytes());
    bytes.extend(all.top_k.to_le_bytes());
    for value in [
        all.top_p,
        all.min_p,
        all.repetition_penalty,
        all.presence_penalty,
        all.frequency_penalty,
    ] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(mask.to_le_bytes());
    bytes.extend((first_change as u32).to_le_bytes());
    bytes.extend((changes.len() as u32).to_le_bytes());
    bytes.extend([0; 8]);
    assert_eq!(bytes.len(), 64);
    let changes = changes
        .into_iter()
        .flat_map(|(token, (occurs, generated, bias))| {
            let words = [token, occurs, generated, bias.to_bits()];
            words.into_iter().flat_map(u32::to_le_bytes)
        });
    (bytes, changes.collect())
}

fn launch(emulator: &Emulator, kernel: &str, launch: Launch, order: Order, arguments: &[Argument]) {
    emulator
        .launch(kernel, launch, order, arguments)
        .unwrap_or_else(|error| panic!("{error}"));
}

fn summarize(
    kernels: &Kernels,
    logits: &Buffer,
    rows: usize,
    vocabulary: usize,
    order: Order,
) -> Buffer {
    let chunks = vocabulary.div_ceil(CHUNK);
    let statistics = Buffer::bytes("chunks", 4, &vec![0xff; rows * chunks * STATISTICS_BYTES]);
    launch(
        &kernels.statistics,
        "ferry_logit_statistics_f32",
        Launch::new([chunks as u32, rows as u32, 1], STATISTICS_THREADS),
        order,
        &[
            Argument::Buffer(&statistics),
            Argument::Buffer(logits),
            Argument::I32(vocabulary as i32),
        ],
    );
    statistics
}

/// Tokens and log probabilities of a batch whose rows have one vocabulary.
fn sample(kernels: &Kernels, rows: &[Row], order: Order) -> Vec<(i32, f32)> {
    let vocabulary = rows[0].logits.len();
    let (mut described, mut changes, mut masks) = (Vec::new(), Vec::new(), Vec::new());
    let mask_words = (rows.iter().flat_map(|row| &row.mask))
        .map(Vec::len)
        .max()
        .unwrap_or(0);
    for row in rows {
        let mask = row.mask.as_ref().map_or(-1, |mask| {
            masks.extend(mask);
            masks.resize(masks.len().next_multiple_of(mask_words), 0);
            (masks.len() / mask_words) as i32 - 1
        });
        let (row, of_row) = describe(row, changes.len() / 16, mask);
        described.extend(row);
        changes.extend(of_row);
    }
    let count = rows.len();
    let chunk_count = vocabulary.div_ceil(CHUNK);
    let logits: Vec<f32> = rows.iter().flat_map(|row| row.logits.clone()).collect();
    let logits = Buffer::floats("logits", &logits);
    let chunks = summarize(kernels, &logits, count, vocabulary, order);
    let tokens = Buffer::indices("tokens", &vec![0x55; count]);
    let logprobs = Buffer::output("logprobs", Number::F32, count);
    let states = Buffer::bytes("states", 4, &vec![0xff; count * STATE_BYTES]);
    let masses = Buffer::bytes("masses", 8, &vec![0xff; count * chunk_count * MASSES_BYTES]);
    let raw = Buffer::output("raw", Number::F32, changes.len() / 16);
    let described = Buffer::bytes("rows", 8, &described);
    let changes = Buffer::bytes("changes", 4, &changes);
    let masks = Buffer::indices("masks", &masks);
    let [mask_words, vocabulary, chunk_count] =
        [mask_words, vocabulary, chunk_count].map(|value| Argument::I32(value as i32));
    let by_row = Launch::new([count as u32, 1, 1], THREADS);
    launch(
        &kernels.sampling,
        "ferry_sample_prepare",
        by_row,
        order,
        &[
            Argument::Buffer(&tokens),
            Argument::Buffer(&logprobs),
            Argument::Buffer(&states),
            Argument::Buffer(&logits),
            Argument::Buffer(&raw),
            Argument::Buffer(&chunks),
            Argument::Buffer(&described),
            Argument::Buffer(&changes),
            Argument::Buffer(&masks),
            mask_words,
            vocabulary,
            chunk_count,
        ],
    );
    let grid = [rows[0].logits.len().div_ceil(CHUNK) as u32, count as u32, 1];
    launch(
        &kernels.sampling,
        "ferry_sample_weigh",
        Launch::new(grid, WEIGH_THREADS),
        order,
        &[
            Argument::Buffer(&masses),
            Argument::Buffer(&states),
            Argument::Buffer(&logits),
            Argument::Buffer(&described),
            Argument::Buffer(&changes),
            Argument::Buffer(&masks),
            mask_words,
            vocabulary,
        ],
    );
    launch(
        &kernels.sampling,
        "ferry_sample_draw",
        by_row,
        order,
        &[
            Argument::Buffer(&tokens),
            Argument::Buffer(&logprobs),
            Argument::Buffer(&states),
            Argument::Buffer(&masses),
            Argument::Buffer(&logits),
            Argument::Buffer(&raw),
            Argument::Buffer(&described),
            Argument::Buffer(&changes),
            Argument::Buffer(&masks),
            mask_words,
            vocabulary,
            chunk_count,
        ],
    );
    let tokens = tokens.to_bytes();
    let tokens = tokens
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&b| i32::from_le_bytes(b));
    tokens.zip(logprobs.to_floats(Number::F32)).collect()
}

/// Logits in about the shape of a model's: most of them far below a few.
fn model_like(count: usize, seed: u64, spread: f32) -> Vec<f32> {
    (Random::new(seed).values(count, 1.0).into_iter())
        .map(|x| (x.abs() + 1e-7).ln() * -spread - 10.0)
        .collect()
}

fn row(logits: Vec<f32>, seed: u64, parameters: SamplingParameters) -> Row {
    Row {
        logits,
        parameters,
        seed,
        draws: 0,
        prompt: Vec::new(),
        generated: Vec::new(),
        mask: None,
    }
}

/// Every way to filter, by number.
fn parameters(i: u64) -> SamplingParameters {
    let pick = |values: &[f32], of: u64| values[(i / of % values.len() as u64) as usize];
    SamplingParameters {
        temperature: pick(&[1.0, 0.6, 1.7, 0.05], 1),
        top_k: [0, 40, 1, 300, 0][(i / 2 % 5) as usize],
        top_p: pick(&[1.0, 0.9, 0.3], 3),
        min_p: pick(&[0.0, 0.0, 0.05, 0.5], 7),
        ..SamplingParameters::default()
    }
}

fn check(kernels: &Kernels, rows: &[Row], what: &str) {
    let expected: Vec<_> = rows.iter().map(expected).collect();
    for order in [Order::Forward, Order::Reverse, Order::Random(3)] {
        let found = sample(kernels, rows, order);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let parameters = &rows[i].parameters;
            assert_eq!(found.0, expected.0, "{what}, row {i}: {parameters:?}");
            let off = (found.1 - expected.1).abs();
            let fine = off < 4e-6 || (found.1.is_nan() && expected.1.is_nan());
            assert!(fine, "{what}, row {i}: {} for {}", found.1, expected.1);
        }
    }
    println!("{what}: the CPU sampler's {} tokens", rows.len());
}

#[test]
fn each_draw_is_the_samplers_for_every_filter() {
    let Some(kernels) = kernels() else { return };
    for (vocabulary, count) in [(1, 2), (37, 8), (1000, 60), (12_007, 12)] {
        let rows: Vec<Row> = (0..count)
            .map(|i| {
                let logits = model_like(vocabulary, i, 1.0 + (i % 3) as f32);
                let mut row = row(logits, i * 77, parameters(i * 5 + vocabulary as u64));
                row.draws = i % 4;
                row
            })
            .collect();
        check(&kernels, &rows, &format!("{vocabulary} tokens"));
    }
}

#[test]
fn flat_logits_whose_candidates_do_not_fit_are_drawn_from_alike() {
    let Some(kernels) = kernels() else { return };
    let vocabulary = 9000;
    let rows: Vec<Row> = (0..6)
        .map(|i| {
            // Few different values, so that most are equal to others.
            let mut logits = Random::new(i).values(vocabulary, 2.0);
            for x in &mut logits {
                *x = (*x * 8.0).round() / 8.0;
            }
            let all = SamplingParameters {
                top_k: if i % 2 == 0 { 0 } else { 5000 },
                top_p: if i % 3 == 2 { 1.0 } else { 0.8 },
                min_p: if i == 4 { 0.4 } else { 0.0 },
                ..SamplingParameters::default()
            };
            row(logits, i, all)
        })
        .collect();
    check(&kernels, &rows, "flat logits");
}

#[test]
fn penalties_biases_and_masks_change_what_the_sampler_says_they_do() {
    let Some(kernels) = kernels() else { return };
    let vocabulary = 2050;
    let mut random = Random::new(5);
    let rows: Vec<Row> = (0..24)
        .map(|i| {
            let mut all = parameters(i);
            if i % 4 == 3 {
                all.temperature = 0.0;
            }
            all.repetition_penalty = if i % 2 == 0 { 1.3 } else { 1.0 };
            all.presence_penalty = if i % 3 == 0 { 0.7 } else { 0.0 };
            all.frequency_penalty = if i % 5 == 0 { 0.4 } else { 0.0 };
            all.logit_bias = (random.indices(12, vocabulary).into_iter())
                .map(|token| (token, 3.0))
                .collect();
            let mut row = row(model_like(vocabulary, i, 1.5), i, all);
            row.prompt = random.indices(40, vocabulary);
            row.generated = random.indices(30, vocabulary);
            row.generated.push(row.generated[0]);
            if i % 3 != 0 {
                // Shorter than the vocabulary: what is beyond is forbidden.
                let words = if i % 2 == 0 { 65 } else { 30 };
                let mut mask = random.indices(words, u32::MAX as usize);
                mask[1] = u32::MAX;
                row.mask = Some(mask);
            }
            row
        })
        .collect();
    check(&kernels, &rows, "changed and masked logits");
}

#[test]
fn rows_without_a_token_say_why() {
    let Some(kernels) = kernels() else { return };
    let logits = model_like(300, 1, 2.0);
    let greedy = SamplingParameters::greedy();
    let mut rows = vec![row(logits.clone(), 1, greedy.clone()); 6];
    rows[0].logits[17] = f32::NAN;
    rows[1].logits[255] = f32::INFINITY;
    rows[2].logits.fill(f32::NEG_INFINITY);
    rows[3].mask = Some(vec![0; 10]);
    rows[4].parameters.temperature = 1.0;
    rows[4].mask = Some(vec![0; 10]);
    rows[5].logits[3] = f32::NEG_INFINITY;
    check(&kernels, &rows, "rows without a token");
}

#[test]
fn the_first_of_equal_maxima_is_the_greedy_token() {
    let Some(kernels) = kernels() else { return };
    let vocabulary = 20_004;
    let rows: Vec<Row> = [(19_000, 19_001), (8191, 8192), (0, 16_384)]
        .map(|(first, second)| {
            let mut logits = vec![0.25; vocabulary];
            logits[first] = 3.0;
            logits[second] = 3.0;
            row(logits, 0, SamplingParameters::greedy())
        })
        .to_vec();
    check(&kernels, &rows, "equal maxima");
}

#[test]
fn a_vocabulary_of_262144_is_drawn_from_alike() {
    let Some(kernels) = kernels() else { return };
    let vocabulary = 262_144;
    let rows: Vec<Row> = [(0, 0.95), (50, 0.9), (0, 1.0)]
        .map(|(top_k, top_p)| {
            let all = SamplingParameters {
                temperature: 0.8,
                top_k,
                top_p,
                ..SamplingParameters::default()
            };
            row(model_like(vocabulary, 3, 1.5), 11, all)
        })
        .to_vec();
    let found = sample(&kernels, &rows, Order::Forward);
    for (row, found) in rows.iter().zip(found) {
        assert_eq!(found.0, expected(row).0, "{:?}", row.parameters);
    }
}

#[test]
fn top_logprobs_are_the_samplers() {
    let Some(kernels) = kernels() else { return };
    for vocabulary in [1, 15, 3000, 9001] {
        for (count, levels) in [(20, 0.0), (7, 0.0), (1, 0.0), (12, 2.0)] {
            let mut logits = model_like(vocabulary, vocabulary as u64, 2.0);
            if levels > 0.0 {
                for x in &mut logits {
                    *x = (*x * levels).round() / levels;
                }
            }
            let parameters = SamplingParameters {
                top_logprobs: count,
                ..SamplingParameters::greedy()
            };
            let statistics = statistics_of(&logits);
            let expected = Sampler::new(&parameters, 0).top_logprobs(&logits, statistics);

            let order = Order::Random(5);
            let logits = Buffer::floats("logits", &logits);
            let chunks = summarize(&kernels, &logits, 1, vocabulary, order);
            let ids = Buffer::indices("ids", &[0x55; MOST]);
            let logprobs = Buffer::output("logprobs", Number::F32, MOST);
            let counts = Buffer::indices("counts", &[count]);
            launch(
                &kernels.top,
                "ferry_top_logprobs",
                Launch::new([1, 1, 1], THREADS),
                order,
                &[
                    Argument::Buffer(&ids),
                    Argument::Buffer(&logprobs),
                    Argument::Buffer(&logits),
                    Argument::Buffer(&chunks),
                    Argument::Buffer(&counts),
                    Argument::I32(vocabulary as i32),
                    Argument::I32(vocabulary.div_ceil(CHUNK) as i32),
                ],
            );
            let ids = ids.to_bytes();
            let ids = ids
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&b| i32::from_le_bytes(b));
            let found: Vec<(i32, f32)> = ids.zip(logprobs.to_floats(Number::F32)).collect();
            for (i, found) in found.iter().enumerate() {
                let (id, logprob) =
                    (expected.get(i)).map_or((-1, f32::NEG_INFINITY), |&(id, p)| (id as i32, p));
                assert_eq!(found.0, id, "place {i} of {count} of {vocabulary}");
                assert!(id < 0 || (found.1 - logprob).abs() < 4e-6);
            }
        }
    }
}

#[test]
fn the_soft_cap_of_logits_agrees_with_the_cpu_op() {
    let Some(kernels) = kernels() else { return };
    let logits = Random::new(8).values(3001, 100.0);
    let expected = tensor(&logits, 3001);
    soft_cap(&expected, 30.0).expect("the CPU op runs");
    let mut agreement = Agreement::new("ferry_soft_cap_f32", Number::F32, 1e-5, 1.0);
    agreement.check("3001 logits", &values(&expected), |order| {
        let x = Buffer::floats("x", &logits);
        launch(
            &kernels.statistics,
            "ferry_soft_cap_f32",
            Launch::new(
                [3001u32.div_ceil(STATISTICS_THREADS), 1, 1],
                STATISTICS_THREADS,
            ),
            order,
            &[
                Argument::Buffer(&x),
                Argument::I64(3001),
                Argument::F32(30.0),
            ],
        );
        x.to_floats(Number::F32)
    });
}
