//! Runs the rows of the jobs in line: some jobs side by side, their rows through the windows, their
//! answers committed in groups: all that came while the last group was being written are the next.
//!
//! A shutdown drops what is in flight; it is run again after the next start.

use std::{
    collections::{HashSet, VecDeque},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};

use super::{
    database::FULL_RETRY,
    handle::{Jobs, off_thread, until},
    id::{JobId, now_ms},
    job::RowEnd,
    lanes::Lanes,
    record::{JobRecord, JobState, Unrun},
    row::{RowWork, RunEnd, RunRow},
    store::{Live, Store},
    validate::validate,
};
use crate::error::RequestError;

/// Bytes of rows that a job reads ahead.
const READ_AHEAD_BYTES: usize = 8 << 20;

/// Rows of one job that are in flight or have answers not yet committed, in windows: one runs, one
/// waits to enter.
const WINDOWS_AHEAD: usize = 2;

/// Pauses before a row is tried again that is not told when to: each twice the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A job all of whose rows wait for so long makes room for another that is in line.
const STALLED: Duration = Duration::from_secs(5);

/// How often what need not be kept any more is looked for.
const CLEAN_EVERY: Duration = Duration::from_secs(60);

/// Runs jobs until the server closes.
pub struct Runner {
    shared: Arc<Shared>,
    closing: watch::Receiver<bool>,
}

struct Shared {
    store: Arc<Store>,
    run: RunRow,
    lanes: Lanes,
    /// Jobs in line that no task runs.
    in_line: AtomicUsize,
}

/// How the task of a job left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Nothing more is to be done.
    Ended,
    /// Its rows wait for something, and other jobs are in line.
    Stalled,
    /// The store failed it.
    Failed,
    /// The server is closing.
    Closing,
}

impl Runner {
    /// A runner of what `jobs` has in line.
    pub fn new(jobs: &Jobs, run: RunRow, closing: watch::Receiver<bool>) -> Self {
        let config = jobs.config();
        Self {
            shared: Arc::new(Shared {
                store: Arc::clone(&jobs.store),
                run,
                lanes: Lanes::new(config.window, config.generate_window),
                in_line: AtomicUsize::new(0),
            }),
            closing,
        }
    }

    /// Runs jobs until the server closes; answers that are here by then are kept.
    pub async fn run(self) {
        let store = &self.shared.store;
        let mut changed = store.watch();
        let mut closing = self.closing.clone();
        let mut clean = tokio::time::interval(CLEAN_EVERY);
        let mut known: HashSet<JobId> = HashSet::new();
        let mut line: VecDeque<JobId> = VecDeque::new();
        let mut tasks: JoinSet<(JobId, Left)> = JoinSet::new();
        let (back, mut coming_back) = mpsc::unbounded_channel();
        while !*closing.borrow() {
            for job in store.jobs() {
                let is_ours = job.state != JobState::Validating || job.batch.is_some();
                if is_ours && !job.state.has_ended() && known.insert(job.id) {
                    line.push_back(job.id);
                }
            }
            // One that must end has nothing to run, and need not wait for its turn.
            line.retain(|&id| {
                let waits = store
                    .job(id)
                    .is_ok_and(|job| must_end(&job, now_ms()).is_none());
                if !waits {
                    tasks.spawn(self.job_task(id));
                }
                waits
            });
            while tasks.len() < store.config.max_running
                && let Some(id) = line.pop_front()
            {
                tasks.spawn(self.job_task(id));
            }
            self.shared.in_line.store(line.len(), Relaxed);
            tokio::select! {
                () = closed(&mut closing) => break,
                _ = changed.changed() => {}
                Some(id) = coming_back.recv() => line.push_back(id),
                Some(left) = tasks.join_next() => match left {
                    Ok((id, Left::Ended)) => { known.remove(&id); }
                    Ok((id, Left::Stalled)) => line.push_back(id),
                    Ok((id, Left::Failed)) => {
                        let back = back.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(FULL_RETRY).await;
                            let _ = back.send(id);
                        });
                    }
                    Ok((_, Left::Closing)) => {}
                    Err(error) => tracing::error!(%error, "a job's task died; it goes on after a restart"),
                },
                _ = clean.tick() => {
                    let store = Arc::clone(store);
                    if let Err(error) = off_thread(move || store.delete_old(now_ms())).await {
                        tracing::warn!(%error, "old jobs can't be deleted");
                    }
                }
            }
        }
        // Each sees that the server is closing and keeps the answers it has.
        while tasks.join_next().await.is_some() {}
    }

    fn job_task(&self, id: JobId) -> impl Future<Output = (JobId, Left)> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        let closing = self.closing.clone();
        async move {
            let store = Arc::clone(&shared.store);
            let left = match run_job(shared, id, closing).await {
                Ok(left) => left,
                // Deleted while it was in line.
                Err(RequestError::NotFound { .. }) => Left::Ended,
                Err(error) => {
                    tracing::warn!(job = %id, %error, "the job waits");
                    let live = Live {
                        waiting_for: error.to_string(),
                        ..Live::default()
                    };
                    store.set_live(id, live);
                    return (id, Left::Failed);
                }
            };
            store.clear_live(id);
            (id, left)
        }
    }
}

