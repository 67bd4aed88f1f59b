//! What the async world and the runner tell each other, and the model as the runner sees it.

use super::{sequence::SequenceWork, stream::EventSink};
use crate::{
    engine::Departure,
    generation::{RowStatistics, SequenceId},
    models::{DecoderBatch, ForwardError, StepLogits},
};
use std::time::Instant;

/// Runs one step: a loaded model with its cache, as the engine sees it.
pub type StepForward = Box<dyn FnMut(&DecoderBatch) -> Result<StepOutput, ForwardError> + Send>;

/// What a step gives, a row for each of [`DecoderBatch::logit_tokens`].
#[derive(Debug)]
pub struct StepOutput {
    /// Logits, `[rows, vocabulary]`.
    pub logits: StepLogits,
    /// What one pass over each row tells.
    pub statistics: Vec<RowStatistics>,
}

/// A sequence on its way to the scheduler.
#[derive(Debug)]
pub(super) struct Boarding {
    pub(super) id: SequenceId,
    pub(super) work: SequenceWork,
    pub(super) departure: Departure,
    pub(super) arrived: Instant,
    pub(super) events: EventSink,
}

/// What the async world tells the runner.
#[derive(Debug)]
pub(super) enum Command {
    /// A new sequence.
    Board(Box<Boarding>),
    /// Nobody reads this sequence any more.
    Cancel(SequenceId),
    /// The reader of this paused sequence has caught up.
    Resume(SequenceId),
}
