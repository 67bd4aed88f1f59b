//! From a step's logits to the next tokens, in parallel over its rows.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rayon::prelude::*;

use super::{messages::StepOutput, sequence::Active, stream::ScoredToken};
use crate::{
    engine::panics::panic_message,
    error::RequestError,
    generation::{Sampled, Scheduler, StepRow},
};

/// A row that has logits, with its sequence.
pub(super) struct SampledRow {
    pub(super) row: StepRow,
    /// Its logits, among those of the step.
    logits: Range<usize>,
    pub(super) active: Active,
    /// `None` where the row is inside a prompt.
    pub(super) sampled: Result<Option<Sampled>, RequestError>,
}

impl SampledRow {
    /// A row that is yet to be sampled.
    pub(super) fn new(row: StepRow, logits: Range<usize>, active: Active) -> Self {
        Self {
            row,
            logits,
            active,
            sampled: Ok(None),
        }
    }
}

/// Samples every row. One that fails, or panics, fails alone.
pub(super) fn sample_rows(scheduler: &Scheduler, rows: &mut [SampledRow], output: &StepOutput) {
    let read = output.logits.read(|values| {
        rows.par_iter_mut().for_each(|row| {
            let sampling = AssertUnwindSafe(|| sample(scheduler, row, values, output));
            row.sampled = catch_unwind(sampling).unwrap_or_else(|panic| {
                let what = panic_message(&*panic);
                let error = format!("sampling panicked: {what}");
                Err(RequestError::internal(error))
            });
        });
    });
    if let Err(error) = read {
        for row in rows {
            row.sampled = Err(RequestError::internal(&error));
        }
    }
}

/// Draws the row's next token, and scores its prompt tokens where that is wanted.
fn sample(
    scheduler: &Scheduler,
    sampled: &mut SampledRow,
    values: &[f32],
    output: &StepOutput,
) -> Result<Option<Sampled>, RequestError> {
    let SampledRow {
        row,
        logits,
        active,
        ..
    } = sampled;
    let vocabulary = values.len() / output.statistics.len().max(1);
    let row_of = |index: usize| &values[index * vocabulary..(index + 1) * vocabulary];
    if let (Some(scores), Some(sequence)) = (&mut active.prompt_scores, scheduler.sequence(row.id))
    {
        // The logits at one token score the next.
        let next = (row.end() - row.logits + 1) as usize;
        let prompt = sequence.prompt().get(next..).unwrap_or_default();
        for (index, &id) in logits.clone().zip(prompt) {
            let statistics = output.statistics[index];
            scores.push(ScoredToken {
                id,
                logprob: Some(row_of(index)[id as usize] - statistics.log_sum_exp),
                top: active.sampler.top_logprobs(row_of(index), statistics),
            });
        }
    }
    if !row.samples {
        return Ok(None);
    }
    let last = logits.end - 1;
    let mask = match &mut active.constraint {
        None => None,
        Some(constraint) => Some(constraint.mask().map_err(RequestError::internal)?),
    };
    active
        .sampler
        .sample(row_of(last), output.statistics[last], mask)
        .map(Some)
        .map_err(RequestError::internal)
}
