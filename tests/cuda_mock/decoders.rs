//! Whole decoders on the device against the same on the CPU: prompts, single tokens, and both in
//! one step, over a paged cache.

use std::path::PathBuf;

use candle_core::Device;
use ferry::models::{DecoderBatch, DecoderModel, DecoderOptions, DecoderRow, KvCache};
use ferry::ops::CacheType;

use super::mock::{Outcome, on_device};

const BLOCK: usize = 16;

const FAMILIES: [&str; 10] = [
    "gemma2",
    "gemma3-text",
    "gemma3-text-scaled",
    "llama",
    "llama-scaled",
    "mistral",
    "phi3",
    "phi3-longrope",
    "qwen2",
    "qwen3",
];

fn source(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/decoders")
        .join(name)
}

struct Decoder {
    model: DecoderModel,
    cache: KvCache,
}

impl Decoder {
    fn load(
        name: &str,
        cache_type: CacheType,
        device: &Device,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let model = DecoderModel::load(&source(name), &DecoderOptions::default(), device)?;
        let cache = model.new_cache(24, BLOCK, cache_type)?;
        Ok(Self { model, cache })
    }

    fn run(&self, batch: &DecoderBatch) -> Result<Vec<Vec<f32>>, Box<dyn std::error::Error>> {
        Ok(self.model.forward(batch, &self.cache)?.to_vec2()?)
    }
}

/// Adds a row of a sequence whose blocks lie backwards from `last_block`.
fn push(batch: &mut DecoderBatch, sequence: u32, first_position: usize, tokens: usize) {
    let first = batch.tokens.len() as u32;
    batch
        .tokens
        .extend((0..tokens).map(|i| ((first_position + i) as u32 * 13 + sequence * 29 + 7) % 128));
    batch.logit_tokens.push(first + tokens as u32 - 1);
    let blocks = (first_position + tokens).div_ceil(BLOCK) as u32;
    batch.rows.push(DecoderRow {
        first_position: first_position as u32,
        tokens: tokens as u32,
        blocks: (0..blocks).map(|block| 23 - 6 * sequence - block).collect(),
    });
}

/// Steps as a scheduler would make them: two prompts, one of them in two pieces beside a single
/// token of the other, then single tokens of both and a third prompt.
fn steps() -> Vec<DecoderBatch> {
    let plan: [&[(u32, usize, usize)]; 6] = [
        &[(0, 0, 33), (1, 0, 5)],
        &[(0, 33, 1), (1, 5, 14)],
        &[(0, 34, 1), (1, 19, 1), (2, 0, 1)],
        &[(0, 35, 1), (1, 20, 1), (2, 1, 40)],
        &[(2, 41, 1)],
        &[(1, 21, 1), (0, 36, 1)],
    ];
    plan.map(|rows| {
        let mut batch = DecoderBatch::default();
        for &(sequence, first_position, tokens) in rows {
            push(&mut batch, sequence, first_position, tokens);
        }
        batch
    })
    .to_vec()
}

fn agrees(name: &str, cache_type: CacheType, tolerance: f32, device: &Device) -> Outcome {
    let there = Decoder::load(name, cache_type, device)?;
    let here = Decoder::load(name, cache_type, &Device::Cpu)?;
    let mut largest = 0_f32;
    for (index, batch) in steps().iter().enumerate() {
        let (found, expected) = (there.run(batch)?, here.run(batch)?);
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!(a.is_finite(), "{name}, step {index}");
            largest = largest.max((a - b).abs());
        }
    }
    println!("{name}, cache {cache_type:?}: largest difference of a logit {largest:.1e}");
    assert!(largest < tolerance, "{name}: {largest:e}");
    Ok(())
}

#[test]
fn every_family_gives_on_the_device_what_it_gives_on_the_cpu() {
    on_device(|device, _| {
        for name in FAMILIES {
            agrees(name, CacheType::F32, 1e-4, device)?;
        }
        Ok(())
    });
}

#[test]
fn a_cache_of_half_precision_agrees_with_that_of_the_cpu() {
    on_device(|device, _| {
        for name in ["llama", "gemma2", "qwen3"] {
            agrees(name, CacheType::F16, 1e-2, device)?;
        }
        Ok(())
    });
}

#[test]
fn a_step_waits_for_the_device_once() {
    on_device(|device, mock| {
        let decoder = Decoder::load("llama", CacheType::F16, device)?;
        for batch in steps() {
            let before = mock.waits();
            decoder.run(&batch)?;
            assert_eq!(mock.waits() - before, 1);
        }
        Ok(())
    });
}
