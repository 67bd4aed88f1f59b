//! The warm-up plan: what of it there is still time for, and which of its entries failed.

use std::time::Instant;

use super::{LoadError, times::timed};
use crate::config::manifest::{WarmupConfig, WarmupShape};

/// Tells of one entry of the plan what is wrong with it.
pub(super) fn failed(entry: String, reason: impl std::fmt::Display) -> LoadError {
    LoadError::WarmUpEntry {
        entry,
        reason: reason.to_string(),
    }
}

/// What an entry that is a shape is called.
pub(super) fn name_of_shape(index: usize, shape: WarmupShape) -> String {
    let WarmupShape { rows, tokens } = shape;
    format!("warmup.shapes[{index}] ({rows} rows of {tokens} tokens)")
}

/// What an entry that is a prompt is called: by its place and its beginning.
pub(super) fn name_of_prompt(index: usize, text: &str) -> String {
    format!("warmup.prompts[{index}] ({})", beginning(text))
}

/// The beginning of a text, quoted.
pub(super) fn beginning(text: &str) -> String {
    const CHARACTERS: usize = 40;
    let mut characters = text.chars();
    let mut beginning: String = characters.by_ref().take(CHARACTERS).collect();
    if characters.next().is_some() {
        beginning.push('…');
    }
    format!("{beginning:?}")
}

/// Runs the entries as often as the plan says, until its time is up. `run` gets each with its index
/// and round.
pub(super) fn run_rounds<T>(
    plan: &WarmupConfig,
    model: &str,
    entries: &[T],
    mut run: impl FnMut(u32, usize, &T) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let began = Instant::now();
    for round in 0..plan.rounds {
        for (index, entry) in entries.iter().enumerate() {
            if began.elapsed() >= plan.limit() {
                tracing::warn!(
                    model,
                    round,
                    index,
                    "warmup.seconds is over; the rest is left out"
                );
                return Ok(());
            }
            let (done, took) = timed(|| run(round, index, entry));
            done?;
            let ms = took.as_secs_f64() * 1e3;
            tracing::debug!(model, round, index, ms, "warm-up entry done");
        }
    }
    Ok(())
}
