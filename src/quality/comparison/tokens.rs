//! Token classes: whether both sides find the same spans, and the same label of each token.

use std::collections::HashMap;

use serde::Serialize;

use super::{Distribution, Quantiles};
use crate::quality::LabelledSpan;

/// Two models' spans, and where they are at hand labels of the tokens, of the same texts.
#[derive(Debug, Clone, Default)]
pub struct TokenComparison {
    texts: u64,
    same_spans: u64,
    shared: u64,
    reference_spans: u64,
    candidate_spans: u64,
    tokens: u64,
    same_labels: u64,
    confidence_shift: Distribution,
    incomparable: u64,
}

/// What both sides' spans have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenFigures {
    /// F1 of the candidate's spans, those of the reference being right: a span is found when start, end
    /// and label are the same. 1 where neither side has any.
    pub span_f1: Option<f64>,
    /// Share of the candidate's spans that the reference has.
    pub span_precision: Option<f64>,
    /// Share of the reference's spans that the candidate has.
    pub span_recall: Option<f64>,
    /// Spans of the reference.
    pub reference_spans: u64,
    /// Spans of the candidate.
    pub candidate_spans: u64,
    /// Share of texts with exactly the same spans.
    pub same_spans: Option<f64>,
    /// Share of tokens of the same label, where labels of tokens were seen.
    pub label_agreement: Option<f64>,
    /// Candidate's confidence less the reference's, over the spans that both have.
    pub confidence_shift: Option<Quantiles>,
    /// Texts of which the sides have different numbers of tokens.
    pub incomparable: u64,
}

impl TokenComparison {
    /// Takes both sides' spans of a text in.
    pub fn observe_spans(&mut self, reference: &[LabelledSpan], candidate: &[LabelledSpan]) {
        self.texts += 1;
        self.reference_spans += reference.len() as u64;
        self.candidate_spans += candidate.len() as u64;
        let key = |span: &LabelledSpan| (span.start, span.end, span.label.clone());
        let ours: HashMap<_, _> = reference
            .iter()
            .map(|span| (key(span), span.confidence))
            .collect();
        let mut shared = 0;
        for span in candidate {
            if let Some(confidence) = ours.get(&key(span)) {
                shared += 1;
                let shift = f64::from(span.confidence) - f64::from(*confidence);
                self.confidence_shift.observe(shift);
            }
        }
        self.shared += shared;
        let same = shared == reference.len() as u64 && shared == candidate.len() as u64;
        self.same_spans += u64::from(same);
    }

    /// Takes the best label of each of a text's tokens in.
    pub fn observe_labels(&mut self, reference: &[usize], candidate: &[usize]) {
        if reference.len() != candidate.len() {
            self.incomparable += 1;
            return;
        }
        self.tokens += reference.len() as u64;
        let same = reference.iter().zip(candidate).filter(|(a, b)| a == b);
        self.same_labels += same.count() as u64;
    }

    /// Takes another comparison in.
    pub fn merge(&mut self, other: Self) {
        self.texts += other.texts;
        self.same_spans += other.same_spans;
        self.shared += other.shared;
        self.reference_spans += other.reference_spans;
        self.candidate_spans += other.candidate_spans;
        self.tokens += other.tokens;
        self.same_labels += other.same_labels;
        self.confidence_shift.merge(other.confidence_shift);
        self.incomparable += other.incomparable;
    }

    /// F1 of the candidate's spans.
    pub(super) fn agreement(&self) -> Option<f64> {
        if self.texts == 0 {
            return None;
        }
        let spans = self.reference_spans + self.candidate_spans;
        Some(share(2 * self.shared, spans).unwrap_or(1.0))
    }

    /// What was seen so far.
    pub fn figures(&self) -> TokenFigures {
        TokenFigures {
            span_f1: self.agreement(),
            span_precision: share(self.shared, self.candidate_spans),
            span_recall: share(self.shared, self.reference_spans),
            reference_spans: self.reference_spans,
            candidate_spans: self.candidate_spans,
            same_spans: share(self.same_spans, self.texts),
            label_agreement: share(self.same_labels, self.tokens),
            confidence_shift: self.confidence_shift.quantiles(),
            incomparable: self.incomparable,
        }
    }
}

fn share(of: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| of as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(label: &str, start: usize, end: usize, confidence: f32) -> LabelledSpan {
        LabelledSpan {
            label: label.to_owned(),
            start,
            end,
            confidence,
        }
    }

    #[test]
    fn a_span_is_found_when_its_ends_and_label_are_the_same() {
        let mut comparison = TokenComparison::default();
        comparison.observe_spans(
            &[span("PER", 0, 3, 0.9), span("LOC", 5, 9, 0.8)],
            &[
                span("PER", 0, 3, 0.7),
                span("ORG", 5, 9, 0.8),
                span("LOC", 12, 14, 0.5),
            ],
        );
        comparison.observe_spans(&[], &[]);
        comparison.observe_labels(&[0, 1, 2, 0], &[0, 1, 0, 0]);
        let figures = comparison.figures();
        assert!((figures.span_f1.unwrap() - 0.4).abs() < 1e-12);
        assert!((figures.span_precision.unwrap() - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(figures.span_recall, Some(0.5));
        assert_eq!(figures.same_spans, Some(0.5));
        assert_eq!(figures.label_agreement, Some(0.75));
        assert!((figures.confidence_shift.unwrap().mean + 0.2).abs() < 1e-6);
    }

    #[test]
    fn where_neither_side_finds_anything_they_agree() {
        let mut comparison = TokenComparison::default();
        assert_eq!(comparison.agreement(), None);
        comparison.observe_spans(&[], &[]);
        assert_eq!(comparison.agreement(), Some(1.0));
    }
}
