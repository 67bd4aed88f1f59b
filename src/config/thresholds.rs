//! What a model that is compared with another must hold: the gate of `ferry compare`, and of a
//! candidate that is to take over.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Violation, read_checked};

/// Bounds on the figures of a comparison. What is left out is not asked for; what is asked for and
/// was not measured is broken, so that a gate never passes for want of figures.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// Rows compared at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_rows: Option<f64>,
    /// The task's summary of agreement, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_agreement: Option<f64>,
    /// Share of rows that one side answered and the other failed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<f64>,
    /// Embeddings: the mean of the cosines between both sides' vectors of a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_mean_cosine: Option<f64>,
    /// Embeddings: the cosine that 95 of 100 texts reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cosine_p5: Option<f64>,
    /// Embeddings: share of a text's nearest neighbours that both sides have in common.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_neighbour_overlap: Option<f64>,
    /// Spearman's rank correlation: of the similarities between texts (embeddings), or the mean over
    /// queries of that of their documents' scores (rerank).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_spearman: Option<f64>,
    /// Kendall's, of the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_kendall: Option<f64>,
    /// Classifiers: share of texts of the same label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_label_agreement: Option<f64>,
    /// Classifiers: mean Jensen-Shannon divergence, in bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_js: Option<f64>,
    /// Classifiers: mean Kullback-Leibler divergence from the reference's probabilities, in nats;
    /// models that generate: that of the next token's, over the best tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_kl: Option<f64>,
    /// Classifiers: the largest difference of any probability of any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_probability_difference: Option<f64>,
    /// Rerank: share of queries whose best document is the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_top1_agreement: Option<f64>,
    /// Rerank: mean absolute difference of scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_score_difference: Option<f64>,
    /// Token classes: F1 of the candidate's spans, the reference's being right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_span_f1: Option<f64>,
    /// Generation: share of a given text's tokens whose most likely token is the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_token_agreement: Option<f64>,
    /// Generation: share of texts generated alike to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_exact_match: Option<f64>,
    /// Generation: the candidate's perplexity of a given text over the reference's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_perplexity_ratio: Option<f64>,
    /// The candidate's time for the same work over the reference's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_time_ratio: Option<f64>,
    /// The candidate's bytes of weights over the reference's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_ratio: Option<f64>,
}

/// A bound of [`Thresholds`] that is set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// Its key.
    pub name: &'static str,
    /// Its value.
    pub allowed: f64,
    /// Whether the figure may not be more than it; otherwise, not less.
    pub is_most: bool,
}

impl Thresholds {
    /// Reads and checks a file of thresholds.
    ///
    /// # Errors
    /// [`ConfigError`] with file and line when it can't be read or is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        read_checked(path, Self::validate)
    }

    /// Every key with its value, set or not.
    pub fn entries(&self) -> [(&'static str, Option<f64>); 20] {
        [
            ("min_rows", self.min_rows),
            ("min_agreement", self.min_agreement),
            ("max_failures", self.max_failures),
            ("min_mean_cosine", self.min_mean_cosine),
            ("min_cosine_p5", self.min_cosine_p5),
            ("min_neighbour_overlap", self.min_neighbour_overlap),
            ("min_spearman", self.min_spearman),
            ("min_kendall", self.min_kendall),
            ("min_label_agreement", self.min_label_agreement),
            ("max_js", self.max_js),
            ("max_kl", self.max_kl),
            (
                "max_probability_difference",
                self.max_probability_difference,
            ),
            ("min_top1_agreement", self.min_top1_agreement),
            ("max_score_difference", self.max_score_difference),
            ("min_span_f1", self.min_span_f1),
            ("min_token_agreement", self.min_token_agreement),
            ("min_exact_match", self.min_exact_match),
            ("max_perplexity_ratio", self.max_perplexity_ratio),
            ("max_time_ratio", self.max_time_ratio),
            ("max_memory_ratio", self.max_memory_ratio),
        ]
    }

    /// The bounds that are set.
    pub fn bounds(&self) -> impl Iterator<Item = Bound> {
        self.entries().into_iter().filter_map(|(name, allowed)| {
            Some(Bound {
                name,
                allowed: allowed?,
                is_most: name.starts_with("max_"),
            })
        })
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.bounds().next().is_none()
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        for Bound { name, allowed, .. } in self.bounds() {
            Violation::unless(allowed.is_finite(), name, allowed, "a finite number")?;
            let (least, most, rule) = range(name);
            Violation::unless((least..=most).contains(&allowed), name, allowed, rule)?;
        }
        Ok(())
    }
}

/// What a bound may be.
fn range(name: &str) -> (f64, f64, &'static str) {
    match name {
        "min_mean_cosine" | "min_cosine_p5" | "min_spearman" | "min_kendall" => {
            (-1.0, 1.0, "-1 to 1")
        }
        "max_failures" | "max_probability_difference" | "max_js" => (0.0, 1.0, "0 to 1"),
        "min_rows" => (0.0, f64::MAX, "0 and more"),
        _ if name.starts_with("min_") => (0.0, 1.0, "0 to 1"),
        _ => (0.0, f64::MAX, "0 and more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_not_asked_for() {
        let thresholds: Thresholds = toml::from_str("min_cosine_p5 = 0.99").unwrap();
        let bounds: Vec<_> = thresholds.bounds().collect();
        assert_eq!(bounds.len(), 1);
        assert_eq!(bounds[0].name, "min_cosine_p5");
        assert!(!bounds[0].is_most);
    }

    #[test]
    fn a_threshold_that_is_none_is_refused() {
        assert!(toml::from_str::<Thresholds>("min_cosine = 0.99").is_err());
    }

    #[test]
    fn a_share_above_one_is_refused() {
        let thresholds: Thresholds = toml::from_str("min_agreement = 99.0").unwrap();
        let violation = thresholds.validate().unwrap_err();
        assert!(format!("{violation:?}").contains("min_agreement"));
    }

    #[test]
    fn the_entries_are_the_struct_s_fields() {
        // A field left out of `entries` would never be checked.
        let entries = Thresholds::default().entries();
        let lines: Vec<_> = entries
            .iter()
            .map(|entry| format!("{} = 0.5", entry.0))
            .collect();
        let all = lines.join("\n");
        let thresholds: Thresholds = toml::from_str(&all).unwrap();
        assert_eq!(thresholds.bounds().count(), thresholds.entries().len());
        let written = serde_json::to_value(&thresholds).unwrap();
        assert_eq!(
            written.as_object().unwrap().len(),
            thresholds.entries().len()
        );
    }
}
