//! The dispatcher: one thread a model that owns the queue and lets batches leave.
//!
//! A batch goes to an idle executor at the queue's word. While all are busy a *full* batch may be
//! staged, so that an executor that ends finds the next one at the dock; a part-filled one keeps
//! boarding until then.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, at, never, select};

use super::{
    load::Load,
    messages::{Command, Done, Report},
    row::{WorkRow, expired},
};
use crate::{
    batching::{Batch, BatchPolicy, BatchQueue, Decision, FlushReason, Priority},
    engine::recovery::Health,
    error::RequestError,
    telemetry::ModelMetrics,
};

pub(super) struct Dispatcher {
    queue: BatchQueue<WorkRow>,
    health: Arc<Health>,
    /// Batches given out and not reported done: running, and at most one staged.
    out: usize,
    /// Predicted run time of the batches that are out.
    out_time: Duration,
    commands: Receiver<Command>,
    reports: Receiver<Report>,
    dock: Dock,
    load: Arc<Load>,
    metrics: ModelMetrics,
}

/// Where batches are given out: both ends, since a batch that no executor is left for comes back.
pub(super) struct Dock {
    pub(super) batches: Sender<Batch<WorkRow>>,
    pub(super) staged: Receiver<Batch<WorkRow>>,
    /// Tells executors that pause that nobody gives out batches any more, by being dropped.
    pub(super) _open: Sender<()>,
}

impl Dispatcher {
    pub(super) fn new(
        policy: BatchPolicy,
        health: Arc<Health>,
        commands: Receiver<Command>,
        reports: Receiver<Report>,
        dock: Dock,
        load: Arc<Load>,
        metrics: ModelMetrics,
    ) -> Self {
        Self {
            queue: BatchQueue::new(policy),
            health,
            out: 0,
            out_time: Duration::ZERO,
            commands,
            reports,
            dock,
            load,
            metrics,
        }
    }

    /// Runs until every [`super::Engine`] handle is gone and the queue is empty.
    pub(super) fn run(mut self) {
        while self.take_news() {
            let now = Instant::now();
            self.drop_expired(now);
            let wake = self.let_leave(now);
            self.publish_load();
            self.wait(wake);
        }
        self.drain();
    }

    /// Takes what has come in meanwhile, without waiting. False when no more can come.
    fn take_news(&mut self) -> bool {
        while let Ok(report) = self.reports.try_recv() {
            self.hear(report);
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(error) => return error.is_empty(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Board(rows) if self.health.alive() == 0 => {
                self.left(rows.len());
                for row in rows {
                    row.payload.answer(Err(self.health.refusal()));
                }
            }
            Command::Board(rows) => {
                let now = Instant::now();
                for row in rows {
                    if let Err(rejected) = self.queue.push(row, now) {
                        // Admission checks lengths and reserves room, so this is a fault of ours;
                        // the row is answered all the same.
                        self.left(1);
                        let reason = rejected.reason.to_string();
                        rejected
                            .row
                            .payload
                            .answer(Err(RequestError::internal(reason)));
                    }
                }
            }
            Command::Cancel(ids) => {
                for id in ids {
                    if let Some(row) = self.queue.cancel(id) {
                        self.left(1);
                        row.payload.answer(Err(RequestError::Cancelled));
                    }
                }
            }
            Command::Teach {
                tokens,
                sum_len_squared,
                elapsed,
            } => self.queue.observe(tokens, sum_len_squared, elapsed),
        }
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Done(done) => self.finish(&done),
            Report::Lost(reason) => {
                self.health.lose(&reason);
                self.refuse_if_none_is_left();
            }
            Report::Hung(batch) => {
                if let Some(batch) = batch {
                    self.finish(&batch);
                }
                self.refuse_if_none_is_left();
            }
            Report::Back => self.health.regain(),
        }
    }

    /// Answers all that waits, where no instance is left for it.
    fn refuse_if_none_is_left(&mut self) {
        if self.health.alive() > 0 {
            return;
        }
        let now = Instant::now();
        while let Ok(batch) = self.dock.staged.try_recv() {
            self.out -= 1;
            self.queue.note_done(batch.rows.len(), now);
            for row in batch.rows {
                row.payload.answer(Err(self.health.refusal()));
            }
        }
        while let Some(batch) = self.queue.drain(now) {
            self.left(batch.rows.len());
            self.queue.note_done(batch.rows.len(), now);
            for row in batch.rows {
                row.payload.answer(Err(self.health.refusal()));
            }
        }
        self.out_time = Duration::ZERO;
    }

