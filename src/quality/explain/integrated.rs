//! Integrated gradients (Sundararajan, Taly and Yan 2017): where the line from a baseline to the text is
//! looked at, what is made of the model's outputs there, and whose share each token's is.

use std::ops::Range;

use super::words::Feature;
use crate::{
    config::Activation,
    quality::{calibration::Calibration, confidence::probabilities_of},
};

/// Points of the line where a request doesn't say.
pub const DEFAULT_POINTS: usize = 50;

/// The number that is explained, made of a model's outputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Objective {
    /// A label's logit.
    Logit(usize),
    /// A label's probability.
    Probability {
        /// Which.
        label: usize,
        /// How logits become probabilities.
        activation: Activation,
        /// What makes them those of being right, where that was fitted.
        calibration: Option<Calibration>,
    },
    /// The cosine with another vector.
    Cosine(Vec<f32>),
}

impl Objective {
    /// A label's probability, not calibrated.
    pub fn probability(label: usize, sigmoid: bool) -> Self {
        Self::Probability {
            label,
            activation: if sigmoid {
                Activation::Sigmoid
            } else {
                Activation::Softmax
            },
            calibration: None,
        }
    }

    /// Whether it changes smoothly with the outputs: a probability off a curve of steps doesn't.
    pub fn is_smooth(&self) -> bool {
        !matches!(
            self,
            Self::Probability {
                calibration: Some(Calibration::Isotonic { .. }),
                ..
            }
        )
    }

    /// Its value at some outputs.
    pub fn value(&self, outputs: &[f32]) -> f64 {
        match self {
            Self::Logit(label) => outputs.get(*label).copied().unwrap_or_default().into(),
            Self::Probability {
                label,
                activation,
                calibration,
            } => {
                let found = match calibration {
                    None => probabilities_of(&wide(outputs), *activation),
                    Some(calibration) => {
                        calibration.wide_probabilities(&wide(outputs), *activation)
                    }
                };
                found.get(*label).copied().unwrap_or_default()
            }
            Self::Cosine(other) => {
                let (outputs, other) = (wide(outputs), wide(other));
                let lengths = (dot(&outputs, &outputs) * dot(&other, &other)).sqrt();
                if lengths > 0.0 {
                    dot(&outputs, &other) / lengths
                } else {
                    0.0
                }
            }
        }
    }

    /// How it changes with each output; zero where it has no slope.
    pub fn slope(&self, outputs: &[f32]) -> Vec<f32> {
        let mut slope = vec![0.0; outputs.len()];
        match self {
            Self::Logit(label) => {
                if let Some(at) = slope.get_mut(*label) {
                    *at = 1.0;
                }
            }
            Self::Probability {
                label,
                activation,
                calibration,
            } => {
                let probability = self.value(outputs);
                // By how much the logit that the curve is of changes with the model's.
                let scale = match calibration {
                    None => 1.0,
                    Some(Calibration::Temperature { temperature }) => temperature.recip(),
                    Some(Calibration::Platt { curves }) => {
                        curves.get(*label).map_or(0.0, |curve| curve.slope)
                    }
                    Some(Calibration::Isotonic { .. }) => 0.0,
                };
                if *activation == Activation::Sigmoid {
                    if let Some(at) = slope.get_mut(*label) {
                        *at = scale * probability * (1.0 - probability);
                    }
                } else {
                    let logits: Vec<f64> = wide(outputs).iter().map(|x| x * scale).collect();
                    let all = probabilities_of(&logits, *activation);
                    for (at, (slope, other)) in slope.iter_mut().zip(&all).enumerate() {
                        let own = if at == *label { 1.0 } else { 0.0 };
                        *slope = scale * probability * (own - other);
                    }
                }
            }
            Self::Cosine(other) => {
                let (outputs, other) = (wide(outputs), wide(other));
                let (square, lengths) = (dot(&outputs, &outputs), {
                    (dot(&outputs, &outputs) * dot(&other, &other)).sqrt()
                });
                if lengths > 0.0 {
                    let cosine = dot(&outputs, &other) / lengths;
                    for (slope, (x, y)) in slope.iter_mut().zip(outputs.iter().zip(&other)) {
                        *slope = y / lengths - cosine * x / square;
                    }
                }
            }
        }
        slope.into_iter().map(|slope| slope as f32).collect()
    }
}

