//! Whole encoders on the device against the same on the CPU.

use std::path::{Path, PathBuf};

use candle_core::Device;
use ferry::models::{EncoderModel, Head, LoadOptions, PackedBatch, RowOutput};
use ferry::ops::Pooling;

use super::mock::{Mock, Outcome, on_device};

/// Largest difference of a value from the CPU's, with weights and activations in f32.
const TOLERANCE: f32 = 2e-5;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn embed(pooling: Pooling) -> Head {
    Head::Embed {
        pooling,
        normalize: true,
        dimension: None,
    }
}

fn values(output: &RowOutput) -> &[f32] {
    match output {
        RowOutput::Embedding(values)
        | RowOutput::Logits(values)
        | RowOutput::TokenLogits { values, .. } => values,
    }
}

/// Rows of several lengths, none of them the same.
fn batch(lengths: &[u32], vocabulary: u32) -> PackedBatch {
    let mut batch = PackedBatch::new();
    for &len in lengths {
        let tokens: Vec<u32> = (0..len).map(|i| (i * 17 + len * 5) % vocabulary).collect();
        batch.push_row(&tokens, None);
    }
    batch
}

/// Runs the model on both and gives the largest difference.
fn difference(
    source: &Path,
    head: &Head,
    batch: &PackedBatch,
    device: &Device,
) -> Result<f32, Box<dyn std::error::Error>> {
    let options = LoadOptions {
        head: head.clone(),
        quantize: None,
        compute: ferry::ops::Compute::F32,
    };
    let expected = EncoderModel::load(source, &options, &Device::Cpu)?.forward(batch)?;
    let found = EncoderModel::load(source, &options, device)?.forward(batch)?;
    assert_eq!(found.len(), expected.len());
    let mut largest = 0_f32;
    for (found, expected) in found.iter().zip(&expected) {
        let (found, expected) = (values(found), values(expected));
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!(a.is_finite());
            largest = largest.max((a - b).abs());
        }
    }
    Ok(largest)
}

fn agrees(name: &str, head: &Head, device: &Device) -> Outcome {
    let difference = difference(
        &fixture(name),
        head,
        &batch(&[1, 7, 40, 3, 22], 250),
        device,
    )?;
    println!("{name} {head:?}: largest difference {difference:.1e}");
    assert!(difference < TOLERANCE, "{name} {head:?}: {difference:e}");
    Ok(())
}

#[test]
fn every_family_and_head_gives_on_the_device_what_it_gives_on_the_cpu() {
    on_device(|device, _| {
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
            agrees("tiny-bert-embed", &embed(pooling), device)?;
        }
        for name in [
            "tiny-bert-embed-f16",
            "tiny-distilbert-embed",
            "tiny-roberta-embed",
            "tiny-xlm-roberta-embed",
        ] {
            agrees(name, &embed(Pooling::Mean), device)?;
        }
        for name in [
            "tiny-bert-classify",
            "tiny-bert-multilabel",
            "tiny-distilbert-classify",
            "tiny-roberta-classify",
            "tiny-roberta-classify-bf16",
        ] {
            agrees(name, &Head::SequenceClass, device)?;
        }
        for name in ["tiny-bert-rerank", "tiny-xlm-roberta-rerank"] {
            agrees(name, &Head::PairScore, device)?;
        }
        for name in ["tiny-bert-tokens", "tiny-distilbert-tokens"] {
            agrees(name, &Head::TokenClass, device)?;
        }
        Ok(())
    });
}

/// Waits of the host for the device while a batch runs.
fn waits_of(
    model: &EncoderModel,
    batch: &PackedBatch,
    mock: &Mock,
) -> Result<usize, Box<dyn std::error::Error>> {
    let before = mock.waits();
    model.forward(batch)?;
    Ok(mock.waits() - before)
}

#[test]
fn a_forward_pass_waits_for_the_device_once() {
    on_device(|device, mock| {
        let options = LoadOptions {
            head: embed(Pooling::Mean),
            quantize: None,
            compute: ferry::ops::Compute::F32,
        };
        let model = EncoderModel::load(&fixture("tiny-bert-embed"), &options, device)?;
        model.forward(&batch(&[3], 250))?;
        assert_eq!(waits_of(&model, &batch(&[5, 9], 250), mock)?, 1);
        assert!(mock.launches_of("ferry_attention_f32_d32") >= 4);
        Ok(())
    });
}

#[test]
fn a_batch_that_finds_no_memory_is_an_error_and_the_next_one_runs() {
    on_device(|device, mock| {
        let options = LoadOptions {
            head: embed(Pooling::Mean),
            quantize: None,
            compute: ferry::ops::Compute::F32,
        };
        let model = EncoderModel::load(&fixture("tiny-bert-embed"), &options, device)?;
        let batch = batch(&[5, 9], 250);
        let expected = model.forward(&batch)?;
        for failing in 1..20 {
            mock.fail_allocation(failing);
            match model.forward(&batch) {
                Ok(_) => assert!(failing > 10, "allocation {failing} did not fail"),
                Err(error) => assert!(error.to_string().contains("OUT_OF_MEMORY"), "{error}"),
            }
        }
        mock.fail_allocation(0);
        assert_eq!(model.forward(&batch)?, expected);
        Ok(())
    });
}

/// A real model, if it is there: all-MiniLM-L6-v2 on one short sentence.
#[test]
fn minilm_gives_on_the_device_what_it_gives_on_the_cpu() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/minilm/1");
    if !source.join("model.safetensors").is_file() {
        eprintln!("SKIPPED: models/minilm is not fetched");
        return;
    }
    on_device(|device, _| {
        // "A ferry takes whoever is there."
        let mut batch = PackedBatch::new();
        batch.push_row(&[101, 1037, 7047, 3138, 9444, 2003, 2045, 1012, 102], None);
        let difference = difference(&source, &embed(Pooling::Mean), &batch, device)?;
        println!("MiniLM: largest difference {difference:.1e}");
        assert!(difference < TOLERANCE, "{difference:e}");
        Ok(())
    });
}
