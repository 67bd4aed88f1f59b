//! What becomes of an answer that the model is not sure of.

use super::AnsweredRow;
use crate::{
    config::Task, error::RequestError, models::RowOutput, quality, repository::ServedModel,
};

/// What a request wants done with answers below its confidence.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum WhenUnsure {
    /// What the model's manifest says: its cascade, if it has one.
    #[default]
    AsManifest,
    /// Nothing but to say so.
    Flag,
    /// No answer.
    Abstain,
    /// Another model's answer.
    FallBack(FallBack),
}

/// Which model answers instead.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FallBack {
    /// Its name; empty for that of the manifest's cascade.
    pub model: String,
    /// Its version or a label; empty for what its route says.
    pub version: String,
    /// Answers below this are asked again; 0 for the manifest's.
    pub below: f32,
}

/// How sure a model is of a row: the best label's probability; of a pair, that it fits or that it
/// doesn't, whichever is likelier; of spans, the least sure one's (1 where there is none).
pub(super) fn sureness(model: &ServedModel, row: &AnsweredRow) -> Result<f32, RequestError> {
    match &row.answer.output {
        RowOutput::Logits(logits) if model.task() == Task::Rerank => {
            let score = model.score(logits.first().copied().unwrap_or_default());
            Ok(score.max(1.0 - score))
        }
        RowOutput::Logits(logits) => Ok(model.classify(logits).confidence),
        RowOutput::TokenLogits { values, .. } => {
            let encoded = &row.encoded;
            let spans =
                quality::label_spans(values, &model.labels, &encoded.offsets, &encoded.words);
            let confidences = spans.iter().map(|span| span.confidence);
            Ok(confidences.fold(1.0, f32::min))
        }
        RowOutput::Embedding(_) => Err(RequestError::invalid(
            "low_confidence",
            "an embedding",
            "classify, rerank or tokens: an embedding has no confidence",
        )),
    }
}
