//! Decoders against what transformers computes of the same tiny checkpoints, see
//! `tests/golden/make_decoders.py`; and against themselves, however a sequence is cut into steps.

use std::path::PathBuf;

use serde_json::Value;

use super::super::gguf::testing::GgufWriter;
use super::super::testing::TempDir;
use super::plan::{DecoderPlan, Naming};
use super::rope::{RopeScaling, RopeSpec};
use super::*;
use crate::ops::{CacheType, RopeStyle};

const ALL: [&str; 10] = [
    "llama",
    "llama-scaled",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3-text",
    "gemma3-text-scaled",
    "phi3",
    "phi3-longrope",
];
const BLOCK_SIZE: usize = 8;

fn tests_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn fixture(name: &str) -> PathBuf {
    tests_folder().join("fixtures/decoders").join(name)
}

fn load(name: &str, options: &DecoderOptions) -> DecoderModel {
    DecoderModel::load(&fixture(name), options, &Device::Cpu).expect(name)
}

/// What transformers answers: token ids, and logits `[tokens][vocabulary]` or of the last only.
struct Golden {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
    /// For `LongRoPE`: what "logits" were computed with, and those by the long factors.
    short_factors: bool,
    long: Option<Vec<Vec<f32>>>,
}

fn golden(name: &str) -> Vec<Golden> {
    let path = tests_folder().join(format!("golden/decoders/{name}.json"));
    let text = std::fs::read_to_string(path).expect(name);
    let json: Value = serde_json::from_str(&text).expect(name);
    let row = |row: &Value| -> Vec<f32> {
        let values = row.as_array().expect("a row");
        values
            .iter()
            .map(|x| x.as_f64().expect("a number") as f32)
            .collect()
    };
    let rows = |rows: &Value| Some(rows.as_array()?.iter().map(row).collect());
    let cases = json["cases"].as_array().expect("cases");
    cases
        .iter()
        .map(|case| Golden {
            ids: serde_json::from_value(case["ids"].clone()).expect("ids"),
            logits: rows(&case["logits"]).unwrap_or_else(|| vec![row(&case["last_logits"])]),
            short_factors: case["rope_factors"] == "short",
            long: rows(&case["logits_long"]),
        })
        .collect()
}

/// A sequence's blocks: `count` of them from `first`, in falling order.
fn blocks(first: u32, count: usize) -> Vec<u32> {
    (first..first + count as u32).rev().collect()
}

/// Logits after the last `wanted` tokens of one sequence, given in steps of `chunk` tokens.
fn logits(model: &DecoderModel, ids: &[u32], wanted: usize, chunk: usize) -> Vec<Vec<f32>> {
    let count = ids.len().div_ceil(BLOCK_SIZE);
    let cache = model
        .new_cache(count + 3, BLOCK_SIZE, CacheType::F32)
        .expect("a cache");
    let mut rows = Vec::new();
    for (index, tokens) in ids.chunks(chunk).enumerate() {
        let first = index * chunk;
        let unwanted = (ids.len() - wanted).saturating_sub(first).min(tokens.len());
        let batch = DecoderBatch {
            tokens: tokens.to_vec(),
            rows: vec![DecoderRow {
                first_position: first as u32,
                tokens: tokens.len() as u32,
                blocks: blocks(2, count),
            }],
            logit_tokens: (unwanted as u32..tokens.len() as u32).collect(),
        };
        let logits = model.forward(&batch, &cache).expect("a step");
        rows.extend(logits.to_vec2::<f32>().expect("rows"));
    }
    rows
}

/// The largest difference; NaN is infinitely far.
fn distance(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |most, d| {
        if d.is_nan() {
            f32::INFINITY
        } else {
            most.max(d)
        }
    })
}

