//! Gradients against finite differences, and the outputs against those of the encoder that serves.
//! `tests/it/gradients.rs` holds them against captum.

use std::path::Path;

use serde_json::{Value, json};

use super::super::testing::{TempDir, bert_config, bert_tensors, write_config, write_safetensors};
use super::*;

/// A model on disk, as it serves and for its gradients.
fn both(config: &Value, head: &Head) -> (EncoderModel, DifferentiableEncoder) {
    let dir = TempDir::new().unwrap();
    write_config(dir.path(), config);
    write_safetensors(&dir.path().join("model.safetensors"), &bert_tensors(""));
    let options = LoadOptions {
        head: head.clone(),
        quantize: None,
        compute: Compute::F32,
    };
    (
        EncoderModel::load(dir.path(), &options, &Device::Cpu).unwrap(),
        DifferentiableEncoder::load(dir.path(), head).unwrap(),
    )
}

#[test]
fn every_activation_s_outputs_are_the_served_ones_and_its_gradients_their_differences() {
    let text = [1_u32, 7, 30, 22, 9];
    let (types, baseline) = ([0_u32, 0, 1, 1, 1], [1_u32, 0, 0, 0, 9]);
    let line = Line {
        ids: &text,
        type_ids: &types,
        baseline: &baseline,
    };
    for activation in ["gelu", "gelu_new", "relu", "tanh"] {
        let mut config = bert_config();
        config["hidden_act"] = json!(activation);
        for head in [
            Head::SequenceClass,
            Head::Embed {
                pooling: Pooling::Last,
                normalize: false,
                dimension: Some(5),
            },
        ] {
            let (served, model) = both(&config, &head);
            assert!(served.is_f32());
            let mut batch = PackedBatch::new();
            batch.push_row(&text, Some(&types));
            let expected = match served.forward(&batch).unwrap().remove(0) {
                RowOutput::Logits(values) | RowOutput::Embedding(values) => values,
                RowOutput::TokenLogits { .. } => panic!("no head a token"),
            };
            let outputs = model.outputs(&line, &[1.0]).unwrap().remove(0);
            for (a, b) in outputs.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-4, "{activation} {a} {b}");
            }
            // Along the line, all tokens' shares together are the derivative by α.
            let slope = |outputs: &[f32]| vec![1.0; outputs.len()];
            let shares = model.shares(&line, &[0.4], &slope).unwrap().remove(0);
            let total: f64 = shares.iter().copied().map(f64::from).sum();
            let around = model.outputs(&line, &[0.39, 0.41]).unwrap();
            let sum = |outputs: &[f32]| outputs.iter().copied().map(f64::from).sum::<f64>();
            let difference = (sum(&around[1]) - sum(&around[0])) / 0.02;
            let off = (total - difference).abs();
            assert!(
                off < 0.01 * (1.0 + difference.abs()),
                "{activation} {total} {difference}"
            );
            assert!(shares[0].abs() < 1e-9, "a token that is its own baseline");
        }
    }
}

#[test]
fn a_line_that_is_none_is_an_error() {
    let (_, model) = both(&bert_config(), &Head::SequenceClass);
    let outputs = |ids: &[u32], baseline: &[u32]| {
        let types = vec![0; ids.len()];
        let line = Line {
            ids,
            type_ids: &types,
            baseline,
        };
        model.outputs(&line, &[1.0])
    };
    assert!(outputs(&[1, 2], &[0, 0]).is_ok());
    assert!(outputs(&[], &[]).is_err());
    assert!(outputs(&[1, 2], &[0]).is_err());
    assert!(outputs(&[1, 50], &[0, 0]).is_err());
    assert!(outputs(&[1; 71], &[0; 71]).is_err());
    let tokens = DifferentiableEncoder::load(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-bert-tokens"),
        &Head::TokenClass,
    );
    assert!(tokens.unwrap_err().to_string().contains("token"));
}
