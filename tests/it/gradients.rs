//! Gradients against captum's on transformers' models; `tests/golden/make_gradients.py` wrote them.

use std::path::PathBuf;

use ferry::{
    models::{DifferentiableEncoder, Head, Line},
    ops::Pooling,
    quality::explain::{Objective, gauss_legendre},
};
use serde_json::Value;

use super::support::root;

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// The head of a fixture, as its files say.
fn head_of(name: &str) -> Head {
    match name {
        _ if name.ends_with("rerank") => Head::PairScore,
        _ if name.ends_with("embed") => Head::Embed {
            pooling: if name.contains("xlm") {
                Pooling::Cls
            } else {
                Pooling::Mean
            },
            normalize: true,
            dimension: None,
        },
        _ => Head::SequenceClass,
    }
}

/// What a case explains; the other text of a similarity has no segments.
fn objective(name: &str, target: &Value, model: &DifferentiableEncoder) -> Objective {
    if let Some(label) = target["logit"].as_u64() {
        return Objective::Logit(label as usize);
    }
    if let Some(label) = target["probability"].as_u64() {
        let sigmoid = name.ends_with("multilabel") || name.ends_with("rerank");
        return Objective::probability(label as usize, sigmoid);
    }
    let other = ids(&target["cosine"]);
    let line = Line {
        ids: &other,
        type_ids: &vec![0; other.len()],
        baseline: &other,
    };
    Objective::Cosine(model.outputs(&line, &[1.0]).unwrap().remove(0))
}

#[test]
fn integrated_gradients_are_captums() {
    let golden = std::fs::read_to_string(root().join("tests/golden/gradients.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let points = gauss_legendre(golden["steps"].as_u64().unwrap() as usize);
    let places: Vec<f64> = points.iter().map(|point| point.0).collect();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["model"].as_str().unwrap();
        let model = DifferentiableEncoder::load(&fixture(name), &head_of(name)).unwrap();
        let target = &case["target"];
        let objective = objective(name, target, &model);
        let line = Line {
            ids: &ids(&case["ids"]),
            type_ids: &ids(&case["type_ids"]),
            baseline: &ids(&case["baseline"]),
        };
        let ends = model.outputs(&line, &[0.0, 1.0]).unwrap();
        for (key, outputs) in [("base", &ends[0]), ("value", &ends[1])] {
            let found = objective.value(outputs);
            let expected = case[key].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-4, "{name} {key} {found}");
        }
        let slope = |outputs: &[f32]| objective.slope(outputs);
        let shares = model.shares(&line, &places, &slope).unwrap();
        for (token, expected) in case["shares"].as_array().unwrap().iter().enumerate() {
            let found: f64 = points
                .iter()
                .zip(&shares)
                .map(|((_, weight), shares)| weight * f64::from(shares[token]))
                .sum();
            let off = (found - expected.as_f64().unwrap()).abs();
            assert!(off < 2e-4, "{name} {target} token {token}: {off}");
        }
    }
}