async fn run_job(
    shared: Arc<Shared>,
    id: JobId,
    mut closing: watch::Receiver<bool>,
) -> Result<Left, RequestError> {
    if shared.store.job(id)?.state == JobState::Validating {
        let store = Arc::clone(&shared.store);
        off_thread(move || validate(&store, id)).await?;
    }
    let job = shared.store.job(id)?;
    if job.state.has_ended() {
        return Ok(Left::Ended);
    }
    if job.state == JobState::Queued {
        let store = Arc::clone(&shared.store);
        off_thread(move || store.start_job(id)).await?;
    }
    let mut changed = shared.store.watch();
    let mut running = RunningJob::new(Arc::clone(&shared), &job);
    loop {
        let job = shared.store.job(id)?;
        if let Some(unrun) = must_end(&job, now_ms()) {
            running.flush().await?;
            return give_up(&shared.store, id, unrun).await;
        }
        running.launch(&job).await?;
        if running.is_idle() && shared.store.job(id)?.waiting_rows() > 0 {
            running.rewind();
            continue;
        }
        if running.is_idle() {
            let store = Arc::clone(&shared.store);
            off_thread(move || store.end_job(id, None)).await?;
            let job = shared.store.job(id)?;
            tracing::info!(job = %id, rows = job.total, failed = job.failed, "job completed");
            return Ok(Left::Ended);
        }
        let expiry = tokio::time::sleep(until(job.expires_ms, now_ms()));
        tokio::select! {
            biased;
            () = closed(&mut closing) => {
                running.flush().await?;
                return Ok(Left::Closing);
            }
            result = committed(&mut running.committing) => running.has_committed(result),
            Some((row, end)) = running.in_flight.next() => running.take(row, end),
            _ = changed.changed() => {}
            () = running.pause.wait() => {}
            () = expiry => {}
            () = tokio::time::sleep(STALLED) => {}
        }
        if running.is_stalled() {
            return Ok(Left::Stalled);
        }
        running.tell();
    }
}

/// Why a job must end at this time although rows of it wait.
pub(super) fn must_end(job: &JobRecord, now_ms: u64) -> Option<Unrun> {
    if job.state == JobState::Cancelling {
        return Some(Unrun::Cancelled);
    }
    (job.expires_ms <= now_ms && job.waiting_rows() > 0).then_some(Unrun::Expired)
}

async fn give_up(store: &Arc<Store>, id: JobId, unrun: Unrun) -> Result<Left, RequestError> {
    loop {
        let rows = Arc::clone(store);
        if !off_thread(move || rows.give_up_rows(id, unrun)).await? {
            break;
        }
    }
    let ending = Arc::clone(store);
    off_thread(move || ending.end_job(id, Some(unrun))).await?;
    let job = store.job(id)?;
    tracing::info!(job = %id, rows = job.total, not_run = job.unrun, ?unrun, "job ended");
    Ok(Left::Ended)
}

