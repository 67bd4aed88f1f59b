//! An executor: one thread that takes batches and runs them.
//!
//! A batch that fails, by error or panic, is run again row by row, so that only the row at fault
//! fails; one that the device has no memory for, in halves. Where the device itself is lost the
//! instance ends, or is made anew. A row that went away or whose deadline passed while it was staged is not run.
//!
//! While the model runs, the rows lie in a bay, where the watchdog can reach them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};

use super::{
    load::Load,
    messages::{Done, Forward, Report},
    row::{RowAnswer, WorkRow, expired},
};
use crate::{
    batching::{Batch, Row},
    device::DeviceFailure,
    engine::{
        panics::panic_message,
        recovery::{Failed, Lost, Recovery},
        watchdog::Bay,
    },
    error::RequestError,
    models::{PackedBatch, RowOutput},
    telemetry::{
        BatchTimes, ModelMetrics, ModelStatistics,
        traces::{BatchNotes, RowTrace, TraceLink},
    },
};

#[derive(Clone)]
pub(super) struct Executor {
    pub(super) instance: usize,
    /// The model's name.
    pub(super) name: Arc<str>,
    /// Rows and tokens of a batch, at most.
    pub(super) room: (usize, usize),
    pub(super) batches: Receiver<Batch<WorkRow>>,
    pub(super) reports: Sender<Report>,
    /// Nothing is ever sent here: it closes when the dispatcher is gone.
    pub(super) closing: Receiver<()>,
    pub(super) recovery: Recovery<Forward>,
    pub(super) metrics: ModelMetrics,
    pub(super) statistics: Arc<ModelStatistics>,
    pub(super) load: Arc<Load>,
    pub(super) bay: Arc<Bay<InHand>>,
}

/// What an executor has to answer for while its model runs.
#[derive(Debug)]
pub(super) struct InHand {
    /// Those that run.
    pub(super) rows: Vec<Row<WorkRow>>,
    /// The parts of their batch that are still to be run, the next one last.
    behind: Vec<Vec<Row<WorkRow>>>,
    /// What the dispatcher is to be told, where it was not told yet that the batch is done.
    untold: Option<Done>,
}

/// Why an executor runs no more batches on its model.
enum Over {
    /// Its device is lost.
    Lost(Lost),
    /// A run took so long that another thread has taken the executor's place.
    Replaced,
}

impl InHand {
    /// Tokens of those that run.
    pub(super) fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens as usize).sum()
    }

    /// Answers every row; returns what the dispatcher is to be told.
    pub(super) fn refuse(self, error: &RequestError) -> Option<Done> {
        fail_all(self.rows, error);
        fail_all(self.behind.into_iter().flatten(), error);
        self.untold
    }
}

impl Executor {
    /// One with a bay of its own.
    pub(super) fn for_instance(&self, instance: usize) -> Self {
        Self {
            instance,
            bay: Arc::default(),
            ..self.clone()
        }
    }

    /// Has a thread of its own do this.
    pub(super) fn start(self, run: impl FnOnce(Self) + Send + 'static) -> std::io::Result<()> {
        std::thread::Builder::new()
            .name(format!("run-{}-{}", self.name, self.instance))
            .spawn(move || run(self))?;
        Ok(())
    }

    /// Runs batches until the dispatcher is gone, the device is lost for good, or a run takes so long
    /// that another thread takes this one's place.
    pub(super) fn run(self, mut forward: Forward) {
        loop {
            let Lost(error) = match self.run_until_over(&forward) {
                Ok(()) => return,
                Err(Over::Replaced) => {
                    tracing::warn!(
                        instance = self.instance,
                        "a run that was given up came back; its thread ends"
                    );
                    return;
                }
                Err(Over::Lost(lost)) => lost,
            };
            let reason = error.to_string();
            tracing::error!(
                instance = self.instance,
                reason,
                "the device under an instance is lost"
            );
            // An error means that the dispatcher is gone, and nobody is left to be told.
            let _ = self.reports.send(Report::Lost(error));
            // Frees what it holds of the device: the context is gone only with the last that holds it.
            drop(forward);
            let Some(fresh) = self.remake(&self.recovery, &reason) else {
                return;
            };
            forward = fresh;
        }
    }

    /// Takes the place of an executor that hangs: as [`Executor::run`], over a model made anew.
    pub(super) fn run_anew(self, recovery: &Recovery<Forward>, reason: &str) {
        if let Some(fresh) = self.remake(recovery, reason) {
            self.run(fresh);
        }
    }

    /// A fresh model, of which the dispatcher is told; `None`, when the dispatcher is gone, where
    /// there is none to be had.
    fn remake(&self, recovery: &Recovery<Forward>, reason: &str) -> Option<Forward> {
        let metrics = &self.metrics.device;
        let pause = |time| self.closing.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
        let Some(fresh) = recovery.recover(self.instance, reason, metrics, pause) else {
            // Stays until the dispatcher is gone, so that this never hears the last of it.
            let _ = self.closing.recv();
            return None;
        };
        let _ = self.reports.send(Report::Back);
        Some(fresh)
    }

    fn run_until_over(&self, forward: &Forward) -> Result<(), Over> {
        for batch in &self.batches {
            self.run_batch(forward, batch.rows)?;
        }
        Ok(())
    }