    fn finish(&mut self, done: &Done) {
        self.out -= 1;
        self.queue.note_done(done.rows, Instant::now());
        let predicted = self
            .queue
            .run_time()
            .predict(done.tokens, done.sum_len_squared);
        self.out_time = self.out_time.saturating_sub(predicted);
        if self.out == 0 {
            self.out_time = Duration::ZERO;
        }
        if let Some(elapsed) = done.elapsed {
            if predicted > Duration::ZERO {
                let ratio = elapsed.as_secs_f64() / predicted.as_secs_f64();
                self.metrics.work.run_time_ratio.observe(ratio);
            }
            self.queue
                .observe(done.tokens, done.sum_len_squared, elapsed);
        }
    }

    fn drop_expired(&mut self, now: Instant) {
        for row in self.queue.take_expired(now) {
            self.left(1);
            row.payload.answer(Err(expired()));
        }
    }

    /// Gives out every batch that may leave now; returns when to look again.
    fn let_leave(&mut self, now: Instant) -> Option<Instant> {
        let instances = self.health.alive();
        while instances > 0 && self.out <= instances {
            let idle = self.out < instances;
            match self.queue.poll(now, idle) {
                Decision::Flush(batch) => self.give_out(batch),
                Decision::WaitUntil(when) => return Some(when),
                Decision::Empty => return None,
            }
        }
        // As many are out as may be; what waits can still expire.
        self.queue.next_deadline()
    }

    fn give_out(&mut self, batch: Batch<WorkRow>) {
        match batch.reason {
            FlushReason::Full => self.metrics.batches.full(),
            FlushReason::QueueDelay => self.metrics.batches.queue_delay(),
            FlushReason::Deadline => self.metrics.batches.deadline(),
            FlushReason::Idle => self.metrics.batches.idle(),
            FlushReason::Drain => self.metrics.batches.drain(),
        }
        self.left(batch.rows.len());
        self.out += 1;
        let squares = batch
            .rows
            .iter()
            .map(|row| u64::from(row.tokens).pow(2))
            .sum();
        self.out_time += self.queue.run_time().predict(batch.tokens, squares);
        // Fails only when the executors are gone; the rows then answer themselves as they drop.
        let _ = self.dock.batches.send(batch);
    }

    fn left(&self, rows: usize) {
        self.load.waiting_rows.fetch_sub(rows, Relaxed);
    }

    fn publish_load(&self) {
        for priority in [Priority::HIGH, Priority::NORMAL, Priority::LOW] {
            let waiting = self.queue.waiting_down_to(priority);
            let waiting = self
                .queue
                .run_time()
                .predict(waiting.tokens, waiting.sum_len_squared);
            let backlog = (self.out_time + waiting) / self.health.alive().max(1) as u32;
            self.load.backlog_ns[priority.level()].store(backlog.as_nanos() as u64, Relaxed);
        }
        let (fixed, token) = self.queue.run_time().linear();
        self.load.fixed_ns.store((fixed * 1e9).to_bits(), Relaxed);
        self.load.token_ns.store((token * 1e9).to_bits(), Relaxed);
        self.metrics.waiting_rows.set(self.queue.len() as i64);
    }

    fn wait(&mut self, wake: Option<Instant>) {
        let alarm = wake.map_or_else(never, at);
        let commands = self.commands.clone();
        let reports = self.reports.clone();
        select! {
            recv(commands) -> command => if let Ok(command) = command {
                self.obey(command);
            },
            recv(reports) -> report => if let Ok(report) = report {
                self.hear(report);
            },
            recv(alarm) -> _ => {}
        }
    }

    /// Runs what still waits, as executors become free, and lets the executors end.
    fn drain(mut self) {
        loop {
            self.drop_expired(Instant::now());
            self.refuse_if_none_is_left();
            while self.out <= self.health.alive() {
                let Some(batch) = self.queue.drain(Instant::now()) else {
                    break;
                };
                self.give_out(batch);
            }
            if self.queue.is_empty() {
                break;
            }
            let reports = self.reports.clone();
            let alarm = self.queue.next_deadline().map_or_else(never, at);
            select! {
                recv(reports) -> report => match report {
                    Ok(report) => self.hear(report),
                    Err(_) => break,
                },
                recv(alarm) -> _ => {}
            }
        }
        self.publish_load();
    }
}
