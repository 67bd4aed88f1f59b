//! The async world's end of an engine: submit rows, see how busy it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam::channel::{Sender, bounded, unbounded};

use super::{
    dispatcher::{Dispatcher, Dock},
    executor::Executor,
    hung::Replacing,
    load::Load,
    messages::{CancelHandle, Command, Forward, ids},
    row::{Answers, Departure, RowWork},
};
use crate::{
    batching::{BatchPolicy, Priority, Row},
    engine::recovery::{Health, Supervision},
    error::RequestError,
    telemetry::{ModelMetrics, ModelStatistics},
};

/// How an engine runs.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Name of the model, for thread names and logs.
    pub name: String,
    /// When a batch leaves.
    pub policy: BatchPolicy,
    /// Executors that run side by side.
    pub instances: usize,
    /// Where the batches are counted.
    pub metrics: ModelMetrics,
    /// Where the batches' times are summed.
    pub statistics: Arc<ModelStatistics>,
}

/// A running engine. Dropping it lets the rows that wait be run, and then ends its threads.
#[derive(Debug)]
pub struct Engine {
    commands: Sender<Command>,
    next_id: AtomicU64,
    load: Arc<Load>,
    health: Arc<Health>,
}

impl Engine {
    /// Starts the dispatcher and `instances` executors over one `forward`.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(options: EngineOptions, forward: &Forward) -> std::io::Result<Self> {
        let forwards = vec![Arc::clone(forward); options.instances.max(1)];
        Self::start_over(options, forwards, &Supervision::default())
    }

    /// Starts the dispatcher and an executor over each of `forwards`; `supervision` is for those that
    /// are lost. `options.instances` says nothing here.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start_over(
        options: EngineOptions,
        forwards: Vec<Forward>,
        supervision: &Supervision<Forward>,
    ) -> std::io::Result<Self> {
        let instances = forwards.len().max(1);
        let health = Arc::new(Health::new(
            forwards.len(),
            options.metrics.device.clone(),
            supervision.changed.clone(),
        ));
        let load = Arc::new(Load {
            waiting_rows: AtomicUsize::new(0),
            max_waiting_rows: options.policy.max_waiting_rows,
            backlog_ns: std::array::from_fn(|_| AtomicU64::new(0)),
            fixed_ns: AtomicU64::new(0),
            token_ns: AtomicU64::new(0),
        });
        // One command carries at least one reserved row; the other half is for cancellations.
        let (commands, inbox) = bounded(2 * options.policy.max_waiting_rows);
        // Never full: at most one batch an instance and one staged are out at a time.
        let (batches, staged) = bounded(instances + 1);
        // A few words an instance and batch.
        let (reports, news) = unbounded();
        let (open, closing) = bounded(0);
        let executor = Executor {
            instance: 0,
            name: Arc::from(options.name.as_str()),
            room: (options.policy.max_rows, options.policy.max_tokens),
            batches: staged.clone(),
            reports,
            closing,
            recovery: supervision.recovery.clone(),
            metrics: options.metrics.clone(),
            statistics: Arc::clone(&options.statistics),
            load: Arc::clone(&load),
            bay: Arc::default(),
        };
        let mut bays = Vec::with_capacity(forwards.len());
        for (instance, forward) in forwards.into_iter().enumerate() {
            let executor = executor.for_instance(instance);
            bays.push(Arc::clone(&executor.bay));
            executor.start(move |executor| executor.run(forward))?;
        }
        if let Some(watchdog) = supervision.watchdog.clone() {
            let replacing = Replacing {
                executor,
                health: Arc::clone(&health),
                watchdog,
            };
            replacing.start(bays)?;
        }
        let dispatcher = Dispatcher::new(
            options.policy,
            Arc::clone(&health),
            inbox,
            news,
            Dock {
                batches,
                staged,
                _open: open,
            },
            Arc::clone(&load),
            options.metrics,
        );
        std::thread::Builder::new()
            .name(format!("board-{}", options.name))
            .spawn(move || dispatcher.run())?;
        Ok(Self {
            commands,
            next_id: AtomicU64::new(0),
            load,
            health,
        })
    }

    /// Puts the rows of one request in line. Each is answered, whatever happens; dropping the
    /// [`Answers`] cancels those that still wait.
    ///
    /// # Errors
    /// [`RequestError::Overloaded`] when they don't fit in the queue,
    /// [`RequestError::DeadlineUnreachable`] when the work ahead of them takes too long,
    /// [`RequestError::DeviceLost`] when no instance is left to run them. Nothing is in line then.
    pub fn submit(
        &self,
        rows: Vec<(usize, RowWork)>,
        departure: &Departure,
        now: Instant,
    ) -> Result<Answers, RequestError> {
        self.health.check()?;
        let count = rows.len();
        let tokens: usize = rows.iter().map(|(_, work)| work.ids.len()).sum();
        self.check_deadline(tokens, departure, now)?;
        self.load
            .reserve(count)
            .map_err(|waiting| self.full(waiting))?;

        let first = self.next_id.fetch_add(count as u64, Relaxed);
        let (rows, mut answers) = Answers::channel(rows, departure.trace.as_ref());
        let rows = rows
            .into_iter()
            .zip(ids(first, count))
            .map(|(row, id)| Row {
                id,
                tokens: row.work.ids.len() as u32,
                arrived: now,
                deadline: departure.deadline,
                priority: departure.priority,
                tenant: Arc::clone(&departure.tenant),
                payload: row,
            })
            .collect();
        if self.commands.try_send(Command::Board(rows)).is_err() {
            // Full of cancellations, or the dispatcher is gone; the rows were not accepted.
            self.load.waiting_rows.fetch_sub(count, Relaxed);
            return Err(self.full(self.load.max_waiting_rows));
        }
        answers.cancel_with(CancelHandle {
            commands: self.commands.clone(),
            first,
            count,
        });
        Ok(answers)
    }

    /// Tells the run time model how long a batch outside the queue took, as warm-up does.
    pub fn teach(&self, tokens: usize, sum_len_squared: u64, elapsed: Duration) {
        let _ = self.commands.try_send(Command::Teach {
            tokens,
            sum_len_squared,
            elapsed,
        });
    }

    /// Why no instance is left to run rows, if none is.
    pub fn lost(&self) -> Option<String> {
        self.health.lost()
    }

    /// Rows accepted and not yet in a batch.
    pub fn waiting_rows(&self) -> usize {
        self.load.waiting_rows.load(Relaxed)
    }

    /// Predicted time until everything that waits and runs now is done.
    pub fn backlog(&self) -> Duration {
        self.backlog_before(Priority::LOW)
    }

    /// Predicted time until everything is done that a row of `priority` boards behind.
    fn backlog_before(&self, priority: Priority) -> Duration {
        Duration::from_nanos(self.load.backlog_ns[priority.level()].load(Relaxed))
    }

    /// Predicted share of a batch's run time that one row of `tokens` has, among `rows` alike.
    pub fn predict_row(&self, tokens: usize, rows: usize) -> Duration {
        let coefficient = |bits: &AtomicU64| f64::from_bits(bits.load(Relaxed));
        let fixed = coefficient(&self.load.fixed_ns) / rows.max(1) as f64;
        let nanoseconds = fixed + coefficient(&self.load.token_ns) * tokens as f64;
        Duration::from_nanos(nanoseconds.max(0.0) as u64)
    }

    fn check_deadline(
        &self,
        tokens: usize,
        departure: &Departure,
        now: Instant,
    ) -> Result<(), RequestError> {
        let Some(deadline) = departure.deadline else {
            return Ok(());
        };
        let left = deadline.saturating_duration_since(now);
        let own = self.load.predict(tokens);
        let backlog = self.backlog_before(departure.priority);
        let needed = backlog + own;
        if needed <= left {
            return Ok(());
        }
        Err(RequestError::DeadlineUnreachable {
            needed,
            left,
            retry_after: needed.saturating_sub(left),
        })
    }

    fn full(&self, waiting: usize) -> RequestError {
        RequestError::Overloaded {
            what: format!("{waiting} rows wait, {} may", self.load.max_waiting_rows),
            // Half of the backlog gone makes room; never 0, which would invite a busy loop.
            retry_after: (self.backlog() / 2).max(Duration::from_millis(10)),
        }
    }
}
