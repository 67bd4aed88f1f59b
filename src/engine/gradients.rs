//! Integrated gradients of one model: a thread of its own, beside the batches, that never has more than
//! one core and stands back while rows wait.
//!
//! They can't board the queue: what runs there is fused, and has no way back. So the line from the
//! baseline to the text is walked in pieces of some milliseconds; before each, the thread waits while the
//! model's queue has rows (at most `PATIENCE` a piece, so that it comes to an end under load, too), and
//! looks whether its caller is still there and in time. One text is explained at a time; up to
//! `MAX_WAITING` wait. The weights are read at the first and let go when nobody has asked for a while.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use super::panics::panic_message;
use crate::{
    error::{RequestError, Stage},
    models::{DifferentiableEncoder, ForwardError, Line},
};

/// Texts that wait to be explained.
const MAX_WAITING: usize = 16;
/// How long a piece may run, about.
const PIECE: Duration = Duration::from_millis(20);
/// How long a piece waits for rows that wait, at most.
const PATIENCE: Duration = Duration::from_millis(50);
/// Bytes of a piece, about.
const PIECE_BYTES: usize = 64 << 20;
/// How long the weights stay after the last text.
const KEEP: Duration = Duration::from_secs(300);

/// What is made of a point's outputs.
pub type Slope = Arc<dyn Fn(&[f32]) -> Vec<f32> + Send + Sync>;

/// Reads the weights; an error is told to whoever asked.
pub type LoadGradients = Box<dyn Fn() -> Result<DifferentiableEncoder, String> + Send>;

/// Whether the model's queue has rows.
pub type IsBusy = Box<dyn Fn() -> bool + Send>;

/// One text to integrate over.
#[derive(Clone)]
pub struct GradientWork {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub type_ids: Vec<u32>,
    /// The baseline's token ids, as many.
    pub baseline: Vec<u32>,
    /// Places on the line from the baseline (0) to the text (1), and what each counts.
    pub points: Vec<(f64, f64)>,
    /// How what is explained changes with the outputs.
    pub slope: Slope,
    /// When the answer is of no more use.
    pub deadline: Option<Instant>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Integrated {
    /// The model's outputs at the text: logits, or a vector that is not normalised.
    pub whole: Vec<f32>,
    /// The same at the baseline.
    pub base: Vec<f32>,
    /// Each token's share.
    pub shares: Vec<f64>,
    /// From the call to its first piece, and what pieces waited.
    pub queue: Duration,
    /// What the pieces ran.
    pub execute: Duration,
}

/// The thread's other end. Dropping it ends the thread after the text under way.
#[derive(Debug)]
pub struct GradientEngine {
    jobs: Sender<Job>,
    max_tokens: usize,
}

struct Job {
    work: GradientWork,
    asked: Instant,
    reply: oneshot::Sender<Result<Integrated, RequestError>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").finish_non_exhaustive()
    }
}

impl GradientEngine {
    /// Starts the thread; it takes texts of at most `max_tokens`, a point of which takes
    /// `point_bytes(tokens)`.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        name: &str,
        load: LoadGradients,
        is_busy: IsBusy,
        max_tokens: usize,
        point_bytes: impl Fn(usize) -> usize + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, inbox) = bounded(MAX_WAITING);
        let worker = Worker {
            inbox,
            load,
            is_busy,
            point_bytes: Box::new(point_bytes),
        };
        std::thread::Builder::new()
            .name(format!("gradients-{name}"))
            .spawn(move || worker.run())?;
        Ok(Self { jobs, max_tokens })
    }

    /// Tokens of a text at most: what one point of a longer one takes is more memory than may be.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Integrates over one text. Dropping the future ends it before its next piece.
    ///
    /// # Errors
    /// [`RequestError::Overloaded`] when too many wait, [`RequestError::DeadlineExceeded`], or what went
    /// wrong.
    pub async fn integrate(&self, work: GradientWork) -> Result<Integrated, RequestError> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            work,
            asked: Instant::now(),
            reply,
        };
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => RequestError::Overloaded {
                what: format!("{MAX_WAITING} texts wait for their gradients, no more may"),
                retry_after: Duration::from_millis(500),
            },
            TrySendError::Disconnected(_) => gone(),
        })?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> RequestError {
    RequestError::internal("the thread that finds gradients is gone")
}

struct Worker {
    inbox: Receiver<Job>,
    load: LoadGradients,
    is_busy: IsBusy,
    point_bytes: Box<dyn Fn(usize) -> usize + Send>,
}

