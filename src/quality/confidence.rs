//! Probabilities of a classifier's logits, the best label and how clearly it won.

use crate::config::Activation;

/// A classifier's answer for one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Classified {
    /// Probability of each label, in the model's order.
    pub probabilities: Vec<f32>,
    /// Indices of the labels, best first; equal ones in the model's order.
    pub ranking: Vec<usize>,
    /// Probability of the best label.
    pub confidence: f32,
    /// Probability of the best less that of the second; the confidence itself when there is only
    /// one label.
    pub margin: f32,
}

/// Turns one row's logits `[labels]` into probabilities and ranks them. An empty row has confidence
/// 0.
pub fn classify(logits: &[f32], activation: Activation) -> Classified {
    Classified::of(match activation {
        Activation::Softmax => softmax(logits),
        Activation::Sigmoid => logits.iter().map(|&logit| sigmoid(logit)).collect(),
    })
}

impl Classified {
    /// Ranks the labels by their probabilities. None at all have confidence 0.
    pub fn of(probabilities: Vec<f32>) -> Self {
        let mut ranking: Vec<usize> = (0..probabilities.len()).collect();
        ranking.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        let probability = |place: usize| {
            ranking
                .get(place)
                .map_or(0.0, |&label| probabilities[label])
        };
        Self {
            confidence: probability(0),
            margin: probability(0) - probability(1),
            ranking,
            probabilities,
        }
    }
}

/// The best label of one token's logits and its softmax probability; `(0, 0)` for no logits.
pub fn top_probability(logits: &[f32]) -> (usize, f32) {
    softmax(logits)
        .into_iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
        .unwrap_or((0, 0.0))
}

/// `1 / (1 + exp(-x))`, without overflow for any finite `x`.
pub fn sigmoid(x: f32) -> f32 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// [`sigmoid`] in double precision.
pub(super) fn wide_sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// The probabilities of logits, in double precision.
pub(super) fn probabilities_of(logits: &[f64], activation: Activation) -> Vec<f64> {
    match activation {
        Activation::Sigmoid => logits.iter().map(|&logit| wide_sigmoid(logit)).collect(),
        Activation::Softmax => {
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = logits.iter().map(|logit| (logit - max).exp()).collect();
            let sum: f64 = powers.iter().sum();
            powers.into_iter().map(|power| power / sum).collect()
        }
    }
}

/// `ln(p / (1 - p))` of each label's probability, which the logits tell even where the probability
/// is too close to 1 for a number. A softmax over one label has none, and gives infinity.
pub(super) fn log_odds(logits: &[f64], activation: Activation) -> Vec<f64> {
    if activation == Activation::Sigmoid {
        return logits.to_vec();
    }
    let others = |label: usize| {
        let rest = || {
            let all = logits.iter().enumerate();
            all.filter(move |(at, _)| *at != label)
                .map(|(_, &logit)| logit)
        };
        let max = rest().fold(f64::NEG_INFINITY, f64::max);
        max + rest().map(|logit| (logit - max).exp()).sum::<f64>().ln()
    };
    let odds = logits.iter().enumerate();
    odds.map(|(label, logit)| logit - others(label)).collect()
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut values: Vec<f32> = logits.iter().map(|&logit| (logit - max).exp()).collect();
    let sum: f32 = values.iter().sum();
    for value in &mut values {
        *value /= sum;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_and_keeps_the_order_for_huge_logits() {
        let answer = classify(&[1000.0, 999.0, -1000.0], Activation::Softmax);
        assert!((answer.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(answer.ranking, [0, 1, 2]);
        assert!((answer.confidence - 0.731_058_6).abs() < 1e-6);
        assert!((answer.margin - 0.462_117_2).abs() < 1e-6);
    }

    #[test]
    fn sigmoid_labels_stand_alone() {
        let answer = classify(&[0.0, 100.0, -100.0], Activation::Sigmoid);
        assert_eq!(answer.ranking, [1, 0, 2]);
        assert!((answer.probabilities[0] - 0.5).abs() < f32::EPSILON);
        assert!(answer.probabilities.iter().all(|p| (0.0..=1.0).contains(p)));
    }

    #[test]
    fn one_label_has_its_own_probability_as_margin() {
        let answer = classify(&[2.0], Activation::Sigmoid);
        assert!((answer.margin - answer.confidence).abs() < f32::EPSILON);
    }

    #[test]
    fn no_labels_are_no_panic() {
        assert!(classify(&[], Activation::Softmax).confidence.abs() < f32::EPSILON);
        assert_eq!(top_probability(&[]).0, 0);
    }
}
