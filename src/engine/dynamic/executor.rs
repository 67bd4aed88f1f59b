//! An executor: one thread that takes batches and runs them.
//!
//! A batch that fails, by error or panic, is run again row by row, so that only the row at fault
//! fails. A row that went away or whose deadline passed while it was staged is not run.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender};

use super::{
    messages::{Done, Forward},
    row::{RowAnswer, WorkRow, expired},
};
use crate::{
    batching::{Batch, Row},
    engine::panics::panic_message,
    error::RequestError,
    models::{PackedBatch, RowOutput},
    telemetry::{
        BatchTimes, ModelMetrics, ModelStatistics,
        traces::{BatchNotes, RowTrace, TraceLink},
    },
};

pub(super) struct Executor {
    /// The model's name.
    pub(super) name: Arc<str>,
    pub(super) forward: Forward,
    /// Rows and tokens of a batch, at most.
    pub(super) room: (usize, usize),
    pub(super) batches: Receiver<Batch<WorkRow>>,
    pub(super) done: Sender<Done>,
    pub(super) metrics: ModelMetrics,
    pub(super) statistics: Arc<ModelStatistics>,
}

impl Executor {
    /// Runs batches until the dispatcher is gone.
    pub(super) fn run(self) {
        for batch in &self.batches {
            self.run_batch(batch.rows);
        }
    }

    fn run_batch(&self, rows: Vec<Row<WorkRow>>) {
        let started = Instant::now();
        let given_out = rows.len();
        let rows = still_wanted(rows, started);
        let packed = pack(&rows);
        let packed_at = Instant::now();
        let outputs = if rows.is_empty() {
            Ok(Vec::new())
        } else {
            self.forward(&packed)
        };
        let execute = packed_at.elapsed();

        // First of all the dispatcher, so that the next batch can leave while answers go out.
        let _ = self.done.send(Done {
            rows: given_out,
            tokens: packed.tokens().len(),
            sum_len_squared: packed.sum_len_squared(),
            elapsed: (outputs.is_ok() && !rows.is_empty()).then_some(execute),
        });
        if rows.is_empty() {
            return;
        }

        let count = rows.len();
        self.count(&rows, &packed, started, execute);
        // Before the answers, so that whoever has one finds its batch counted. Handing them out takes
        // no time worth a figure.
        let times = BatchTimes {
            input: packed_at - started,
            execute,
            output: Duration::ZERO,
        };
        self.statistics.record_batch(count, &times);
        match outputs {
            Ok(outputs) => {
                let traced = self.note_traced(&rows, &packed, [started, packed_at], execute);
                let batch = traced.as_ref().map(|traced| &traced.batch);
                for (row, output) in rows.into_iter().zip(outputs) {
                    answer(row, output, started, execute, count, batch);
                }
                if let Some(traced) = traced {
                    traced.send();
                }
            }
            Err(error) if count == 1 => {
                for row in rows {
                    row.payload.answer(Err(error.clone()));
                }
            }
            Err(error) => {
                tracing::warn!(%error, rows = count, "batch failed; running its rows one by one");
                self.metrics.isolated_batches.inc();
                self.isolate(rows);
            }
        }
    }

    /// Runs each row alone, so that the one at fault is the only one to fail.
    fn isolate(&self, rows: Vec<Row<WorkRow>>) {
        for row in rows {
            let started = Instant::now();
            let Some(row) = still_wanted(vec![row], started).pop() else {
                continue;
            };
            match self.forward(&pack(std::slice::from_ref(&row))) {
                Ok(mut outputs) => {
                    if let Some(output) = outputs.pop() {
                        answer(row, output, started, started.elapsed(), 1, None);
                    }
                }
                Err(error) => row.payload.answer(Err(error)),
            }
        }
    }

    /// Runs the model; an error or a panic in it becomes a [`RequestError`].
    fn forward(&self, packed: &PackedBatch) -> Result<Vec<RowOutput>, RequestError> {
        // The model's weights are never written after load, so a panic leaves nothing half done.
        let outputs = catch_unwind(AssertUnwindSafe(|| (self.forward)(packed)))
            .map_err(|panic| {
                RequestError::internal(format_args!(
                    "the model panicked: {}",
                    panic_message(&*panic)
                ))
            })?
            .map_err(RequestError::internal)?;
        if outputs.len() == packed.rows() {
            return Ok(outputs);
        }
        Err(RequestError::internal(format_args!(
            "the model gave {} outputs for {} rows",
            outputs.len(),
            packed.rows()
        )))
    }

