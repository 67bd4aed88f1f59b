//! The runner: one thread that owns a model's scheduler and cache, and runs step after step.
//!
//! While the model runs a step, the runner lies in a bay, where the watchdog can reach it: so its
//! methods that run steps take it whole, and give it back.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    handle::GenerationOptions,
    load::Load,
    messages::{Boarding, Command, StepForward, StepOutput},
    sampling::{SampledRow, sample_rows},
    sequence::Active,
};
use crate::{
    device::DeviceFailure,
    engine::{
        panics::panic_message,
        recovery::{Failed, Health, Lost, Recovery},
        watchdog::Bay,
    },
    error::{RequestError, Stage},
    generation::{
        FinishReason, NewSequence, Refused, Sampled, Scheduler, SchedulerOptions, SequenceId, Step,
        StepRow,
    },
    models::{DecoderBatch, DecoderRow},
    telemetry::{BatchTimes, GenerationMetrics, ModelMetrics, ModelStatistics},
};
use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError};

/// How often a runner without a step to run looks whether a reader that it waits for has caught up,
/// should the reader's own word have been lost.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is left of the longest step's time after another step: half of it after some 170.
const LINGERS: f64 = 0.996;

pub(super) struct Runner {
    scheduler: Scheduler,
    scheduler_options: SchedulerOptions,
    recovery: Recovery<StepForward>,
    health: Arc<Health>,
    commands: Receiver<Command>,
    load: Arc<Load>,
    sequences: HashMap<SequenceId, Active>,
    last_end: Option<Instant>,
    metrics: ModelMetrics,
    generation_metrics: GenerationMetrics,
    statistics: Arc<ModelStatistics>,
    /// Rows and tokens of a step, at most.
    room: (usize, usize),
    bay: Arc<Bay<Self>>,
    /// The longest that a step took, as far as that is not forgotten yet.
    longest: Duration,
}

/// Why a runner runs no more steps on its model.
enum Over {
    /// Its device is lost.
    Lost(Box<Runner>, Lost),
    /// A step took so long that another thread has taken the runner.
    Replaced,
}

/// What a row of a step came to.
type Outcome = Result<Option<FinishReason>, RequestError>;

impl Runner {
    pub(super) fn new(
        scheduler: Scheduler,
        recovery: Recovery<StepForward>,
        health: Arc<Health>,
        commands: Receiver<Command>,
        load: Arc<Load>,
        options: GenerationOptions,
    ) -> Self {
        Self {
            scheduler,
            recovery,
            health,
            commands,
            load,
            sequences: HashMap::new(),
            last_end: None,
            metrics: options.metrics,
            generation_metrics: options.generation_metrics,
            statistics: options.statistics,
            room: (
                options.scheduler.max_running,
                options.scheduler.max_step_tokens,
            ),
            scheduler_options: options.scheduler,
            bay: Arc::default(),
            longest: Duration::ZERO,
        }
    }

    /// Where it lies while a step runs.
    pub(super) fn bay(&self) -> Arc<Bay<Self>> {
        Arc::clone(&self.bay)
    }

    /// How it is made anew.
    pub(super) fn recovery(&self) -> &Recovery<StepForward> {
        &self.recovery
    }

    /// Sequences that have not ended.
    pub(super) fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Runs until every [`super::GenerationEngine`] handle and stream is gone and nothing is left, or
    /// the device is lost for good; then it still answers, until they are gone, that it is. Ends where
    /// a step takes so long that another thread takes this one's place.
    pub(super) fn run(mut self: Box<Self>, mut forward: StepForward) {
        loop {
            let (runner, Lost(error)) = match self.run_until_over(&mut forward) {
                Ok(()) => return,
                Err(Over::Replaced) => {
                    tracing::warn!("a step that was given up came back; its thread ends");
                    return;
                }
                Err(Over::Lost(runner, lost)) => (runner, lost),
            };
            self = runner;
            let reason = error.to_string();
            tracing::error!(reason, "the device under the model is lost");
            self.health.lose(&error);
            // Frees what it holds of the device: the context is gone only with the last that holds it.
            drop(forward);
            self.refuse_all();
            let recovery = self.recovery.clone();
            let Some(fresh) = self.remake(&recovery, &reason) else {
                return;
            };
            forward = fresh;
        }
    }