type InFlight = Pin<Box<dyn Future<Output = (u32, RunEnd)> + Send>>;

/// Answers that were written, or not, and why not.
type Written = (Vec<RowEnd>, Result<(), RequestError>);

/// A job whose rows are being run.
struct RunningJob {
    shared: Arc<Shared>,
    id: JobId,
    /// Rows before it are in flight or have ended.
    next: u32,
    read_ahead: VecDeque<RowWork>,
    /// Whether there is nothing more to read.
    all_read: bool,
    in_flight: FuturesUnordered<InFlight>,
    /// Answers that are not being written yet.
    answered: Vec<RowEnd>,
    committing: Option<JoinHandle<Written>>,
    /// How many are being written.
    being_written: usize,
    /// Until when nothing is written, the disk being full.
    pause: Pause,
    /// Rows in flight that wait to be tried again, and why the last one does.
    waiting: Arc<Waiting>,
    began: Instant,
    ended_before: u32,
    last_end: Instant,
}

#[derive(Default)]
struct Waiting {
    rows: AtomicUsize,
    reason: std::sync::Mutex<String>,
}

impl Waiting {
    fn set_reason(&self, now: &str) {
        let mut reason = self
            .reason
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *reason != now {
            now.clone_into(&mut reason);
        }
    }

    fn reason(&self) -> String {
        self.reason
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

/// A time before which something is not tried again.
#[derive(Default)]
struct Pause(Option<tokio::time::Instant>);

impl Pause {
    async fn wait(&mut self) {
        match self.0 {
            Some(until) => {
                tokio::time::sleep_until(until).await;
                self.0 = None;
            }
            None => std::future::pending().await,
        }
    }
}

impl RunningJob {
    fn new(shared: Arc<Shared>, job: &JobRecord) -> Self {
        Self {
            shared,
            id: job.id,
            next: 0,
            read_ahead: VecDeque::new(),
            all_read: false,
            in_flight: FuturesUnordered::new(),
            answered: Vec::new(),
            committing: None,
            being_written: 0,
            pause: Pause::default(),
            waiting: Arc::default(),
            began: Instant::now(),
            ended_before: job.ended_rows(),
            last_end: Instant::now(),
        }
    }

    /// Reads rows and starts them, as many as may be under way.
    async fn launch(&mut self, job: &JobRecord) -> Result<(), RequestError> {
        self.commit();
        loop {
            let under_way = self.in_flight.len() + self.answered.len() + self.being_written;
            if under_way >= self.most_under_way() || self.pause.0.is_some() {
                return Ok(());
            }
            if self.read_ahead.is_empty() {
                if self.all_read {
                    return Ok(());
                }
                self.read(job).await?;
                continue;
            }
            if let Some(row) = self.read_ahead.pop_front() {
                self.next = row.index + 1;
                self.in_flight.push(self.start(row));
            }
        }
    }

    fn most_under_way(&self) -> usize {
        self.shared.store.config.window as usize * WINDOWS_AHEAD
    }

    async fn read(&mut self, job: &JobRecord) -> Result<(), RequestError> {
        let (store, job, from) = (Arc::clone(&self.shared.store), job.clone(), self.next);
        let most = self.most_under_way();
        let rows =
            off_thread(move || store.rows_to_run(&job, from, most, READ_AHEAD_BYTES)).await?;
        self.all_read = rows.is_empty();
        self.read_ahead = rows.into();
        Ok(())
    }

    /// Runs a row, again and again until it has an answer.
    fn start(&self, row: RowWork) -> InFlight {
        let (shared, waiting) = (Arc::clone(&self.shared), Arc::clone(&self.waiting));
        Box::pin(async move {
            let mut pause = RETRY.0;
            loop {
                let permit = shared.lanes.enter(&row).await;
                let running = AssertUnwindSafe((shared.run)(row.clone())).catch_unwind();
                let end = running.await.unwrap_or_else(|_| RunEnd::Answered {
                    failed: true,
                    status: 500,
                    body: bytes::Bytes::new(),
                });
                drop(permit);
                let RunEnd::Later { reason, after } = end else {
                    return (row.index, end);
                };
                waiting.set_reason(&reason);
                let _waits = Counted::new(&waiting.rows);
                tokio::time::sleep(after.unwrap_or(pause).min(RETRY.1)).await;
                pause = (pause * 2).min(RETRY.1);
            }
        })
    }

    fn take(&mut self, row: u32, end: RunEnd) {
        if let Some(end) = RowEnd::of(row, end) {
            self.answered.push(end);
            self.last_end = Instant::now();
        }
    }

    /// Begins to write the answers that are here, unless some are being written.
    fn commit(&mut self) {
        if self.committing.is_some() || self.answered.is_empty() || self.pause.0.is_some() {
            return;
        }
        let ends = std::mem::take(&mut self.answered);
        self.being_written = ends.len();
        let (store, id) = (Arc::clone(&self.shared.store), self.id);
        self.committing = Some(tokio::task::spawn_blocking(move || {
            let result = store.commit_results(id, &ends);
            (ends, result)
        }));
    }

    fn has_committed(&mut self, written: Option<Written>) {
        self.committing = None;
        self.being_written = 0;
        let Some((ends, Err(error))) = written else {
            return;
        };
        tracing::warn!(job = %self.id, %error, "answers can't be kept; trying again");
        self.waiting.set_reason(&error.to_string());
        // They are kept in memory, as far as rows may be under way, and no more are started.
        self.answered.splice(0..0, ends);
        self.pause.0 = Some(tokio::time::Instant::now() + FULL_RETRY);
    }

    /// Drops what is in flight and writes every answer that is here. One that can't be written is
    /// lost with this task; its row is run again.
    async fn flush(&mut self) -> Result<(), RequestError> {
        while let Some((row, end)) = self.in_flight.next().now_or_never().flatten() {
            self.take(row, end);
        }
        self.in_flight.clear();
        self.pause.0 = None;
        loop {
            self.commit();
            if self.committing.is_none() {
                return Ok(());
            }
            let written = committed(&mut self.committing).await;
            self.committing = None;
            if let Some((_, result)) = written {
                result?;
            }
        }
    }

    /// Whether nothing is under way and nothing more is to be read.
    fn is_idle(&self) -> bool {
        self.all_read
            && self.read_ahead.is_empty()
            && self.in_flight.is_empty()
            && self.answered.is_empty()
            && self.committing.is_none()
    }

    /// Begins again from the first row that has no result: answers were lost on their way to disk.
    fn rewind(&mut self) {
        self.next = 0;
        self.all_read = false;
    }

    /// Whether all that is under way waits, has waited for long, and others are in line.
    fn is_stalled(&self) -> bool {
        let waiting = self.waiting.rows.load(Relaxed);
        self.answered.is_empty()
            && self.committing.is_none()
            && waiting > 0
            && waiting == self.in_flight.len()
            && self.pause.0.is_none()
            && self.last_end.elapsed() >= STALLED
            && self.shared.in_line.load(Relaxed) > 0
    }

    /// Tells how the job comes along, where that has changed.
    fn tell(&self) {
        let waits = self.waiting.rows.load(Relaxed) > 0 || self.pause.0.is_some();
        let seconds = self.began.elapsed().as_secs_f64();
        let ended = self
            .shared
            .store
            .job(self.id)
            .map_or(0, |job| job.ended_rows().saturating_sub(self.ended_before));
        let now = Live {
            waiting_for: if waits {
                self.waiting.reason()
            } else {
                String::new()
            },
            rows_per_second: f64::from(ended) / seconds.max(0.1),
        };
        let before = self.shared.store.live(self.id);
        if before.waiting_for != now.waiting_for {
            self.shared.store.set_live(self.id, now);
        } else if before != now {
            self.shared.store.note_live(self.id, now);
        }
    }
}

/// Waits until what is being written is; `None` when the thread that wrote died.
async fn committed(committing: &mut Option<JoinHandle<Written>>) -> Option<Written> {
    match committing {
        Some(writing) => writing.await.ok(),
        None => std::future::pending().await,
    }
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is closed enough.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Counts one more for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
