//! Load on a server. Closed loop: each client sends its next call when its last is answered. Open
//! loop: calls are due at times of their own; where the server falls behind, their latencies count
//! from when they were due, so that no slow moment hides the calls it held up.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, sleep_until, timeout},
};

use super::{
    arrivals::{Arrivals, Spacing},
    slo::Slo,
    tally::{Tally, Times, Window},
    target::{Connection, Refusal, Target},
    work::{Shape, Work},
};
use crate::cli::Failure;

/// How often the backlog is looked at in a measurement.
const LOOKS: u32 = 20;

/// A client whose call failed waits this long before its next, so that a server that refuses at once is
/// not asked without a pause.
const PAUSE: Duration = Duration::from_millis(20);

/// What sends.
#[derive(Debug, Clone, Copy)]
pub enum Load {
    /// So many clients.
    Closed {
        /// How many.
        clients: usize,
    },
    /// Calls at a rate.
    Open {
        /// Calls a second.
        rate: f64,
        /// How they are spread.
        spacing: Spacing,
        /// Of their times.
        seed: u64,
        /// Calls under way at most; those beyond wait, and the wait is in their latency.
        in_flight: usize,
    },
}

/// How long.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Before the measurement, not counted.
    pub warm_up: Duration,
    /// The measurement.
    pub measure: Duration,
    /// A call that takes longer has failed.
    pub timeout: Duration,
}

/// One measurement.
#[derive(Debug, Clone)]
pub struct Run {
    /// Who is asked.
    pub target: Arc<Target>,
    /// What for.
    pub work: Arc<Work>,
    /// The form of a call.
    pub shape: Shape,
    /// How long.
    pub timing: Timing,
    /// What a call is held against.
    pub slo: Slo,
}

impl Run {
    /// Puts `load` on the server.
    ///
    /// # Errors
    /// When a task of this process fails; what the server does wrong is in the tally.
    pub async fn measure(&self, load: Load) -> Result<Tally, Failure> {
        let window = Window {
            begin: Instant::now() + self.timing.warm_up,
            length: self.timing.measure,
        };
        let tally = Arc::new(Mutex::new(Tally::new(window, self.slo)));
        match load {
            Load::Closed { clients } => self.closed_loop(clients, window, &tally).await?,
            Load::Open {
                rate,
                spacing,
                seed,
                in_flight,
            } => {
                let arrivals = Arrivals::new(spacing, rate, seed);
                self.open_loop(arrivals, rate, in_flight, window, &tally)
                    .await?;
            }
        }
        let tally = Arc::into_inner(tally).ok_or("a client still runs")?;
        Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends one call, so that what is wrong with all of them is said before anything is measured.
    ///
    /// # Errors
    /// What the server says.
    pub async fn try_one(&self) -> Result<(), Failure> {
        let rows = self.work.take(self.shape);
        let answer = timeout(self.timing.timeout, async {
            let mut connection = self.target.connect(0).await?;
            connection.call(&self.target, rows).await
        });
        match answer.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(refusal)) => Err(format!("the first call failed: {refusal}").into()),
            Err(_) => Err("the first call has no answer within --timeout".into()),
        }
    }

    async fn closed_loop(
        &self,
        clients: usize,
        window: Window,
        tally: &Arc<Mutex<Tally>>,
    ) -> Result<(), Failure> {
        let mut running = JoinSet::new();
        for client in 0..clients {
            let run = self.clone();
            let tally = Arc::clone(tally);
            running.spawn(async move {
                let mut connection = None;
                while Instant::now() < window.end() {
                    let due = Instant::now();
                    let failed = run.call(&mut connection, client, due, &tally).await;
                    if failed {
                        sleep(PAUSE).await;
                    }
                }
            });
        }
        while let Some(client) = running.join_next().await {
            client?;
        }
        Ok(())
    }

    async fn open_loop(
        &self,
        arrivals: Arrivals,
        rate: f64,
        in_flight: usize,
        window: Window,
        tally: &Arc<Mutex<Tally>>,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        let state = Arc::new(OpenState {
            run: self.clone(),
            begin,
            window,
            places: Arc::new(Semaphore::new(in_flight)),
            idle: Mutex::new(Vec::new()),
            opened: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            next_due_us: AtomicU64::new(0),
            held_back: AtomicBool::new(false),
        });
        let watch = tokio::spawn(Arc::clone(&state).watch(rate, Arc::clone(tally)));
        let sender = {
            let (state, tally) = (Arc::clone(&state), Arc::clone(tally));
            // A thread of its own: the runtime's timer is no finer than a millisecond.
            tokio::task::spawn_blocking(move || state.send(arrivals, &tally, &Handle::current()))
        };
        let Sent { due, unsent } = sender.await?;
        watch.await?;
        // All places back: every call has ended.
        let all = u32::try_from(in_flight)?;
        drop(state.places.acquire_many(all).await?);
        let held_back = state.held_back.load(Ordering::Relaxed);
        lock(tally).close_open_loop(due, held_back, unsent);
        Ok(())
    }

    /// Sends a call and counts it; returns whether it failed. A connection that is none any more is
    /// left `None`.
    async fn call(
        &self,
        connection: &mut Option<Connection>,
        client: usize,
        due: Instant,
        tally: &Mutex<Tally>,
    ) -> bool {
        let rows = self.work.take(self.shape);
        let sent = Instant::now();
        let outcome = timeout(self.timing.timeout, async {
            let ready = match connection {
                Some(ready) => ready,
                None => connection.insert(self.target.connect(client).await?),
            };
            ready.call(&self.target, rows).await
        });
        let outcome = outcome.await.unwrap_or_else(|_| {
            let limit = self.timing.timeout.as_secs_f64();
            // What comes of it later is not to be taken for the next call's answer.
            Err(Refusal::broken(
                "TIMEOUT",
                format!("no answer within {limit} s"),
            ))
        });
        let done = Instant::now();
        let failed = outcome.is_err();
        if outcome.as_ref().is_err_and(|refusal| refusal.broken) {
            *connection = None;
        }
        lock(tally).record(Times { due, sent, done }, outcome);
        failed
    }
}