    /// Ends what a step that hangs was run for and all else; returns the bay it lies in from now on.
    pub(super) fn give_up(&mut self, error: &RequestError) -> Arc<Bay<Self>> {
        self.metrics.device.hung.inc();
        // First, so that whoever has an answer finds the instance gone.
        self.health.lose(error);
        self.refuse_all();
        self.bay = Arc::default();
        self.bay()
    }

    /// Goes on in another thread than before: as [`Runner::run`], over a model made anew.
    pub(super) fn run_anew(mut self: Box<Self>, recovery: &Recovery<StepForward>, reason: &str) {
        if let Some(fresh) = self.remake(recovery, reason) {
            self.run(fresh);
        }
    }

    /// A fresh model with an empty cache; `None`, when nothing more can come, where there is none to
    /// be had.
    fn remake(&mut self, recovery: &Recovery<StepForward>, reason: &str) -> Option<StepForward> {
        let metrics = self.metrics.device.clone();
        let fresh = recovery.recover(0, reason, &metrics, |pause| {
            self.refuse_until(Some(Instant::now() + pause))
        });
        if fresh.is_none() {
            self.refuse_until(None);
            return None;
        }
        self.health.regain();
        fresh
    }

    /// Ends all sequences, and forgets what the lost cache held.
    fn refuse_all(&mut self) {
        let ids: Vec<SequenceId> = self.sequences.keys().copied().collect();
        for id in ids {
            let refusal = self.health.refusal();
            self.end(id, |active| active.fail(refusal));
        }
        if let Ok(scheduler) = Scheduler::new(self.scheduler_options.clone()) {
            self.scheduler = scheduler;
        }
        self.publish();
    }

    /// Refuses what comes in until a time, if there is one. False when no more can come.
    fn refuse_until(&mut self, until: Option<Instant>) -> bool {
        loop {
            let command = match until {
                None => self
                    .commands
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => self.commands.recv_deadline(until),
            };
            match command {
                Ok(Command::Board(boarding)) => {
                    let Boarding {
                        work,
                        arrived,
                        events,
                        ..
                    } = *boarding;
                    Active::begin(work, arrived, events)
                        .0
                        .fail(self.health.refusal());
                    self.load.ended(1);
                }
                Ok(Command::Cancel(_) | Command::Resume(_)) => {}
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn run_until_over(mut self: Box<Self>, forward: &mut StepForward) -> Result<(), Over> {
        let mut open = true;
        while open || !self.sequences.is_empty() {
            open = self.take_news();
            self.drop_abandoned();
            self.resume_those_caught_up();
            let now = Instant::now();
            self.drop_expired(now);
            let step = self.scheduler.compose(now);
            self.publish();
            if step.is_empty() {
                open = self.wait(now);
            } else {
                self = self.run_step(forward, &step)?;
            }
        }
        Ok(())
    }

    /// Takes what has come in meanwhile, without waiting. False when no more can come.
    fn take_news(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Waits for a command, a deadline, or the time to look again.
    fn wait(&mut self, now: Instant) -> bool {
        let mut until = self.scheduler.next_deadline();
        if !self.sequences.is_empty() {
            let look = now + LOOK_AGAIN;
            until = Some(until.map_or(look, |deadline| deadline.min(look)));
        }
        let command = match until {
            None => self
                .commands
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => self.commands.recv_deadline(until),
        };
        match command {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                if !self.sequences.is_empty() {
                    std::thread::sleep(LOOK_AGAIN);
                }
                return false;
            }
        }
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Board(boarding) => self.board(*boarding),
            Command::Cancel(id) => self.cancel(id),
            Command::Resume(id) => self.resume(id),
        }
    }

    fn board(&mut self, boarding: Boarding) {
        let Boarding {
            id,
            work,
            departure,
            arrived,
            events,
        } = boarding;
        let (max_new_tokens, all_logits) = (work.max_new_tokens, work.score_prompt);
        let (mut active, prompt) = Active::begin(work, arrived, events);
        let sequence = NewSequence {
            id,
            prompt,
            max_new_tokens,
            deadline: departure.deadline,
            priority: departure.priority,
            tenant: departure.tenant,
            all_logits,
        };
        match self.scheduler.add(sequence) {
            Ok(()) => {
                self.sequences.insert(id, active);
            }
            Err(refused) => {
                active.fail(refusal(&refused));
                self.load.ended(1);
            }
        }
    }

    fn cancel(&mut self, id: SequenceId) {
        if self.sequences.contains_key(&id) {
            self.end(id, |active| active.fail(RequestError::Cancelled));
        }
    }

    fn resume(&mut self, id: SequenceId) {
        if let Some(active) = self.sequences.get_mut(&id)
            && active.is_paused
        {
            active.is_paused = false;
            active.events.resumed();
            self.scheduler.resume(id);
        }
    }

    /// Lets go on whose reader has made room, also where its word was lost.
    fn resume_those_caught_up(&mut self) {
        if self.scheduler.counts().paused == 0 {
            return;
        }
        let caught_up: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, active)| active.is_paused && active.events.has_caught_up())
            .map(|(id, _)| *id)
            .collect();
        for id in caught_up {
            self.resume(id);
        }
    }