/// Where an integral from 0 to 1 is looked at, and what each place counts: the `count` points of Gauss
/// and Legendre, exact for polynomials up to degree `2·count − 1`. Newton's method finds the roots of
/// the Legendre polynomial (Press et al., Numerical Recipes, 4.6).
pub fn gauss_legendre(count: usize) -> Vec<(f64, f64)> {
    let n = count.max(1);
    let mut points = vec![(0.0, 0.0); n];
    for at in 0..n.div_ceil(2) {
        let mut x = (std::f64::consts::PI * (at as f64 + 0.75) / (n as f64 + 0.5)).cos();
        let mut derivative = 1.0;
        for _ in 0..100 {
            let (mut value, mut before) = (1.0, 0.0);
            for degree in 0..n {
                let degree = degree as f64;
                let next = ((2.0 * degree + 1.0) * x * value - degree * before) / (degree + 1.0);
                (before, value) = (value, next);
            }
            derivative = n as f64 * (x * value - before) / (x * x - 1.0);
            let step = value / derivative;
            x -= step;
            if step.abs() < 1e-15 {
                break;
            }
        }
        let weight = 1.0 / ((1.0 - x * x) * derivative * derivative);
        points[at] = ((1.0 - x) / 2.0, weight);
        points[n - 1 - at] = (f64::midpoint(1.0, x), weight);
    }
    points
}

/// Gives each token's share to the feature that it stands in most of: `tokens` are byte ranges of the
/// text. A token that stands in none (white space, to some tokenizers) is of the one before it.
pub fn gather(features: &[Feature], tokens: &[(Range<usize>, f64)]) -> Vec<f64> {
    let mut shares = vec![0.0; features.len()];
    for (token, share) in tokens {
        let common = |feature: &Feature| {
            let from = feature.range.start.max(token.start);
            feature.range.end.min(token.end).saturating_sub(from)
        };
        // The first that ends behind the token's beginning, and the one after it.
        let first = features.partition_point(|feature| feature.range.end <= token.start);
        let nearby = first..(first + 2).min(features.len());
        let best = nearby
            .rev()
            .max_by_key(|&at| common(&features[at]))
            .filter(|&at| common(&features[at]) > 0)
            .unwrap_or_else(|| first.saturating_sub(1));
        if let Some(of_feature) = shares.get_mut(best) {
            *of_feature += share;
        }
    }
    shares
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::{calibration::Sigmoid, explain::features};

    #[test]
    fn the_points_integrate_polynomials_of_twice_their_number_exactly() {
        for count in [1, 2, 5, 50, 1000] {
            let points = gauss_legendre(count);
            assert!(points.is_sorted_by(|a, b| a.0 < b.0));
            for power in [0, 1, (2 * count - 1).min(31)] {
                let sum: f64 = points
                    .iter()
                    .map(|(place, weight)| weight * place.powi(power as i32))
                    .sum();
                let expected = 1.0 / (power as f64 + 1.0);
                assert!((sum - expected).abs() < 1e-12, "{count} {power} {sum}");
            }
        }
    }

    #[test]
    fn slopes_are_what_differences_say() {
        let curve = |slope, intercept| Sigmoid { slope, intercept };
        let calibrated = |activation, calibration| Objective::Probability {
            label: 1,
            activation,
            calibration: Some(calibration),
        };
        let outputs = [0.3_f32, -0.8, 1.1];
        for objective in [
            Objective::Logit(2),
            Objective::probability(1, false),
            Objective::probability(1, true),
            calibrated(
                Activation::Softmax,
                Calibration::Temperature { temperature: 1.7 },
            ),
            calibrated(
                Activation::Sigmoid,
                Calibration::Platt {
                    curves: vec![curve(1.0, 0.0), curve(0.6, 0.2), curve(1.0, 0.0)],
                },
            ),
            Objective::Cosine(vec![0.5, 0.1, -0.9]),
        ] {
            assert!(objective.is_smooth());
            let slope = objective.slope(&outputs);
            for at in 0..outputs.len() {
                let moved = |by: f32| {
                    let mut outputs = outputs;
                    outputs[at] += by;
                    objective.value(&outputs)
                };
                let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                let off = (f64::from(slope[at]) - difference).abs();
                assert!(off < 1e-4, "{objective:?} {at}: {} {difference}", slope[at]);
            }
        }
    }

    #[test]
    fn a_word_has_the_shares_of_its_tokens_and_none_is_lost() {
        let text = "re-open  the files";
        let features = features(text, 9);
        // As a tokenizer may cut it: white space before a word is the word's, or a token by itself.
        let tokens = [
            (0..2, 1.0),
            (2..3, 2.0),
            (3..7, 4.0),
            (7..8, 8.0),
            (8..12, 16.0),
            (12..15, 32.0),
            (15..18, 64.0),
        ];
        assert_eq!(gather(&features, &tokens), [15.0, 16.0, 96.0]);
        assert!(gather(&[], &tokens).is_empty());
    }
}
