//! Our decoders against `transformers`, on tiny checkpoints with random weights: logits within the
//! stated tolerance, and the same bits whatever the tiling. The expectations are in
//! tests/golden/decoders, made by `make_decoders.py`.

use std::path::Path;

use candle_core::Device;
use ferry::{
    models::{DecoderBatch, DecoderModel, DecoderOptions, DecoderRow, KvCache},
    ops::CacheType,
};
use serde_json::Value;

use super::support::{fixture, root};

/// Largest difference of a logit with weights and cache in f32. Logits reach about 5; the golden
/// ones move by 7e-6 in f64.
const TOLERANCE: f32 = 2e-4;

const BLOCK: usize = 16;

/// A model with a cache of `blocks` blocks.
pub struct Decoder {
    pub model: DecoderModel,
    pub cache: KvCache,
}

impl Decoder {
    pub fn load(source: &Path, blocks: usize, cache_type: CacheType) -> Self {
        Self::with(source, DecoderOptions::default(), blocks, cache_type)
    }

    pub fn with(
        source: &Path,
        options: DecoderOptions,
        blocks: usize,
        cache_type: CacheType,
    ) -> Self {
        let model = DecoderModel::load(source, &options, &Device::Cpu).unwrap();
        let cache = model.new_cache(blocks, BLOCK, cache_type).unwrap();
        Self { model, cache }
    }

    /// One row of one sequence that owns the blocks from `first_block` on; logits of all tokens.
    pub fn row(&self, ids: &[u32], first_position: usize, first_block: u32) -> Vec<Vec<f32>> {
        let mut batch = DecoderBatch::default();
        push(&mut batch, ids, first_position, first_block);
        self.run(&batch)
    }

    pub fn run(&self, batch: &DecoderBatch) -> Vec<Vec<f32>> {
        let logits = self.model.forward(batch, &self.cache).unwrap();
        logits.to_vec2().unwrap()
    }
}

/// Adds a row all of whose logits are wanted.
pub fn push(batch: &mut DecoderBatch, ids: &[u32], first_position: usize, first_block: u32) {
    let first = batch.tokens.len() as u32;
    batch.tokens.extend(ids);
    batch.logit_tokens.extend(first..first + ids.len() as u32);
    let blocks = (first_position + ids.len()).div_ceil(BLOCK) as u32;
    batch.rows.push(DecoderRow {
        first_position: first_position as u32,
        tokens: ids.len() as u32,
        blocks: (first_block..first_block + blocks).collect(),
    });
}

struct Golden {
    name: String,
    cases: Vec<Value>,
}

fn all() -> Vec<Golden> {
    let mut golden = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/golden/decoders")).unwrap() {
        let path = entry.unwrap().path();
        let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        golden.push(Golden {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            cases: serde_json::from_value(file["cases"].take()).unwrap(),
        });
    }
    assert!(golden.len() >= 10, "the golden files are missing");
    golden.sort_by(|a, b| a.name.cmp(&b.name));
    golden
}

impl Golden {
    /// The model that a case is of: `LongRoPE` has short and long factors, and picks them by the
    /// longest context that is to be.
    fn decoder(&self, case: &Value) -> Decoder {
        let options = DecoderOptions {
            max_context: (case["rope_factors"] == "short").then_some(16),
            ..DecoderOptions::default()
        };
        Decoder::with(&source(&self.name), options, 16, CacheType::F32)
    }
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn ids_of(case: &Value) -> Vec<u32> {
    read(&case["ids"])
}

/// The cases that have logits at every position.
fn with_logits(golden: &Golden) -> Vec<(Vec<u32>, Vec<Vec<f32>>)> {
    let cases = golden.cases.iter().filter(|case| case["logits"].is_array());
    cases
        .map(|case| (ids_of(case), read(&case["logits"])))
        .collect()
}

fn source(name: &str) -> std::path::PathBuf {
    fixture("decoders").join(name)
}

fn max_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .flatten()
        .zip(b.iter().flatten())
        .map(|(a, b)| (a - b).abs())
        .map(|error| if error.is_nan() { f32::INFINITY } else { error })
        .fold(0.0, f32::max)
}

#[test]
fn logits_of_every_family_are_those_of_transformers() {
    for golden in all() {
        for case in golden.cases.iter().filter(|case| case["logits"].is_array()) {
            let expected: Vec<Vec<f32>> = read(&case["logits"]);
            let error = max_difference(&golden.decoder(case).row(&ids_of(case), 0, 0), &expected);
            assert!(error < TOLERANCE, "{}: {error:e}", golden.name);
        }
    }
}

#[test]
fn greedy_tokens_of_every_family_are_those_of_transformers() {
    for golden in all() {
        for case in golden.cases.iter().filter(|case| case["greedy"].is_array()) {
            let (decoder, ids) = (golden.decoder(case), ids_of(case));
            let expected: Vec<u32> = read(&case["greedy"]);
            let mut next = decoder.row(&ids, 0, 0).pop().unwrap();
            let mut found = Vec::new();
            for position in ids.len()..ids.len() + expected.len() {
                found.push(argmax(&next));
                next = decoder.row(&[argmax(&next)], position, 0).remove(0);
            }
            assert_eq!(found, expected, "{}", golden.name);
        }
    }
}

pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    best.unwrap() as u32
}

#[test]
fn chunks_and_company_change_no_bit() {
    for golden in all() {
        let decoder = Decoder::load(&source(&golden.name), 32, CacheType::F16);
        let cases = with_logits(&golden);
        let (first, second) = (&cases[0].0, &cases[cases.len() - 1].0);
        let whole = decoder.row(second, 0, 0);
        // In chunks of 7 at other blocks, each beside a token of the other sequence.
        let mut chunked = Vec::new();
        let mut at = 0;
        for (turn, chunk) in second.chunks(7).enumerate() {
            let mut batch = DecoderBatch::default();
            let turn = turn % first.len();
            push(&mut batch, &first[turn..=turn], turn, 10);
            push(&mut batch, chunk, at, 20);
            at += chunk.len();
            chunked.extend(decoder.run(&batch).split_off(1));
        }
        assert_eq!(chunked, whole, "{}", golden.name);
    }
}

#[test]
fn weights_quantized_on_load_stay_close() {
    // Sizes that blocks of 32 divide; the tolerance is that of 8-bit weights and activations.
    let golden = all().into_iter().find(|golden| golden.name == "llama");
    let golden = golden.unwrap();
    let options = DecoderOptions {
        quantize: Some(candle_core::quantized::GgmlDType::Q8_0),
        ..DecoderOptions::default()
    };
    let exact = Decoder::load(&source("llama"), 16, CacheType::F32);
    let decoder = Decoder::with(&source("llama"), options, 16, CacheType::F32);
    assert!(decoder.model.memory_bytes() < exact.model.memory_bytes());
    for (ids, expected) in with_logits(&golden) {
        let error = max_difference(&decoder.row(&ids, 0, 0), &expected);
        assert!(error < 0.4, "{error}");
    }
}