    /// Frees what nobody reads any more.
    fn drop_abandoned(&mut self) {
        let abandoned: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, active)| active.events.is_abandoned())
            .map(|(id, _)| *id)
            .collect();
        for id in abandoned {
            self.cancel(id);
        }
    }

    fn drop_expired(&mut self, now: Instant) {
        for id in self.scheduler.take_expired(now) {
            if let Some(mut active) = self.sequences.remove(&id) {
                let stage = if active.first_token.is_some() {
                    Stage::Execute
                } else {
                    Stage::Queue
                };
                self.note_end(now);
                active.fail(RequestError::DeadlineExceeded { stage });
            }
        }
    }

    fn run_step(
        mut self: Box<Self>,
        forward: &mut StepForward,
        step: &Step,
    ) -> Result<Box<Self>, Over> {
        let started = Instant::now();
        for row in &step.rows {
            if let Some(active) = self.sequences.get(&row.id) {
                active.events.note_started(started);
            }
        }
        let batch = self.pack(&step.rows);
        let packed_at = Instant::now();
        let output;
        (self, output) = self.run_watched(forward, &batch)?;
        let execute = packed_at.elapsed();
        match output {
            Ok(output) => {
                self.longest = self.longest.mul_f64(LINGERS).max(execute);
                self.count(&batch, started, packed_at, execute);
                self.scheduler.complete(step);
                self.take_outputs(&step.rows, &output);
                Ok(self)
            }
            Err(failed) => self.run_in_parts(forward, &step.rows, failed),
        }
    }

    /// Runs the model, while all else lies in the bay.
    fn run_watched(
        self: Box<Self>,
        forward: &mut StepForward,
        batch: &DecoderBatch,
    ) -> Result<(Box<Self>, Result<StepOutput, Failed>), Over> {
        let (bay, expected) = (self.bay(), self.longest);
        bay.lay(self, expected);
        let output = run_model(forward, batch);
        let runner = bay.take_back().ok_or(Over::Replaced)?;
        Ok((runner, output))
    }

    /// Runs rows that failed together: in halves where the device had no memory for all of them, else
    /// each alone, so that the one at fault is the only one to fail. Keys and values that the failed
    /// step has written are written again, to the same places.
    fn run_in_parts(
        mut self: Box<Self>,
        forward: &mut StepForward,
        rows: &[StepRow],
        failed: Failed,
    ) -> Result<Box<Self>, Over> {
        if let Some(lost) = failed.lost() {
            return Err(Over::Lost(self, lost));
        }
        let error = failed.error;
        if let [row] = rows {
            self.end(row.id, |active| active.fail(error));
            return Ok(self);
        }
        let size = if failed.kind == DeviceFailure::OutOfMemory {
            tracing::warn!(%error, rows = rows.len(), "no memory for a step; running it in halves");
            self.metrics.device.split_batches.inc();
            rows.len().div_ceil(2)
        } else {
            tracing::warn!(%error, rows = rows.len(), "step failed; running its rows one by one");
            self.metrics.isolated_batches.inc();
            1
        };
        for part in rows.chunks(size) {
            let batch = self.pack(part);
            let output;
            (self, output) = self.run_watched(forward, &batch)?;
            match output {
                Ok(output) => {
                    let rows = part.to_vec();
                    self.scheduler.complete(&Step { rows });
                    self.take_outputs(part, &output);
                }
                Err(failed) => self = self.run_in_parts(forward, part, failed)?,
            }
        }
        Ok(self)
    }

    fn pack(&self, rows: &[StepRow]) -> DecoderBatch {
        let mut batch = DecoderBatch::default();
        for row in rows {
            batch.tokens.extend_from_slice(self.scheduler.tokens(row));
            let end = batch.tokens.len() as u32;
            batch.logit_tokens.extend(end - row.logits..end);
            batch.rows.push(DecoderRow {
                first_position: row.first_position,
                tokens: row.tokens,
                blocks: self.scheduler.blocks(row).to_vec(),
            });
        }
        batch
    }

    /// Samples the rows that have logits, and takes what was sampled.
    fn take_outputs(&mut self, rows: &[StepRow], output: &StepOutput) {
        let mut sampled_rows = Vec::with_capacity(rows.len());
        let mut first = 0;
        for row in rows {
            let logits = first..first + row.logits as usize;
            first = logits.end;
            if logits.is_empty() {
                continue;
            }
            if let Some(active) = self.sequences.remove(&row.id) {
                sampled_rows.push(SampledRow::new(*row, logits, active));
            }
        }
        sample_rows(&self.scheduler, &mut sampled_rows, output);
        let now = Instant::now();
        for SampledRow {
            row,
            active,
            sampled,
            ..
        } in sampled_rows
        {
            self.sequences.insert(row.id, active);
            self.take_sampled(row.id, sampled, now);
        }
    }

    fn take_sampled(
        &mut self,
        id: SequenceId,
        sampled: Result<Option<Sampled>, RequestError>,
        now: Instant,
    ) {
        let Some(active) = self.sequences.get_mut(&id) else {
            return;
        };
        let outcome = match sampled {
            Ok(None) => return,
            Ok(Some(sampled)) => {
                let token = sampled.token;
                let (before, arrived) = (active.last_token, active.arrived);
                if before.is_none() {
                    let sequence = self.scheduler.sequence(id);
                    let cached = sequence.map_or(0, |sequence| sequence.shared_tokens() as u32);
                    active.events.note_cached(cached);
                    self.generation_metrics
                        .cached_tokens
                        .inc_by(u64::from(cached));
                }
                let outcome = active.take(sampled, now);
                match before {
                    None => {
                        let first = (now - arrived).as_secs_f64();
                        self.generation_metrics.time_to_first_token.observe(first);
                    }
                    Some(before) => {
                        let gap = (now - before).as_secs_f64();
                        self.generation_metrics.inter_token_latency.observe(gap);
                    }
                }
                self.generation_metrics.generated_tokens.inc();
                self.scheduler.append(id, token);
                outcome
            }
            Err(error) => Err(error),
        };
        self.conclude(id, outcome);
    }

    /// Ends a sequence that is done or failed; pauses one whose reader is behind.
    fn conclude(&mut self, id: SequenceId, outcome: Outcome) {
        match outcome {
            Err(error) => self.end(id, |active| active.fail(error)),
            Ok(Some(reason)) => self.end(id, |active| active.finish(reason)),
            Ok(None) => {
                if let Some(active) = self.sequences.get_mut(&id)
                    && active.events.must_pause()
                {
                    active.is_paused = true;
                    self.scheduler.pause(id);
                }
            }
        }
    }

    /// Takes a sequence out; `tell` sends its last event.
    fn end(&mut self, id: SequenceId, tell: impl FnOnce(&mut Active)) {
        self.scheduler.finish(id);
        if let Some(mut active) = self.sequences.remove(&id) {
            // First, so that whoever is told finds it gone.
            self.note_end(Instant::now());
            tell(&mut active);
        }
    }

    fn note_end(&mut self, now: Instant) {
        self.load.ended(1);
        let last = if self.sequences.is_empty() {
            // The time until somebody comes again says nothing about how long a turn takes.
            self.last_end.take()
        } else {
            self.last_end.replace(now)
        };
        if let Some(last) = last {
            self.load.observe_gap(now.saturating_duration_since(last));
        }
    }

    fn count(&self, batch: &DecoderBatch, started: Instant, packed_at: Instant, execute: Duration) {
        let rows = batch.rows.len();
        let metrics = &self.metrics;
        metrics.rows.inc_by(rows as u64);
        metrics.tokens.inc_by(batch.tokens.len() as u64);
        metrics.batch_rows.observe(rows as f64);
        metrics.batch_tokens.observe(batch.tokens.len() as f64);
        let longest = batch.rows.iter().map(|row| row.tokens).max().unwrap_or(0);
        metrics
            .work
            .observe_fill(rows, batch.tokens.len(), longest as usize, self.room);
        metrics.execute.observe(execute.as_secs_f64());
        self.statistics.record_batch(
            rows,
            &BatchTimes {
                input: packed_at - started,
                execute,
                output: Duration::ZERO,
            },
        );
    }

    fn publish(&self) {
        let counts = self.scheduler.counts();
        self.metrics.waiting_rows.set(counts.waiting as i64);
        let metrics = &self.generation_metrics;
        metrics.running.set(counts.running as i64);
        metrics.waiting.set(counts.waiting as i64);
        metrics.paused.set(counts.paused as i64);
        metrics.used_blocks.set(counts.blocks.used as i64);
        metrics.cached_blocks.set(counts.blocks.cached as i64);
        metrics.free_blocks.set(counts.blocks.free as i64);
        let before = metrics.preemptions.get();
        metrics.preemptions.inc_by(counts.preemptions - before);
    }
}

/// Runs the model; an error or a panic in it becomes a [`Failed`].
fn run_model(forward: &mut StepForward, batch: &DecoderBatch) -> Result<StepOutput, Failed> {
    // A step that panics leaves at most slots of its own rows half written; they are written
    // again or freed.
    let output = catch_unwind(AssertUnwindSafe(|| forward(batch)))
        .map_err(|panic| Failed::of_panic(panic_message(&*panic)))?
        .map_err(|error| Failed::of(&error))?;
    if output.statistics.len() == batch.logit_tokens.len() {
        return Ok(output);
    }
    Err(Failed::internal(format_args!(
        "the model gave {} rows of logits for {} tokens",
        output.statistics.len(),
        batch.logit_tokens.len()
    )))
}

fn refusal(refused: &Refused) -> RequestError {
    match refused {
        Refused::TooLong { prompt, new, limit } => RequestError::invalid(
            "max_tokens",
            format_args!("{new} after a prompt of {prompt} tokens"),
            format_args!("at most {limit} together"),
        ),
        // Admission reserves room and refuses empty prompts; these are faults of ours.
        other => RequestError::internal(other),
    }
}
