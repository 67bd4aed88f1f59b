//! The async world's end of a generation engine: submit sequences, see how busy it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam::channel::{Sender, bounded};

use super::{
    hung::watch_runner,
    load::Load,
    messages::{Boarding, Command, StepForward},
    runner::Runner,
    sequence::SequenceWork,
    stream::{SequenceStream, stream},
};
use crate::{
    engine::{
        Departure,
        recovery::{Health, Supervision},
    },
    error::RequestError,
    generation::{OptionsError, Scheduler, SchedulerOptions, SequenceId},
    telemetry::{GenerationMetrics, ModelMetrics, ModelStatistics},
};

/// How a generation engine runs.
#[derive(Debug, Clone)]
pub struct GenerationOptions {
    /// Name of the model, for thread names and logs.
    pub name: String,
    /// What a step may hold, and the cache.
    pub scheduler: SchedulerOptions,
    /// Where steps are counted.
    pub metrics: ModelMetrics,
    /// Where tokens are counted.
    pub generation_metrics: GenerationMetrics,
    /// Where the steps' times are summed.
    pub statistics: Arc<ModelStatistics>,
}

/// Why an engine can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The scheduler's options don't go together.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The system refused a thread.
    #[error("can't start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running engine. Dropping it lets its sequences end, and then ends its thread.
#[derive(Debug)]
pub struct GenerationEngine {
    commands: Sender<Command>,
    next_id: AtomicU64,
    load: Arc<Load>,
    health: Arc<Health>,
}

impl GenerationEngine {
    /// Starts the runner over `forward`; a device that is lost stays so.
    ///
    /// # Errors
    /// [`StartError`] when the options contradict each other or there is no thread to be had.
    pub fn start(options: GenerationOptions, forward: StepForward) -> Result<Self, StartError> {
        Self::start_over(options, forward, Supervision::default())
    }

    /// Starts the runner over `forward`; `supervision` is for when it is lost.
    ///
    /// # Errors
    /// As [`GenerationEngine::start`].
    pub fn start_over(
        options: GenerationOptions,
        forward: StepForward,
        supervision: Supervision<StepForward>,
    ) -> Result<Self, StartError> {
        let scheduler = Scheduler::new(options.scheduler.clone())?;
        let load = Arc::new(Load::new(
            options.scheduler.max_running,
            options.scheduler.max_waiting,
        ));
        // A sequence sends its boarding, a cancellation, and one resumption at a time.
        let (commands, inbox) = bounded(3 * load.most());
        let model = options.name.clone();
        let name = format!("generate-{model}");
        let health = Arc::new(Health::new(
            1,
            options.metrics.device.clone(),
            supervision.changed,
        ));
        let (own_health, own_load) = (Arc::clone(&health), Arc::clone(&load));
        let runner = Box::new(Runner::new(
            scheduler,
            supervision.recovery,
            own_health,
            inbox,
            own_load,
            options,
        ));
        if let Some(watchdog) = supervision.watchdog {
            watch_runner(&model, runner.bay(), watchdog)?;
        }
        std::thread::Builder::new()
            .name(name)
            .spawn(move || runner.run(forward))?;
        Ok(Self {
            commands,
            next_id: AtomicU64::new(0),
            load,
            health,
        })
    }

    /// Puts sequences in line, all or none. Each stream ends with [`super::SequenceEvent::Finished`]
    /// or [`super::SequenceEvent::Failed`], whatever happens; dropping it cancels its sequence.
    ///
    /// # Errors
    /// [`RequestError::Overloaded`] when they don't fit, [`RequestError::DeadlineUnreachable`] when
    /// their turn won't come before the deadline, [`RequestError::DeviceLost`] when the device is.
    pub fn submit(
        &self,
        work: Vec<SequenceWork>,
        departure: &Departure,
        now: Instant,
    ) -> Result<Vec<SequenceStream>, RequestError> {
        self.health.check()?;
        let count = work.len();
        self.check_deadline(departure.deadline, now)?;
        self.load
            .reserve(count)
            .map_err(|alive| self.overloaded(alive))?;
        let first = self.next_id.fetch_add(count as u64, Relaxed);
        let mut streams = Vec::with_capacity(count);
        for (work, id) in work.into_iter().zip(first..) {
            let id = SequenceId::new(id);
            let (events, stream) = stream(id, self.commands.clone());
            let boarding = Boarding {
                id,
                work,
                departure: departure.clone(),
                arrived: now,
                events,
            };
            if self
                .commands
                .try_send(Command::Board(Box::new(boarding)))
                .is_err()
            {
                // What was sent before is cancelled as its streams drop; the rest was not accepted.
                self.load.ended(count - streams.len());
                return Err(self.overloaded(self.load.alive()));
            }
            streams.push(stream);
        }
        Ok(streams)
    }

    /// Why its device is lost, if it is.
    pub fn lost(&self) -> Option<String> {
        self.health.lost()
    }

    /// Whether sequences wait for others to end.
    pub fn is_busy(&self) -> bool {
        self.load.is_full()
    }

    /// Sequences accepted and not ended.
    pub fn sequences(&self) -> usize {
        self.load.alive()
    }

    fn check_deadline(&self, deadline: Option<Instant>, now: Instant) -> Result<(), RequestError> {
        let Some(deadline) = deadline else {
            return Ok(());
        };
        let left = deadline.saturating_duration_since(now);
        let needed = self.load.expected_wait();
        if needed <= left {
            return Ok(());
        }
        Err(RequestError::DeadlineUnreachable {
            needed,
            left,
            retry_after: needed.saturating_sub(left),
        })
    }

    fn overloaded(&self, alive: usize) -> RequestError {
        RequestError::Overloaded {
            what: format!("{alive} sequences run or wait, {} may", self.load.most()),
            // Half of the line gone makes room; never 0, which would invite a busy loop.
            retry_after: (self.load.expected_wait() / 2).max(Duration::from_millis(100)),
        }
    }
}