    /// Notes a batch that has rows whose requests are traced.
    fn note_traced(
        &self,
        rows: &[Row<WorkRow>],
        packed: &PackedBatch,
        [started, packed_at]: [Instant; 2],
        execute: Duration,
    ) -> Option<TracedBatch> {
        let traced = rows.iter().filter_map(|row| row.payload.trace.as_ref());
        let links: Vec<TraceLink> = traced.cloned().collect();
        links.first()?;
        let batch = Arc::new(BatchNotes {
            context: TraceLink::batch_context(),
            model: Arc::clone(&self.name),
            started,
            packed: packed_at,
            executed: packed_at + execute,
            rows: rows.len(),
            tokens: packed.tokens().len(),
        });
        Some(TracedBatch { batch, links })
    }

    fn count(
        &self,
        rows: &[Row<WorkRow>],
        packed: &PackedBatch,
        started: Instant,
        execute: Duration,
    ) {
        let metrics = &self.metrics;
        metrics.rows.inc_by(rows.len() as u64);
        metrics.tokens.inc_by(packed.tokens().len() as u64);
        metrics.batch_rows.observe(rows.len() as f64);
        metrics.batch_tokens.observe(packed.tokens().len() as f64);
        let longest = rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        let tokens = packed.tokens().len();
        metrics
            .work
            .observe_fill(rows.len(), tokens, longest as usize, self.room);
        metrics.execute.observe(execute.as_secs_f64());
        for row in rows {
            let delay = started.saturating_duration_since(row.arrived);
            metrics.queue_delay.observe(delay.as_secs_f64());
        }
    }
}

/// A batch some of whose rows are traced.
struct TracedBatch {
    batch: Arc<BatchNotes>,
    links: Vec<TraceLink>,
}

impl TracedBatch {
    /// Tells of it, when its answers are out.
    fn send(self) {
        if let Some(link) = self.links.first() {
            link.send_batch(self.batch, self.links.iter(), Instant::now());
        }
    }
}

/// The rows somebody still waits for; the others are answered here and never run.
fn still_wanted(rows: Vec<Row<WorkRow>>, now: Instant) -> Vec<Row<WorkRow>> {
    let mut wanted = Vec::with_capacity(rows.len());
    for row in rows {
        if row.payload.is_abandoned() {
            row.payload.answer(Err(RequestError::Cancelled));
        } else if row.deadline.is_some_and(|deadline| deadline <= now) {
            row.payload.answer(Err(expired()));
        } else {
            wanted.push(row);
        }
    }
    wanted
}

fn pack(rows: &[Row<WorkRow>]) -> PackedBatch {
    let tokens = rows.iter().map(|row| row.tokens as usize).sum();
    let mut packed = PackedBatch::with_capacity(rows.len(), tokens);
    for row in rows {
        let work = &row.payload.work;
        packed.push_row(&work.ids, Some(&work.type_ids));
    }
    packed
}

fn answer(
    row: Row<WorkRow>,
    output: RowOutput,
    started: Instant,
    execute: Duration,
    batch_rows: usize,
    batch: Option<&Arc<BatchNotes>>,
) {
    if !is_finite(&output) {
        row.payload.answer(Err(RequestError::internal(
            "the model's output for this row is not finite (NaN or infinity)",
        )));
        return;
    }
    let queue = started.saturating_duration_since(row.arrived);
    let trace = match (batch, &row.payload.trace) {
        (Some(batch), Some(_)) => Some(Box::new(RowTrace {
            arrived: row.arrived,
            batch: Arc::clone(batch),
        })),
        _ => None,
    };
    row.payload.answer(Ok(RowAnswer {
        output,
        queue,
        execute,
        batch_rows,
        trace,
    }));
}

/// Whether every value of an output is a number.
pub fn is_finite(output: &RowOutput) -> bool {
    let (RowOutput::Embedding(values)
    | RowOutput::Logits(values)
    | RowOutput::TokenLogits { values, .. }) = output;
    values.iter().all(|value| value.is_finite())
}
