//! The fits and the figures against scipy and scikit-learn; `tests/golden/make_calibration.py` wrote
//! what they say.

use serde_json::Value;

use super::{Calibration, Labelled, Method, Sigmoid, Steps, fit, measure};
use crate::config::Activation;

fn golden() -> Value {
    let text = include_str!("../../../tests/golden/calibration.json");
    serde_json::from_str(text).unwrap()
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
fn temperatures_and_figures_of_classes_are_scipys_and_scikit_learns() {
    let golden = golden();
    let bins = golden["bins"].as_u64().unwrap() as usize;
    for case in golden["softmax"].as_array().unwrap() {
        let truth = numbers(&case["truth"]);
        let rows: Vec<Labelled> = case["logits"]
            .as_array()
            .unwrap()
            .iter()
            .zip(truth)
            .map(|(logits, truth)| {
                let logits: Vec<f32> = numbers(logits).iter().map(|&z| z as f32).collect();
                Labelled {
                    truth: (0..logits.len()).map(|at| at == truth as usize).collect(),
                    logits,
                }
            })
            .collect();
        let softmax = Activation::Softmax;
        let calibration = fit(&rows, softmax, Method::Temperature).unwrap();
        let Calibration::Temperature { temperature } = calibration else {
            panic!("{calibration:?}");
        };
        // scipy's search ends where the loss is flat to its precision.
        is_close(temperature, &case["temperature"], 1e-5, "temperature");
        let before = measure(&rows, softmax, None, bins);
        let after = measure(&rows, softmax, Some(&calibration), bins);
        is_close(before.nll, &case["nll_before"], 1e-9, "nll before");
        is_close(after.nll, &case["nll_after"], 1e-9, "nll after");
        is_close(before.ece, &case["ece"], 1e-9, "ece");
        is_close(before.brier, &case["brier"], 1e-9, "brier");
        is_close(before.accuracy, &case["accuracy"], 1e-12, "accuracy");
    }
}

#[test]
fn curves_of_one_label_are_scikit_learns() {
    let golden = golden();
    let bins = golden["bins"].as_u64().unwrap() as usize;
    for case in golden["sigmoid"].as_array().unwrap() {
        let points: Vec<(f64, bool)> = numbers(&case["logits"])
            .into_iter()
            .zip(numbers(&case["truth"]))
            .map(|(logit, truth)| (logit, truth > 0.5))
            .collect();
        let platt = Sigmoid::fit(&points);
        is_close(platt.slope, &case["platt"]["slope"], 1e-4, "slope");
        let intercept = &case["platt"]["intercept"];
        is_close(platt.intercept, intercept, 1e-4, "intercept");

        let steps = Steps::fit(&points);
        let margin = 1.0 / (points.len() as f64 + 2.0);
        let places = numbers(&case["places"]);
        for (place, expected) in places.into_iter().zip(numbers(&case["isotonic"])) {
            let found = steps.at(place);
            // Ours keeps away from 0 and 1, and so do the slopes to the steps there.
            let free = (0.15..0.85).contains(&expected);
            let within = if free { 1e-6 } else { margin };
            assert!(
                (found - expected).abs() <= within + 1e-9,
                "{place}: {found} {expected}"
            );
        }

        let rows: Vec<Labelled> = points
            .iter()
            .map(|&(logit, holds)| Labelled {
                logits: vec![logit as f32],
                truth: vec![holds],
            })
            .collect();
        let found = measure(&rows, Activation::Sigmoid, None, bins);
        is_close(found.nll, &case["nll"], 1e-9, "nll");
        is_close(found.brier, &case["brier"], 1e-9, "brier");
        is_close(found.ece, &case["ece"], 1e-9, "ece");
    }
}
