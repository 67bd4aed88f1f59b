//! Rerank: whether a query's documents come in the same order.

use serde::Serialize;

use super::{Distribution, Quantiles, Reservoir, kendall, spearman};

/// Pairs of scores kept for a picture.
const KEPT_PAIRS: usize = 4096;

/// Two models' scores of the same documents for the same queries.
#[derive(Debug, Clone)]
pub struct ScoreComparison {
    queries: u64,
    documents: u64,
    same_best: u64,
    spearman: Distribution,
    kendall: Distribution,
    difference: Distribution,
    pairs: Reservoir<(f64, f64)>,
    incomparable: u64,
}

/// What both sides' scores have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoreFigures {
    /// Queries.
    pub queries: u64,
    /// Documents of all queries.
    pub documents: u64,
    /// Spearman's correlation of a query's scores, over the queries where it is defined: those with two
    /// and more documents that do not all score the same.
    pub spearman: Option<Quantiles>,
    /// Kendall's τ-b, of the same.
    pub kendall: Option<Quantiles>,
    /// Share of queries whose best document is the same, or one of those the reference scores equal.
    pub top1_agreement: Option<f64>,
    /// Candidate's score less the reference's, over all documents.
    pub score_difference: Option<Quantiles>,
    /// Mean of its absolute value.
    pub mean_absolute_difference: Option<f64>,
    /// Queries of which the sides have different numbers of documents, none, or a score that is not
    /// finite.
    pub incomparable: u64,
}

impl Default for ScoreComparison {
    fn default() -> Self {
        Self {
            queries: 0,
            documents: 0,
            same_best: 0,
            spearman: Distribution::default(),
            kendall: Distribution::default(),
            difference: Distribution::default(),
            pairs: Reservoir::new(KEPT_PAIRS, 0x5c0fe),
            incomparable: 0,
        }
    }
}

impl ScoreComparison {
    /// Takes both sides' scores of a query's documents in, documents in the same order.
    pub fn observe(&mut self, reference: &[f32], candidate: &[f32]) {
        let finite = |scores: &[f32]| scores.iter().all(|score| score.is_finite());
        let fits = reference.len() == candidate.len() && !reference.is_empty();
        if !(fits && finite(reference) && finite(candidate)) {
            self.incomparable += 1;
            return;
        }
        let wide = |side: &[f32]| side.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let (ours, theirs) = (wide(reference), wide(candidate));
        self.queries += 1;
        self.documents += ours.len() as u64;
        let highest = |scores: &[f64]| scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (our_highest, their_highest) = (highest(&ours), highest(&theirs));
        let same_best = ours
            .iter()
            .zip(&theirs)
            .any(|(our, their)| *our >= our_highest && *their >= their_highest);
        self.same_best += u64::from(same_best);
        if let (Some(rho), Some(tau)) = (spearman(&ours, &theirs), kendall(&ours, &theirs)) {
            self.spearman.observe(rho);
            self.kendall.observe(tau);
        }
        for (our, their) in ours.into_iter().zip(theirs) {
            self.difference.observe(their - our);
            self.pairs.offer(|| (our, their));
        }
    }

    /// Takes another comparison in.
    pub fn merge(&mut self, other: Self) {
        self.queries += other.queries;
        self.documents += other.documents;
        self.same_best += other.same_best;
        self.spearman.merge(other.spearman);
        self.kendall.merge(other.kendall);
        self.difference.merge(other.difference);
        self.pairs.merge(other.pairs);
        self.incomparable += other.incomparable;
    }

    /// Scores seen, reference's and candidate's; a uniform sample where there were more than 4096.
    pub fn pairs(&self) -> &[(f64, f64)] {
        self.pairs.kept()
    }

    /// The mean over the queries of Kendall's τ-b, negative ones being 0; where it is defined for none,
    /// the share of queries with the same best document.
    pub(super) fn agreement(&self) -> Option<f64> {
        let ordered = self.kendall.mean().map(|mean| mean.clamp(0.0, 1.0));
        ordered.or_else(|| self.top1_agreement())
    }

    /// What was seen so far.
    pub fn figures(&self) -> ScoreFigures {
        let absolute = self.difference.sample().iter().map(|x| x.abs());
        let kept = self.difference.sample().len();
        ScoreFigures {
            queries: self.queries,
            documents: self.documents,
            spearman: self.spearman.quantiles(),
            kendall: self.kendall.quantiles(),
            top1_agreement: self.top1_agreement(),
            score_difference: self.difference.quantiles(),
            mean_absolute_difference: (kept > 0).then(|| absolute.sum::<f64>() / kept as f64),
            incomparable: self.incomparable,
        }
    }

    fn top1_agreement(&self) -> Option<f64> {
        (self.queries > 0).then(|| self.same_best as f64 / self.queries as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_compared_query_by_query() {
        let mut comparison = ScoreComparison::default();
        comparison.observe(&[0.9, 0.5, 0.1], &[0.8, 0.6, 0.2]);
        comparison.observe(&[0.9, 0.5], &[0.1, 0.2]);
        let figures = comparison.figures();
        assert_eq!(figures.top1_agreement, Some(0.5));
        assert!(figures.kendall.unwrap().mean.abs() < 1e-12);
        assert_eq!((figures.queries, figures.documents), (2, 5));
    }

    #[test]
    fn a_query_with_one_document_has_no_order_but_a_difference() {
        let mut comparison = ScoreComparison::default();
        comparison.observe(&[0.9], &[0.4]);
        let figures = comparison.figures();
        assert_eq!(figures.kendall, None);
        assert_eq!(comparison.agreement(), Some(1.0));
        assert!((figures.mean_absolute_difference.unwrap() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn any_of_the_equally_best_documents_is_the_best() {
        let mut comparison = ScoreComparison::default();
        comparison.observe(&[0.5, 0.5, 0.1], &[0.4, 0.5, 0.1]);
        assert_eq!(comparison.figures().top1_agreement, Some(1.0));
    }

    #[test]
    fn other_numbers_of_documents_are_counted_and_spoil_nothing() {
        let mut comparison = ScoreComparison::default();
        comparison.observe(&[0.5, 0.5], &[0.4]);
        comparison.observe(&[f32::INFINITY], &[0.4]);
        assert_eq!(comparison.figures().incomparable, 2);
        assert_eq!(comparison.agreement(), None);
    }
}
