//! Runs the labelled rows through the model's own engine, so that their logits are those that it
//! serves.

use std::{sync::Arc, time::Instant};

use super::labels::Known;
use crate::{
    batching::Priority,
    cli::{Failure, io_runtime},
    engine::{Departure, RowWork},
    models::RowOutput,
    quality::calibration::Labelled,
    repository::ServedModel,
    text::EncodeOptions,
};

/// What the model said.
#[derive(Debug)]
pub struct Ran {
    /// Of the rows that it answered.
    pub labelled: Vec<Labelled>,
    /// Rows that it did not.
    pub failed: usize,
}

/// The logits of every row.
///
/// # Errors
/// When no row can be run, with what is wrong with the first.
pub fn logits(model: &ServedModel, rows: &[Known]) -> Result<Ran, Failure> {
    let runtime = io_runtime()?;
    let encoder = model.encoder()?;
    // Half of the queue, which then always has a full batch.
    let together = (model.manifest.batching.max_waiting_rows / 2).clamp(1, 1024);
    let departure = Departure {
        deadline: None,
        priority: Priority::NORMAL,
        tenant: Arc::from(""),
        trace: None,
    };
    let mut labelled = Vec::with_capacity(rows.len());
    let (mut failed, mut failure) = (0, None);
    for chunk in rows.chunks(together) {
        let mut work = Vec::with_capacity(chunk.len());
        for (at, known) in chunk.iter().enumerate() {
            match encoder.text.encode(&known.input, EncodeOptions::default()) {
                Ok(row) => {
                    let (ids, type_ids) = (row.ids, row.type_ids);
                    work.push((at, RowWork { ids, type_ids }));
                }
                Err(error) => {
                    failed += 1;
                    failure.get_or_insert_with(|| format!("line {}: {error}", known.line));
                }
            }
        }
        if work.is_empty() {
            continue;
        }
        let mut answers = encoder.engine.submit(work, &departure, Instant::now())?;
        runtime.block_on(async {
            while let Some((at, answer)) = answers.next().await {
                let known = &chunk[at];
                match answer.map(|answer| answer.output) {
                    Ok(RowOutput::Logits(logits)) if logits.len() == known.truth.len() => {
                        let truth = known.truth.clone();
                        labelled.push((known.line, Labelled { logits, truth }));
                    }
                    Ok(_) => {
                        failed += 1;
                        failure.get_or_insert_with(|| "the output is of another kind".to_owned());
                    }
                    Err(error) => {
                        failed += 1;
                        failure.get_or_insert_with(|| format!("line {}: {error}", known.line));
                    }
                }
            }
        });
    }
    if labelled.is_empty() {
        return Err(failure.unwrap_or_else(|| "no rows".to_owned()).into());
    }
    // Answers come in any order; the split must not depend on it.
    labelled.sort_by_key(|(line, _)| *line);
    let labelled = labelled.into_iter().map(|(_, row)| row).collect();
    Ok(Ran { labelled, failed })
}
