//! The statistics against numpy and scipy; `tests/golden/make_comparison.py` wrote what they say.

use serde_json::Value;

use super::{
    Distribution, EmbeddingComparison, GenerationComparison, GivenToken, jensen_shannon, kendall,
    kullback_leibler, spearman,
};

fn golden(part: &str) -> Vec<Value> {
    let text = include_str!("../../../tests/golden/comparison.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    golden[part].as_array().unwrap().clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().unwrap();
    values.iter().map(|x| x.as_f64().unwrap()).collect()
}

fn is_close(found: f64, expected: &Value, within: f64, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (found - expected).abs() <= within,
        "{what}: found {found}, expected {expected}"
    );
}

#[test]
fn rank_correlations_are_scipys() {
    for case in golden("correlations") {
        let (a, b) = (numbers(&case["a"]), numbers(&case["b"]));
        let found = spearman(&a, &b).unwrap();
        is_close(found, &case["spearman"], 1e-12, "spearman");
        is_close(kendall(&a, &b).unwrap(), &case["kendall"], 1e-12, "kendall");
    }
}

#[test]
fn divergences_are_scipys() {
    for case in golden("divergences") {
        let (p, q) = (numbers(&case["p"]), numbers(&case["q"]));
        is_close(kullback_leibler(&p, &q), &case["kl"], 1e-10, "kl");
        is_close(jensen_shannon(&p, &q), &case["js_bits"], 1e-10, "js");
    }
}

#[test]
fn quantiles_are_numpys() {
    for case in golden("quantiles") {
        let mut stream = Distribution::default();
        for value in numbers(&case["values"]) {
            stream.observe(value);
        }
        let found = stream.quantiles().unwrap();
        for (figure, name) in [
            (found.mean, "mean"),
            (found.deviation, "deviation"),
            (found.p1, "p1"),
            (found.p5, "p5"),
            (found.p50, "p50"),
            (found.p95, "p95"),
            (found.p99, "p99"),
        ] {
            is_close(figure, &case[name], 1e-10, name);
        }
    }
}

#[test]
fn figures_of_embeddings_are_scipys() {
    let vectors = |side: &Value| -> Vec<Vec<f32>> {
        let rows = side.as_array().unwrap().iter();
        rows.map(|row| numbers(row).into_iter().map(|x| x as f32).collect())
            .collect()
    };
    for case in golden("embeddings") {
        let mut comparison = EmbeddingComparison::default();
        let reference = vectors(&case["reference"]);
        for (ours, theirs) in reference.iter().zip(vectors(&case["candidate"])) {
            comparison.observe(ours, &theirs);
        }
        let found = comparison.figures();
        let cosine = found.cosine.unwrap();
        is_close(cosine.mean, &case["mean_cosine"], 1e-9, "mean cosine");
        is_close(cosine.p5, &case["cosine_p5"], 1e-9, "p5");
        let spearman = found.spearman.unwrap();
        is_close(spearman, &case["spearman"], 1e-9, "spearman");
        is_close(found.kendall.unwrap(), &case["kendall"], 1e-9, "kendall");
        let overlap = found.neighbour_overlap.unwrap();
        is_close(overlap, &case["neighbour_overlap"], 1e-9, "overlap");
    }
}

#[test]
fn the_divergence_of_named_tokens_is_scipys_and_no_more_than_the_whole() {
    let named = |side: &Value| -> Vec<(u32, f32)> {
        let tokens = side.as_array().unwrap().iter();
        tokens
            .map(|token| {
                (
                    token[0].as_u64().unwrap() as u32,
                    token[1].as_f64().unwrap() as f32,
                )
            })
            .collect()
    };
    for case in golden("named") {
        let (ours, theirs) = (named(&case["reference"]), named(&case["candidate"]));
        let token = |top| GivenToken { logprob: -1.0, top };
        let mut comparison = GenerationComparison::default();
        comparison.observe_given(1, &[token(&ours)], &[token(&theirs)]);
        let found = comparison.figures().kl.unwrap().mean;
        is_close(found, &case["kl"], 1e-5, "kl of named tokens");
        assert!(found <= case["whole_kl"].as_f64().unwrap() + 1e-5);
    }
}
