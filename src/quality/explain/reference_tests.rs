//! Shares against Shapley's formula, the Python `shap` and `lime` packages and scikit-learn;
//! `tests/golden/make_explain.py` wrote what they say.

use serde_json::Value;

use super::{Explainer, Mask, Plan, kernel_shap, lime};

fn golden(part: &str) -> Vec<Value> {
    let text = include_str!("../../../tests/golden/explain.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    golden[part].as_array().unwrap().clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().unwrap();
    values.iter().map(|x| x.as_f64().unwrap()).collect()
}

fn masks(value: &Value) -> Vec<Mask> {
    let rows = value.as_array().unwrap();
    rows.iter()
        .map(|row| numbers(row).iter().map(|&here| here > 0.5).collect())
        .collect()
}

fn are_close(found: &[f64], expected: &Value, within: f64) {
    let expected = numbers(expected);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < within, "{found} {expected}");
    }
}

#[test]
fn with_every_subset_shares_are_shapleys_and_shaps() {
    for case in golden("games") {
        // The answer to a subset stands at the number whose bits are its words.
        let answers = numbers(&case["answers"]);
        let words = answers.len().ilog2() as usize;
        let play = |mask: &Mask| {
            let bits = mask.iter().enumerate();
            answers[bits
                .map(|(at, &here)| usize::from(here) << at)
                .sum::<usize>()]
        };
        let plan = Plan::new(Explainer::KernelShap, words, 0, 1).unwrap();
        let found = plan.attribute(&plan.masks().iter().map(play).collect::<Vec<_>>());
        assert!(found.exact);
        are_close(&found.shares, &case["shapley"], 1e-9);
        are_close(&found.shares, &case["shap"], 1e-7);
    }
}

#[test]
fn the_line_through_weighted_subsets_is_numpys() {
    for case in golden("constrained") {
        let masks = masks(&case["masks"]);
        let ends = numbers(&case["ends"]);
        let found = kernel_shap::solve(
            masks[0].len(),
            &masks,
            &numbers(&case["weights"]),
            &numbers(&case["answers"]),
            (ends[0], ends[1]),
        );
        are_close(&found, &case["shares"], 1e-8);
    }
}

#[test]
fn limes_weights_and_ridge_are_those_of_its_package_and_of_scikit_learn() {
    for case in golden("ridge") {
        let masks = masks(&case["masks"]);
        let weights: Vec<f64> = masks.iter().map(|mask| lime::weight(mask)).collect();
        are_close(&weights, &case["weights"], 1e-12);
        let (base, shares) = lime::fit(&masks, &weights, &numbers(&case["answers"]), 0.0);
        are_close(&[base], &case["intercept"], 1e-9);
        are_close(&shares, &case["shares"], 1e-9);
    }
}
