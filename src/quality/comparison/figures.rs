//! What a comparison found, ready to be written down.

use serde::Serialize;

use super::{ClassFigures, EmbeddingFigures, GenerationFigures, ScoreFigures, TokenFigures};
use crate::config::Task;

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// What both models do.
    pub task: Task,
    /// Rows that both sides answered: texts, queries, prompts.
    pub rows: u64,
    /// One number for how far the sides agree; see [`super::Comparison::agreement`].
    pub agreement: Option<f64>,
    /// Rows that could not be compared.
    pub failures: Failures,
    /// What the candidate costs, where it was measured.
    pub cost: Cost,
    /// The task's own figures.
    #[serde(flatten)]
    pub detail: Detail,
}

/// Rows that could not be compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// The reference failed on, and the candidate answered.
    pub reference: u64,
    /// The candidate failed on, and the reference answered.
    pub candidate: u64,
    /// Were answers of another task.
    pub other_task: u64,
}

/// What the candidate costs, as a multiple of the reference. A comparison doesn't know: who measures
/// fills it in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Its time for the same work.
    pub time_ratio: Option<f64>,
    /// Its bytes of weights.
    pub memory_ratio: Option<f64>,
}

/// The task's own figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    /// Embeddings.
    Embed(EmbeddingFigures),
    /// Class probabilities.
    Classify(ClassFigures),
    /// Relevance scores.
    Rerank(ScoreFigures),
    /// Labelled spans.
    Tokens(TokenFigures),
    /// Texts.
    Generate(GenerationFigures),
}

impl Figures {
    /// The figure that a threshold bounds; `None` where there is none.
    pub fn bounded_by(&self, threshold: &str) -> Option<f64> {
        match threshold {
            "min_rows" => Some(self.rows as f64),
            "min_agreement" => self.agreement,
            "max_failures" => {
                let failed = self.failures.reference + self.failures.candidate;
                let all = self.rows + failed;
                (all > 0).then(|| failed as f64 / all as f64)
            }
            "max_time_ratio" => self.cost.time_ratio,
            "max_memory_ratio" => self.cost.memory_ratio,
            _ => self.detail.bounded_by(threshold),
        }
    }
}

impl Detail {
    fn bounded_by(&self, threshold: &str) -> Option<f64> {
        match (self, threshold) {
            (Self::Embed(found), "min_mean_cosine") => found.cosine.map(|cosine| cosine.mean),
            (Self::Embed(found), "min_cosine_p5") => found.cosine.map(|cosine| cosine.p5),
            (Self::Embed(found), "min_spearman") => found.spearman,
            (Self::Embed(found), "min_kendall") => found.kendall,
            (Self::Embed(found), "min_neighbour_overlap") => found.neighbour_overlap,
            (Self::Classify(found), "min_label_agreement") => found.label_agreement,
            (Self::Classify(found), "max_js") => found.js.map(|js| js.mean),
            (Self::Classify(found), "max_kl") => found.kl.map(|kl| kl.mean),
            (Self::Classify(found), "max_probability_difference") => {
                found.max_difference.map(|difference| difference.max)
            }
            (Self::Rerank(found), "min_spearman") => found.spearman.map(|rho| rho.mean),
            (Self::Rerank(found), "min_kendall") => found.kendall.map(|tau| tau.mean),
            (Self::Rerank(found), "min_top1_agreement") => found.top1_agreement,
            (Self::Rerank(found), "max_score_difference") => found.mean_absolute_difference,
            (Self::Tokens(found), "min_span_f1") => found.span_f1,
            (Self::Tokens(found), "min_label_agreement") => found.label_agreement,
            (Self::Generate(found), "min_token_agreement") => found.token_agreement,
            (Self::Generate(found), "min_exact_match") => found.exact_match,
            (Self::Generate(found), "max_perplexity_ratio") => found.perplexity_ratio,
            (Self::Generate(found), "max_kl") => found.kl.map(|kl| kl.mean),
            _ => None,
        }
    }
}