/// What is there while texts come.
struct Loaded {
    model: DifferentiableEncoder,
    /// One thread: candle's products would otherwise take every core.
    alone: rayon::ThreadPool,
}

impl Worker {
    fn run(self) {
        let mut loaded = None;
        loop {
            match self.inbox.recv_timeout(KEEP) {
                Err(RecvTimeoutError::Timeout) => loaded = None,
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(job) => {
                    // The weights are never written after they are read, so a panic leaves nothing
                    // half done.
                    let integrated =
                        catch_unwind(AssertUnwindSafe(|| self.answer(&mut loaded, &job)));
                    let integrated = integrated.unwrap_or_else(|panic| {
                        let why = panic_message(&*panic);
                        Err(RequestError::internal(format_args!("gradients: {why}")))
                    });
                    // An error means that nobody waits for it any more.
                    let _ = job.reply.send(integrated);
                }
            }
        }
    }

    fn answer(&self, loaded: &mut Option<Loaded>, job: &Job) -> Result<Integrated, RequestError> {
        let work = &job.work;
        check(job)?;
        let Loaded { model, alone } = match loaded {
            Some(loaded) => loaded,
            None => loaded.insert(self.load()?),
        };
        let line = Line {
            ids: &work.ids,
            type_ids: &work.type_ids,
            baseline: &work.baseline,
        };
        let failed = |error: ForwardError| {
            RequestError::internal(format_args!("gradients can't be found: {error}"))
        };
        let mut waited = job.asked.elapsed() + self.stand_back(job)?;
        let began = Instant::now();
        let mut ends = alone
            .install(|| model.outputs(&line, &[0.0, 1.0]))
            .map_err(failed)?
            .into_iter();
        let mut execute = began.elapsed();
        let (base, whole) = (ends.next(), ends.next());
        let most = (PIECE_BYTES / (self.point_bytes)(work.ids.len()).max(1)).max(1);
        let mut shares = vec![0.0; work.ids.len()];
        let (mut rest, mut next) = (work.points.as_slice(), 1);
        while !rest.is_empty() {
            waited += self.stand_back(job)?;
            let (piece, after) = rest.split_at(next.min(rest.len()));
            rest = after;
            let began = Instant::now();
            let places: Vec<f64> = piece.iter().map(|point| point.0).collect();
            let slope = |outputs: &[f32]| (work.slope)(outputs);
            let found = alone
                .install(|| model.shares(&line, &places, &slope))
                .map_err(failed)?;
            for ((_, weight), found) in piece.iter().zip(found) {
                for (share, found) in shares.iter_mut().zip(found) {
                    *share += weight * f64::from(found);
                }
            }
            let ran = began.elapsed();
            execute += ran;
            let fit = PIECE.as_secs_f64() * piece.len() as f64 / ran.as_secs_f64().max(1e-6);
            next = (fit as usize).clamp(1, most);
        }
        if shares.iter().any(|share: &f64| !share.is_finite()) {
            return Err(RequestError::internal("a gradient is not finite"));
        }
        Ok(Integrated {
            whole: whole.unwrap_or_default(),
            base: base.unwrap_or_default(),
            shares,
            queue: waited,
            execute,
        })
    }

    fn load(&self) -> Result<Loaded, RequestError> {
        let began = Instant::now();
        let model = (self.load)().map_err(|error| {
            RequestError::internal(format_args!(
                "the weights can't be read for gradients: {error}"
            ))
        })?;
        let alone = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(|_| "gradients".to_owned())
            .build()
            .map_err(|error| RequestError::internal(format_args!("no thread: {error}")))?;
        tracing::info!(took = ?began.elapsed(), "weights are read for gradients");
        Ok(Loaded { model, alone })
    }

    /// Waits while the model has rows waiting, a while at most; returns how long.
    fn stand_back(&self, job: &Job) -> Result<Duration, RequestError> {
        let began = Instant::now();
        loop {
            check(job)?;
            let waited = began.elapsed();
            if waited >= PATIENCE || !(self.is_busy)() {
                return Ok(waited);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether a text's caller is there and in time.
fn check(job: &Job) -> Result<(), RequestError> {
    let late = job
        .work
        .deadline
        .is_some_and(|deadline| Instant::now() >= deadline);
    if late || job.reply.is_closed() {
        return Err(RequestError::DeadlineExceeded {
            stage: Stage::Queue,
        });
    }
    Ok(())
}
