//! Classifiers: the labels they choose, and how far their probabilities are apart.

use serde::Serialize;

use super::{Distribution, Quantiles, jensen_shannon, kullback_leibler};
use crate::config::Activation;

/// Of models with more labels than this no confusion matrix is kept.
const CONFUSION_LABELS: usize = 64;

/// A label of a multi-label classifier holds from this probability on.
const HOLDS: f32 = 0.5;

/// Two classifiers' probabilities of the same texts, labels in the same order.
#[derive(Debug, Clone)]
pub struct ClassComparison {
    activation: Activation,
    n: u64,
    same_label: u64,
    js: Distribution,
    kl: Distribution,
    difference: Distribution,
    confidence_shift: Distribution,
    /// `[reference's best, candidate's best]`, row by row; empty until the first text.
    confusion: Vec<u64>,
    labels: usize,
    incomparable: u64,
}

/// What both sides' answers have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassFigures {
    /// Share of texts of the same label; of a multi-label classifier, of the same set of labels that
    /// hold (0.5 and more).
    pub label_agreement: Option<f64>,
    /// Jensen-Shannon divergence of the probabilities, in bits: 0 to 1. Of a multi-label classifier,
    /// the mean over the labels.
    pub js: Option<Quantiles>,
    /// Kullback-Leibler divergence of the candidate's probabilities from the reference's, in nats.
    pub kl: Option<Quantiles>,
    /// The largest difference of a text's probabilities.
    pub max_difference: Option<Quantiles>,
    /// Candidate's confidence less the reference's.
    pub confidence_shift: Option<Quantiles>,
    /// Counts `[reference's best label][candidate's best label]`; empty with more than 64 labels.
    pub confusion: Vec<Vec<u64>>,
    /// Texts of which the sides have different numbers of labels, none, or what is no probability.
    pub incomparable: u64,
}

impl ClassComparison {
    /// A comparison of models whose logits become probabilities by `activation`.
    pub fn new(activation: Activation) -> Self {
        Self {
            activation,
            n: 0,
            same_label: 0,
            js: Distribution::default(),
            kl: Distribution::default(),
            difference: Distribution::default(),
            confidence_shift: Distribution::default(),
            confusion: Vec::new(),
            labels: 0,
            incomparable: 0,
        }
    }

    /// Takes both sides' probabilities of a text in.
    pub fn observe(&mut self, reference: &[f32], candidate: &[f32]) {
        let (Some(ours), Some(theirs)) = (best(reference), best(candidate)) else {
            self.incomparable += 1;
            return;
        };
        let fits = self.labels == 0 || self.labels == reference.len();
        if reference.len() != candidate.len() || !fits {
            self.incomparable += 1;
            return;
        }
        self.labels = reference.len();
        self.n += 1;
        let same = match self.activation {
            Activation::Softmax => ours == theirs,
            Activation::Sigmoid => reference
                .iter()
                .zip(candidate)
                .all(|(p, q)| (*p >= HOLDS) == (*q >= HOLDS)),
        };
        self.same_label += u64::from(same);
        let (js, kl) = self.divergences(reference, candidate);
        self.js.observe(js);
        self.kl.observe(kl);
        let difference = reference
            .iter()
            .zip(candidate)
            .map(|(p, q)| (f64::from(*p) - f64::from(*q)).abs())
            .fold(0.0, f64::max);
        self.difference.observe(difference);
        let shift = f64::from(candidate[theirs]) - f64::from(reference[ours]);
        self.confidence_shift.observe(shift);
        if self.labels <= CONFUSION_LABELS {
            self.confusion.resize(self.labels * self.labels, 0);
            self.confusion[ours * self.labels + theirs] += 1;
        }
    }

    /// Takes another comparison of the same models in.
    pub fn merge(&mut self, other: Self) {
        if self.labels != 0 && other.labels != 0 && self.labels != other.labels {
            self.incomparable += other.n + other.incomparable;
            return;
        }
        self.labels = self.labels.max(other.labels);
        self.n += other.n;
        self.same_label += other.same_label;
        self.incomparable += other.incomparable;
        self.js.merge(other.js);
        self.kl.merge(other.kl);
        self.difference.merge(other.difference);
        self.confidence_shift.merge(other.confidence_shift);
        if self.confusion.is_empty() {
            self.confusion = other.confusion;
        } else {
            for (mine, theirs) in self.confusion.iter_mut().zip(other.confusion) {
                *mine += theirs;
            }
        }
    }