#[test]
fn every_family_answers_as_transformers_does() {
    for name in ALL {
        let model = load(name, &DecoderOptions::default());
        for case in golden(name) {
            let long = case.long.is_some() && case.short_factors;
            let expected = if long {
                case.long.as_ref().expect("long")
            } else {
                &case.logits
            };
            let found = logits(&model, &case.ids, expected.len(), usize::MAX);
            let off = distance(&found, expected);
            println!("{name} {} tokens: {off:e}", case.ids.len());
            assert!(off < 1e-3, "{name}: {off}");
        }
    }
}

#[test]
fn a_short_context_takes_the_short_factors() {
    let options = DecoderOptions {
        max_context: Some(16),
        ..DecoderOptions::default()
    };
    let model = load("phi3-longrope", &options);
    let case = golden("phi3-longrope")
        .into_iter()
        .find(|case| case.short_factors);
    let case = case.expect("a short row");
    let off = distance(
        &logits(&model, &case.ids, case.logits.len(), 100),
        &case.logits,
    );
    assert!(off < 1e-3, "{off}");
}

#[test]
fn a_sequence_in_steps_is_the_sequence_in_one() {
    for name in ALL {
        let model = load(name, &DecoderOptions::default());
        for case in golden(name) {
            let whole = logits(&model, &case.ids, case.ids.len(), usize::MAX);
            for chunk in [1, 5] {
                let steps = logits(&model, &case.ids, case.ids.len(), chunk);
                assert_eq!(whole, steps, "{name} by {chunk}");
            }
            // Dropping tokens in the last layer changes nothing for the others.
            let last = logits(&model, &case.ids, 1, usize::MAX);
            assert_eq!(last[0], whole[whole.len() - 1], "{name}");
        }
    }
}

#[test]
fn sequences_in_one_batch_do_not_see_each_other() {
    for name in ALL {
        let model = load(name, &DecoderOptions::default());
        let cache = model
            .new_cache(64, BLOCK_SIZE, CacheType::F32)
            .expect("a cache");
        let (a, b): (Vec<u32>, Vec<u32>) = ((3..25).collect(), (40..57).rev().collect());
        let row = |first: usize, tokens: usize, block: u32| DecoderRow {
            first_position: first as u32,
            tokens: tokens as u32,
            blocks: blocks(block, (first + tokens).div_ceil(BLOCK_SIZE)),
        };
        // `a` but its last token; then that token in the middle of `b`'s prompt, b first.
        let first = DecoderBatch {
            tokens: a[..21].to_vec(),
            rows: vec![DecoderRow {
                blocks: blocks(7, 3),
                ..row(0, 21, 7)
            }],
            logit_tokens: Vec::new(),
        };
        let none = model.forward(&first, &cache).expect("a step");
        assert_eq!(none.dims(), [0, model.spec().vocabulary]);
        let both = DecoderBatch {
            tokens: [&b[..], &a[21..]].concat(),
            rows: vec![row(0, 17, 20), row(21, 1, 7)],
            logit_tokens: vec![17, 16],
        };
        let found = model.forward(&both, &cache).expect("a step");
        let found: Vec<Vec<f32>> = found.to_vec2().expect("rows");
        for (sequence, row) in [(&a, &found[0]), (&b, &found[1])] {
            assert_eq!(logits(&model, sequence, 1, usize::MAX)[0], *row, "{name}");
        }
    }
}

#[test]
fn quantizing_at_load_takes_less_memory_and_changes_little() {
    for name in ALL {
        let dense = load(name, &DecoderOptions::default());
        // Rows of 32 do not divide into blocks of 256, so this falls back to Q8_0.
        let options = DecoderOptions {
            quantize: Some(GgmlDType::Q6K),
            ..DecoderOptions::default()
        };
        let quantized = load(name, &options);
        assert!(
            2 * quantized.memory_bytes() < dense.memory_bytes(),
            "{name}"
        );
        assert_eq!(quantized.parameters(), dense.parameters());
        let ids: Vec<u32> = (3..20).collect();
        let [a, b] = [&dense, &quantized].map(|model| logits(model, &ids, 17, usize::MAX));
        let spread = a.iter().flatten().fold(0f32, |most, x| most.max(x.abs()));
        let off = distance(&a, &b);
        println!("{name}: off by {off} of {spread}");
        assert!(
            off > 0.0 && off < 0.15 * spread,
            "{name}: {off} of {spread}"
        );
    }
}