/// What the parts of an open loop share.
struct OpenState {
    run: Run,
    begin: Instant,
    window: Window,
    places: Arc<Semaphore>,
    /// Connections that no call uses; the latest used first, so that there are no more than needed.
    idle: Mutex<Vec<Connection>>,
    opened: AtomicUsize,
    under_way: AtomicUsize,
    /// When the next call is due, in µs from the beginning.
    next_due_us: AtomicU64,
    held_back: AtomicBool,
}

/// What an open loop has sent.
struct Sent {
    /// Calls that were due in the window.
    due: u64,
    /// Those that no place was free for until its end.
    unsent: u64,
}

impl OpenState {
    /// Lets every call leave when it is due, or as soon as there is a place for it. Blocks.
    fn send(self: Arc<Self>, arrivals: Arrivals, tally: &Arc<Mutex<Tally>>, io: &Handle) -> Sent {
        let mut sent = Sent { due: 0, unsent: 0 };
        for offset in arrivals {
            let due = self.begin + offset;
            if due >= self.window.end() {
                break;
            }
            let us = u64::try_from(offset.as_micros()).unwrap_or(u64::MAX);
            self.next_due_us.store(us, Ordering::Relaxed);
            let counts = due >= self.window.begin;
            sent.due += u64::from(counts);
            if let Some(wait) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(wait);
            }
            let Some(place) = self.place(io) else {
                sent.unsent += u64::from(counts);
                continue;
            };
            let state = Arc::clone(&self);
            let tally = Arc::clone(tally);
            self.under_way.fetch_add(1, Ordering::Relaxed);
            io.spawn(async move {
                let mut connection = lock(&state.idle).pop();
                let client = match connection {
                    Some(_) => 0,
                    None => state.opened.fetch_add(1, Ordering::Relaxed),
                };
                state.run.call(&mut connection, client, due, &tally).await;
                // Before the place is free, so that the next call finds it.
                lock(&state.idle).extend(connection);
                state.under_way.fetch_sub(1, Ordering::Relaxed);
                drop(tally);
                drop(place);
            });
        }
        self.next_due_us.store(u64::MAX, Ordering::Relaxed);
        sent
    }

    /// A place for a call; none when the measurement ends before there is one.
    fn place(&self, io: &Handle) -> Option<tokio::sync::OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        self.held_back.store(true, Ordering::Relaxed);
        let left = self.window.end().checked_duration_since(Instant::now())?;
        io.block_on(timeout(left, Arc::clone(&self.places).acquire_owned()))
            .ok()?
            .ok()
    }

    /// Notes at equal times of the window how many calls are due and not answered.
    async fn watch(self: Arc<Self>, rate: f64, tally: Arc<Mutex<Tally>>) {
        for look in 1..=LOOKS {
            sleep_until((self.window.begin + self.window.length * look / LOOKS).into()).await;
            let now_us = self.begin.elapsed().as_micros() as f64;
            let next_due_us = self.next_due_us.load(Ordering::Relaxed) as f64;
            // Those that could not leave yet, by the rate at which they come.
            let waiting = (now_us - next_due_us).max(0.0) / 1e6 * rate;
            let under_way = self.under_way.load(Ordering::Relaxed) as f64;
            lock(&tally).note_backlog(under_way + waiting);
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counts stay counts whoever panicked over them.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
