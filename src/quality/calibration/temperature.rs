//! Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017): the one
//! number that logits are divided by so that the labels that hold become most likely.
//!
//! With β = 1/T the mean of −ln p is convex, so its minimum is where its derivative crosses 0:
//! softmax `Σ (E_p[z] − z_true)`, sigmoid `Σ (σ(βz) − y) z`. Bisection finds it.

use super::Labelled;
use crate::{config::Activation, quality::confidence::probabilities_of};

/// What a temperature may be: of rows that are all right (or all wrong) the best is none.
const RANGE: (f64, f64) = (0.05, 20.0);

/// The temperature under which the labels that hold are most likely.
pub(super) fn fit(rows: &[Labelled], activation: Activation) -> f64 {
    let (mut low, mut high) = (RANGE.1.recip().ln(), RANGE.0.recip().ln());
    // Down to a step of 6 / 2⁶⁰ in ln β.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if slope(rows, activation, middle.exp()) > 0.0 {
            high = middle;
        } else {
            low = middle;
        }
    }
    (-f64::midpoint(low, high)).exp()
}

/// The derivative of the rows' −ln p by β.
fn slope(rows: &[Labelled], activation: Activation, beta: f64) -> f64 {
    let of_row = |row: &Labelled| {
        let scaled: Vec<f64> = row.logits.iter().map(|&z| f64::from(z) * beta).collect();
        let likely = probabilities_of(&scaled, activation);
        let terms = row.logits.iter().zip(&likely).zip(&row.truth);
        terms
            .map(|((&logit, p), &holds)| (p - f64::from(u8::from(holds))) * f64::from(logit))
            .sum::<f64>()
    };
    rows.iter().map(of_row).sum()
}