#[test]
fn a_gguf_file_of_the_same_weights_answers_the_same() -> Result<(), Box<dyn std::error::Error>> {
    let dir = TempDir::new()?;
    for name in ALL {
        let model = load(name, &DecoderOptions::default());
        let path = dir.path().join(format!("{name}.gguf"));
        converted(name, &model).write(&path)?;
        let gguf = DecoderModel::load(&path, &DecoderOptions::default(), &Device::Cpu)?;
        assert_eq!(gguf.parameters(), model.parameters());
        for case in golden(name) {
            let wanted = case.ids.len();
            let [a, b] = [&model, &gguf].map(|model| logits(model, &case.ids, wanted, 64));
            let off = distance(&a, &b);
            assert!(off < 1e-4, "{name}: {off}");
        }
    }
    Ok(())
}

/// A fixture as llama.cpp's converter would write it, in f32.
fn converted(name: &str, model: &DecoderModel) -> GgufWriter {
    let spec = model.spec();
    let (writer, interleaved) = metadata(spec);
    let source = Source::open(&fixture(name)).expect(name);
    let Source::Safetensors(_, checkpoint) = &source else {
        panic!("{name} is of safetensors");
    };
    let plans = (
        DecoderPlan::of(&source, spec),
        DecoderPlan::new(spec, Naming::Gguf),
    );
    plans
        .0
        .tensors()
        .zip(plans.1.tensors())
        .fold(writer, |writer, (from, to)| {
            let mut values = checkpoint.values(&from.name).expect("values");
            if to.name.ends_with("norm.weight") {
                for value in &mut values {
                    *value += spec.norm_offset;
                }
            }
            if interleaved
                && [".attn_q.", ".attn_k."]
                    .iter()
                    .any(|part| to.name.contains(part))
            {
                // Pairs that are half a head apart come to lie side by side.
                let width = to.shape.get(1).copied().unwrap_or(1);
                let heads = values.chunks_exact(spec.head_dim * width);
                values = heads
                    .flat_map(|head| {
                        let half = spec.head_dim / 2;
                        let order = (0..spec.head_dim).map(move |i| i % 2 * half + i / 2);
                        order.flat_map(|row| head[row * width..][..width].to_vec())
                    })
                    .collect();
            }
            writer.f32_tensor(&to.name, &to.shape, &values)
        })
}