    /// The Jensen-Shannon divergences seen, a uniform sample where there were more than 4096.
    pub fn divergences_seen(&self) -> &[f64] {
        self.js.sample()
    }

    /// Share of texts of the same label.
    pub(super) fn agreement(&self) -> Option<f64> {
        (self.n > 0).then(|| self.same_label as f64 / self.n as f64)
    }

    /// What was seen so far.
    pub fn figures(&self) -> ClassFigures {
        ClassFigures {
            label_agreement: self.agreement(),
            js: self.js.quantiles(),
            kl: self.kl.quantiles(),
            max_difference: self.difference.quantiles(),
            confidence_shift: self.confidence_shift.quantiles(),
            confusion: self
                .confusion
                .chunks(self.labels.max(1))
                .map(<[u64]>::to_vec)
                .collect(),
            incomparable: self.incomparable,
        }
    }

    fn divergences(&self, reference: &[f32], candidate: &[f32]) -> (f64, f64) {
        let wide = |side: &[f32]| side.iter().map(|p| f64::from(*p)).collect::<Vec<f64>>();
        let (p, q) = (wide(reference), wide(candidate));
        if self.activation == Activation::Softmax {
            return (jensen_shannon(&p, &q), kullback_leibler(&p, &q));
        }
        // Each label holds or not, on its own: a distribution over two.
        let pairs = || {
            p.iter()
                .zip(&q)
                .map(|(p, q)| ([*p, 1.0 - p], [*q, 1.0 - q]))
        };
        let js: f64 = pairs().map(|(p, q)| jensen_shannon(&p, &q)).sum();
        let kl: f64 = pairs().map(|(p, q)| kullback_leibler(&p, &q)).sum();
        let labels = p.len() as f64;
        (js / labels, kl / labels)
    }
}

/// The most likely label, the first of equal ones; `None` where there is none or one is no
/// probability.
fn best(probabilities: &[f32]) -> Option<usize> {
    if !probabilities.iter().all(|p| (0.0..=1.0).contains(p)) {
        return None;
    }
    (0..probabilities.len()).reduce(|best, label| {
        if probabilities[label] > probabilities[best] {
            label
        } else {
            best
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_confidences_are_compared_text_by_text() {
        let mut comparison = ClassComparison::new(Activation::Softmax);
        comparison.observe(&[0.9, 0.1], &[0.8, 0.2]);
        comparison.observe(&[0.6, 0.4], &[0.3, 0.7]);
        let figures = comparison.figures();
        assert_eq!(figures.label_agreement, Some(0.5));
        assert_eq!(figures.confusion, [[1, 1], [0, 0]]);
        assert!((figures.max_difference.unwrap().max - 0.3).abs() < 1e-6);
        assert!(figures.confidence_shift.unwrap().mean.abs() < 1e-6);
    }

    #[test]
    fn labels_of_a_multi_label_classifier_stand_alone() {
        let mut comparison = ClassComparison::new(Activation::Sigmoid);
        // The best label is the same, what else holds is not.
        comparison.observe(&[0.9, 0.6], &[0.9, 0.4]);
        comparison.observe(&[0.1, 0.2], &[0.2, 0.1]);
        assert_eq!(comparison.agreement(), Some(0.5));
        assert!(comparison.figures().js.unwrap().max < 0.1);
    }

    #[test]
    fn what_is_no_probability_or_of_other_labels_is_counted_and_spoils_nothing() {
        let mut comparison = ClassComparison::new(Activation::Softmax);
        comparison.observe(&[0.5, 0.5], &[f32::NAN, 0.5]);
        comparison.observe(&[], &[]);
        comparison.observe(&[1.0], &[0.5, 0.5]);
        assert_eq!(comparison.figures().incomparable, 3);
        assert_eq!(comparison.agreement(), None);
    }

    #[test]
    fn merged_comparisons_are_as_one() {
        let rows = [([0.9, 0.1], [0.7, 0.3]), ([0.2, 0.8], [0.6, 0.4])];
        let mut whole = ClassComparison::new(Activation::Softmax);
        let mut merged = ClassComparison::new(Activation::Softmax);
        for (p, q) in rows {
            whole.observe(&p, &q);
            let mut part = ClassComparison::new(Activation::Softmax);
            part.observe(&p, &q);
            merged.merge(part);
        }
        assert_eq!(merged.figures().confusion, whole.figures().confusion);
        assert_eq!(merged.agreement(), whole.agreement());
    }
}