    fn run_batch(&self, forward: &Forward, rows: Vec<Row<WorkRow>>) -> Result<(), Over> {
        let started = Instant::now();
        let mut done = Done {
            rows: rows.len(),
            tokens: 0,
            sum_len_squared: 0,
            elapsed: None,
        };
        let rows = still_wanted(rows, started);
        if rows.is_empty() {
            let _ = self.reports.send(Report::Done(done));
            return Ok(());
        }
        let packed = pack(&rows);
        done.tokens = packed.tokens().len();
        done.sum_len_squared = packed.sum_len_squared();
        let packed_at = Instant::now();
        let in_hand = InHand {
            rows,
            behind: Vec::new(),
            untold: Some(done),
        };
        let (in_hand, outputs) = self.run_watched(forward, &packed, in_hand)?;
        let execute = packed_at.elapsed();

        // First of all the dispatcher, so that the next batch can leave while answers go out.
        let elapsed = outputs.is_ok().then_some(execute);
        if let Some(done) = in_hand.untold {
            let _ = self.reports.send(Report::Done(Done { elapsed, ..done }));
        }

        let rows = in_hand.rows;
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
                Ok(())
            }
            Err(failed) => self.run_in_parts(forward, rows, &failed),
        }
    }

    /// Runs the model, while what it is run for lies in the bay.
    fn run_watched(
        &self,
        forward: &Forward,
        packed: &PackedBatch,
        in_hand: InHand,
    ) -> Result<(InHand, Result<Vec<RowOutput>, Failed>), Over> {
        let expected = self.load.predict(packed.tokens().len());
        self.bay.lay(Box::new(in_hand), expected);
        let outputs = run_model(forward, packed);
        let in_hand = self.bay.take_back().ok_or(Over::Replaced)?;
        Ok((*in_hand, outputs))
    }

    /// Runs rows that failed together: in halves where the device had no memory for all of them, else
    /// each alone, so that the one at fault is the only one to fail. A row that fails alone is
    /// answered so; where the device is lost, all are.
    fn run_in_parts(
        &self,
        forward: &Forward,
        rows: Vec<Row<WorkRow>>,
        failed: &Failed,
    ) -> Result<(), Over> {
        let mut behind = Vec::new();
        self.divide(rows, failed, &mut behind)?;
        while let Some(part) = behind.pop() {
            let started = Instant::now();
            let rows = still_wanted(part, started);
            if rows.is_empty() {
                continue;
            }
            let packed = pack(&rows);
            let in_hand = InHand {
                rows,
                behind,
                untold: None,
            };
            let (in_hand, outputs) = self.run_watched(forward, &packed, in_hand)?;
            behind = in_hand.behind;
            match outputs {
                Ok(outputs) => {
                    let (execute, count) = (started.elapsed(), in_hand.rows.len());
                    for (row, output) in in_hand.rows.into_iter().zip(outputs) {
                        answer(row, output, started, execute, count, None);
                    }
                }
                Err(failed) => self.divide(in_hand.rows, &failed, &mut behind)?,
            }
        }
        Ok(())
    }

    /// Puts the parts of rows that failed together on top of those that are still to be run; answers
    /// a row that failed alone, and all where the device is lost.
    fn divide(
        &self,
        mut rows: Vec<Row<WorkRow>>,
        failed: &Failed,
        behind: &mut Vec<Vec<Row<WorkRow>>>,
    ) -> Result<(), Over> {
        let error = &failed.error;
        if let Some(lost) = failed.lost() {
            fail_all(rows, error);
            fail_all(behind.drain(..).flatten(), error);
            return Err(Over::Lost(lost));
        }
        if rows.len() == 1 {
            fail_all(rows, error);
        } else if failed.kind == DeviceFailure::OutOfMemory {
            tracing::warn!(%error, rows = rows.len(), "no memory for a batch; running it in halves");
            self.metrics.device.split_batches.inc();
            let second = rows.split_off(rows.len() / 2);
            behind.extend([second, rows]);
        } else {
            tracing::warn!(%error, rows = rows.len(), "batch failed; running its rows one by one");
            self.metrics.isolated_batches.inc();
            behind.extend(rows.into_iter().rev().map(|row| vec![row]));
        }
        Ok(())
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

/// Runs the model; an error or a panic in it becomes a [`Failed`].
fn run_model(forward: &Forward, packed: &PackedBatch) -> Result<Vec<RowOutput>, Failed> {
    // The model's weights are never written after load, so a panic leaves nothing half done.
    let outputs = catch_unwind(AssertUnwindSafe(|| forward(packed)))
        .map_err(|panic| Failed::of_panic(panic_message(&*panic)))?
        .map_err(|error| Failed::of(&error))?;
    if outputs.len() == packed.rows() {
        return Ok(outputs);
    }
    Err(Failed::internal(format_args!(
        "the model gave {} outputs for {} rows",
        outputs.len(),
        packed.rows()
    )))
}

fn fail_all(rows: impl IntoIterator<Item = Row<WorkRow>>, error: &RequestError) {
    for row in rows {
        row.payload.answer(Err(error.clone()));
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