fn metadata(spec: &DecoderSpec) -> (GgufWriter, bool) {
    let architecture = match spec.architecture {
        Architecture::Mistral => "llama".to_owned(),
        other => other.to_string(),
    };
    let key = |key: &str| format!("{architecture}.{key}");
    let mut writer = GgufWriter::new()
        .string("general.architecture", &architecture)
        .u32(&key("block_count"), spec.layers as u32)
        .u32(&key("context_length"), spec.context_length as u32)
        .u32(&key("embedding_length"), spec.hidden as u32)
        .u32(&key("feed_forward_length"), spec.intermediate as u32)
        .u32(&key("attention.head_count"), spec.heads as u32)
        .u32(&key("attention.head_count_kv"), spec.kv_heads as u32)
        .u32(&key("attention.key_length"), spec.head_dim as u32)
        .f32(&key("attention.layer_norm_rms_epsilon"), spec.norm_epsilon)
        .f32(&key("attention.scale"), spec.attention_scale)
        .u32(&key("rope.dimension_count"), spec.rope.dimensions as u32)
        .f32(&key("rope.freq_base"), spec.rope.base as f32);
    for (name, cap) in [
        ("attn_logit_softcapping", spec.attention_softcap),
        ("final_logit_softcapping", spec.logit_softcap),
    ] {
        if let Some(cap) = cap {
            writer = writer.f32(&key(name), cap);
        }
    }
    if let Some(window) = spec.windows.iter().flatten().next() {
        let mut pattern = Vec::from(7_u32.to_le_bytes());
        pattern.extend((spec.layers as u64).to_le_bytes());
        pattern.extend(spec.windows.iter().map(|window| u8::from(window.is_some())));
        writer = writer
            .u32(&key("attention.sliding_window"), *window as u32)
            .value(&key("attention.sliding_window_pattern"), 9, &pattern);
    }
    match &spec.rope.scaling {
        RopeScaling::Linear { factor } => {
            writer = writer
                .string(&key("rope.scaling.type"), "linear")
                .f32(&key("rope.scaling.factor"), *factor as f32);
        }
        RopeScaling::Factors(long) => {
            writer = writer
                .u32(&key("rope.scaling.original_context_length"), 16)
                .f32(&key("rope.scaling.attn_factor"), spec.rope.magnitude)
                .f32_tensor("rope_factors_long.weight", &[long.len()], long)
                .f32_tensor(
                    "rope_factors_short.weight",
                    &[long.len()],
                    &vec![1.0; long.len()],
                );
        }
        // The converter writes how much each frequency is stretched.
        RopeScaling::Llama3 { .. } => {
            let plain = RopeSpec {
                scaling: RopeScaling::None,
                ..spec.rope.clone()
            };
            let pairs = plain.frequencies().into_iter().zip(spec.rope.frequencies());
            let factors: Vec<f32> = pairs.map(|(plain, scaled)| plain / scaled).collect();
            writer = writer.f32_tensor("rope_freqs.weight", &[factors.len()], &factors);
        }
        RopeScaling::Yarn { .. } | RopeScaling::None => {}
    }
    let interleaved = architecture == "llama";
    assert_eq!(spec.rope.style, RopeStyle::HalfSplit, "as transformers");
    (writer, interleaved)
}

#[test]
fn a_summary_is_read_from_headers_alone() -> Result<(), Box<dyn std::error::Error>> {
    let summary = DecoderSummary::read(&fixture("llama-scaled"))?;
    let model = load("llama-scaled", &DecoderOptions::default());
    assert_eq!(summary.spec?, *model.spec());
    assert_eq!(summary.contents.parameters, model.parameters());

    let dir = TempDir::new()?;
    let path = dir.path().join("model.gguf");
    let (writer, _) = metadata(model.spec());
    writer.tensor("iq", &[1, 256], 23, &[0; 136]).write(&path)?;
    let summary = DecoderSummary::read(dir.path())?;
    assert_eq!(
        summary.contents.types().into_iter().collect::<Vec<_>>(),
        [("F32", 1), ("IQ4_XS", 1)]
    );
    let error = summary.spec.expect_err("no embeddings");
    assert!(error.to_string().contains("token_embd.weight"), "{error}");
    Ok(())
}

