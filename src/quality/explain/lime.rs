//! LIME for texts, as the Python `lime` package draws, weighs and fits (`LimeTextExplainer` with all
//! words as features): subsets with a random number of words left out, weighed by
//! `sqrt(exp(−d² / 25²))` of the cosine distance `d` (times 100) to the whole text, and a ridge
//! regression of strength 1.

use super::{Mask, least_squares::solve_weighted};
use crate::quality::draws::Draws;

const KERNEL_WIDTH: f64 = 25.0;
const RIDGE: f64 = 1.0;

/// Draws `samples` subsets, the first of them the whole text.
pub(super) fn draw(features: usize, samples: usize, draws: &mut Draws) -> Vec<Mask> {
    let mut order: Vec<usize> = (0..features).collect();
    let mut masks = vec![vec![true; features]];
    while masks.len() < samples {
        let out = 1 + draws.below(features as u64) as usize;
        draws.shuffle(&mut order);
        let mut mask = vec![true; features];
        for &word in &order[..out] {
            mask[word] = false;
        }
        masks.push(mask);
    }
    masks
}

/// How much a subset counts.
pub(super) fn weight(mask: &[bool]) -> f64 {
    let left = mask.iter().filter(|here| **here).count();
    // The cosine of a vector of ones and zeros with that of ones; of none at all, 0.
    let cosine = (left as f64 / mask.len().max(1) as f64).sqrt();
    let distance = (1.0 - cosine) * 100.0;
    (-distance.powi(2) / KERNEL_WIDTH.powi(2)).exp().sqrt()
}

/// Intercept and shares of the line through the answers.
pub(super) fn fit(masks: &[Mask], weights: &[f64], answers: &[f64], value: f64) -> (f64, Vec<f64>) {
    let Some(width) = masks.first().map(Vec::len) else {
        return (value, Vec::new());
    };
    let total: f64 = weights.iter().sum();
    let number = |here: bool| f64::from(u8::from(here));
    let mean = |of: &dyn Fn(usize) -> f64| -> f64 {
        let terms = weights
            .iter()
            .enumerate()
            .map(|(row, weight)| weight * of(row));
        terms.sum::<f64>() / total
    };
    let means: Vec<f64> = (0..width)
        .map(|word| mean(&|row| number(masks[row][word])))
        .collect();
    let middle = mean(&|row| answers[row]);
    let rows: Vec<Vec<f64>> = masks
        .iter()
        .map(|mask| {
            let of_words = mask.iter().zip(&means);
            of_words.map(|(&here, mean)| number(here) - mean).collect()
        })
        .collect();
    let targets: Vec<f64> = answers.iter().map(|answer| answer - middle).collect();
    let shares = solve_weighted(&rows, weights, &targets, RIDGE);
    let at_means: f64 = shares
        .iter()
        .zip(&means)
        .map(|(share, mean)| share * mean)
        .sum();
    (middle - at_means, shares)
}