#[test]
fn batches_that_contradict_themselves_are_errors() {
    let model = load("llama", &DecoderOptions::default());
    let cache = model
        .new_cache(4, BLOCK_SIZE, CacheType::F16)
        .expect("a cache");
    let row = |first_position, tokens, blocks: &[u32]| DecoderRow {
        first_position,
        tokens,
        blocks: blocks.to_vec(),
    };
    let run = |tokens: &[u32], rows: &[DecoderRow], logit_tokens: &[u32]| {
        let batch = DecoderBatch {
            tokens: tokens.to_vec(),
            rows: rows.to_vec(),
            logit_tokens: logit_tokens.to_vec(),
        };
        model
            .forward(&batch, &cache)
            .map(|logits| logits.dims().to_vec())
    };
    assert!(run(&[], &[], &[]).is_ok_and(|dims| dims == [0, 320]));
    assert!(run(&[1, 2], &[row(0, 2, &[0])], &[1, 0, 1]).is_ok_and(|dims| dims == [3, 320]));
    let error = run(&[1, 2], &[row(0, 2, &[0]), row(0, 0, &[1])], &[]);
    assert!(matches!(error, Err(ForwardError::EmptyRow { row: 1 })));
    let error = run(&[1, 320], &[row(0, 1, &[0]), row(0, 1, &[1])], &[]);
    assert!(matches!(
        error,
        Err(ForwardError::Token {
            row: 1,
            token: 320,
            ..
        })
    ));
    let error = run(&[1], &[row(128, 1, &[0])], &[]);
    assert!(matches!(
        error,
        Err(ForwardError::TooLong {
            len: 129,
            max: 128,
            ..
        })
    ));
    let error = run(&[1], &[row(u32::MAX, 1, &[0])], &[]);
    assert!(matches!(error, Err(ForwardError::TooLong { .. })));
    for tokens in [1, 3] {
        let error = run(&[1, 2], &[row(0, tokens, &[0])], &[]);
        assert!(matches!(error, Err(ForwardError::RowSum { .. })));
    }
    let error = run(&[1, 2], &[row(0, 2, &[0])], &[2]);
    assert!(matches!(
        error,
        Err(ForwardError::LogitToken {
            token: 2,
            tokens: 2
        })
    ));
    for wrong in [&[][..], &[4], &[u32::MAX]] {
        let error = run(&[1], &[row(0, 1, wrong)], &[0]);
        assert!(matches!(error, Err(ForwardError::Blocks(_))), "{wrong:?}");
    }
    let error = run(&[1], &[row(8, 1, &[0])], &[0]);
    assert!(matches!(error, Err(ForwardError::Blocks(_))));
    let error = run(&[1, 2], &[row(0, 1, &[0]), row(0, 1, &[0])], &[]);
    assert!(matches!(error, Err(ForwardError::Blocks(_))));
    for (blocks, block_size) in [(0, 8), (8, 0), (usize::MAX, 8), (1 << 60, 1)] {
        let error = model.new_cache(blocks, block_size, CacheType::F16);
        assert!(matches!(error, Err(ForwardError::Cache { .. })));
    }
}

#[test]
fn a_cache_takes_what_it_says() {
    let model = load("llama", &DecoderOptions::default());
    // Keys and values of two layers, two heads of eight features, f16.
    let bytes = KvCache::bytes_per_block(model.spec(), BLOCK_SIZE, CacheType::F16);
    assert_eq!(bytes, 2 * 2 * 2 * 8 * BLOCK_SIZE * 2);
    let cache = model
        .new_cache(3, BLOCK_SIZE, CacheType::F16)
        .expect("a cache");
    assert_eq!((cache.blocks(), cache.block_size()), (3, BLOCK_SIZE));
}

#[test]
fn load_errors_name_the_tensor() -> Result<(), Box<dyn std::error::Error>> {
    let dir = TempDir::new()?;
    let path = dir.path().join("model.gguf");
    let model = load("qwen3", &DecoderOptions::default());
    let load = |writer: GgufWriter| {
        writer.write(&path).expect("a file");
        let error = DecoderModel::load(&path, &DecoderOptions::default(), &Device::Cpu);
        error.expect_err("refused").to_string()
    };
    let error = load(converted("qwen3", &model).u32("qwen3.expert_count", 4));
    assert!(error.contains("qwen3.expert_count"), "{error}");
    let (writer, _) = metadata(model.spec());
    let table = [model.spec().vocabulary, model.spec().hidden];
    let ones = vec![1.0; table[0] * table[1]];
    let writer = writer.f32_tensor("token_embd.weight", &table, &ones);
    let error = load(writer);
    assert!(
        error.contains("blk.0.attn_norm.weight") && error.contains("missing"),
        "{error}"
    );
    let (writer, _) = metadata(model.spec());
    let writer = writer
        .f32_tensor("token_embd.weight", &table, &ones)
        .f32_tensor("blk.0.attn_norm.weight", &[7], &[1.0; 7]);
    let error = load(writer);
    assert!(
        error.contains("blk.0.attn_norm.weight") && error.contains("[7]"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_model_can_move_to_its_executor_thread() {
    fn is_send<T: Send>() {}
    is_send::<DecoderModel>();
    is_send::<KvCache>();
}
