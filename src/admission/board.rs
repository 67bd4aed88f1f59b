//! A request's way in: check the rows, have them tokenized, put them in line.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{
    Call, CallContext, Escalation, arriving::Arriving, cascade::Climb, explain::MAX_EXPLAINING,
    mirror::RowTap, unsure::sureness,
};
use crate::{
    config::{Task, server::LimitsConfig},
    engine::{Departure, RowAnswer, RowWork},
    error::{RequestError, Stage},
    models::RowOutput,
    quality::drift::Anomalies,
    repository::{DriftWatch, Repository, Runner, SeenRow, ServedModel},
    telemetry::{RequestTimes, request_log::RequestLog},
    text::{CpuPool, EncodeError, EncodedRow, PoolFull, RowInput, TextEncoder},
};

/// Rows tokenized in one go by one thread: enough to make the hop cheap, few enough that a large
/// request is spread over the threads.
const ROWS_PER_JOB: usize = 8;

/// Requests of no more text than this are tokenized where they are: that takes some 50 µs, less than
/// handing them to another thread and back.
pub(super) const INLINE_BYTES: usize = 1024;

/// An answer arrives this much before the deadline or not at all: what the reply still needs to be
/// encoded and sent, and more than the millisecond that timers round to.
const REPLY_MARGIN: Duration = Duration::from_millis(2);

/// The gate that every request passes; clones are the same gate.
#[derive(Debug, Clone)]
pub struct Admission {
    repository: Arc<Repository>,
    pool: CpuPool,
    limits: LimitsConfig,
    request_log: RequestLog,
    closed: Arc<AtomicBool>,
    pub(super) explaining: Arc<Semaphore>,
}

/// What one row gets.
pub type RowResult = Result<AnsweredRow, RequestError>;

/// One row's answer, with what it tells about its input.
#[derive(Debug, Clone)]
pub struct AnsweredRow {
    /// The model's answer.
    pub answer: RowAnswer,
    /// The row as the model saw it. Its `ids` and `type_ids` went with the batch and are empty.
    pub encoded: EncodedRow,
    /// Tokens the model saw.
    pub tokens: usize,
    /// Tokens of it that stand for what the vocabulary lacks, where drift is looked for; else 0.
    pub unknown: u32,
    /// Whether the row was not run: its answer was there, or an equal row was just being run.
    pub cached: bool,
    /// Who answered, where the request's own model was not sure.
    pub escalation: Option<Box<Escalation>>,
    /// In which ways it is far from the version's baseline although the model is sure of it.
    pub anomalies: Anomalies,
    /// The beginning of its text, where its language is to be told.
    pub excerpt: Option<Box<str>>,
}

impl AnsweredRow {
    /// As drift looks at it.
    pub fn seen(&self) -> SeenRow<'_> {
        SeenRow {
            output: &self.answer.output,
            tokens: self.tokens,
            unknown: self.unknown,
            excerpt: self.excerpt.as_deref(),
        }
    }

    /// The model that answered a row of a request to `asked`.
    pub fn answered_by<'a>(&'a self, asked: &'a ServedModel) -> &'a ServedModel {
        self.escalation
            .as_ref()
            .map_or(asked, |escalation| &escalation.by)
    }
}

/// A request whose rows are in line. Dropping it cancels those not answered yet.
#[derive(Debug)]
pub struct Boarded {
    /// The model that answers.
    pub model: Arc<ServedModel>,
    /// Rows in all.
    pub rows: usize,
    /// Time its texts took to be tokenized, waiting included.
    pub tokenize: Duration,
    /// When they began to be.
    pub tokenize_started: Instant,
    own: OwnRows,
    context: CallContext,
    climb: Option<Box<Climb>>,
}

/// The rows as the request's own model answers them.
#[derive(Debug)]
pub(super) struct OwnRows {
    encoded: Vec<Option<Encoded>>,
    /// The model, where its rows are held against its baseline.
    watched: Option<Arc<ServedModel>>,
    refused: VecDeque<(usize, RequestError)>,
    answers: Option<Arriving>,
    deadline: Option<tokio::time::Instant>,
    tap: Option<RowTap>,
}

/// What is kept of a row while it is on its way.
#[derive(Debug)]
struct Encoded {
    row: EncodedRow,
    tokens: usize,
    unknown: u32,
    excerpt: Option<Box<str>>,
}

/// Whether a request's rows are held against what is usual for the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watching {
    /// They are somebody's.
    Yes,
    /// They are made up, or copies.
    No,
}

impl Admission {
    /// A gate to the models of `repository`, tokenizing on `pool`.
    pub fn new(repository: Arc<Repository>, pool: CpuPool, limits: LimitsConfig) -> Self {
        Self {
            repository,
            pool,
            limits,
            request_log: RequestLog::default(),
            closed: Arc::default(),
            explaining: Arc::new(Semaphore::new(MAX_EXPLAINING)),
        }
    }

    /// The same gate, those who pass which are written down in `request_log`.
    #[must_use]
    pub fn with_request_log(self, request_log: RequestLog) -> Self {
        Self {
            request_log,
            ..self
        }
    }

    /// Where requests are written down.
    pub fn request_log(&self) -> &RequestLog {
        &self.request_log
    }

    /// The models behind this gate.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    /// What one request may ask for.
    pub fn limits(&self) -> &LimitsConfig {
        &self.limits
    }

    /// Lets nothing more in; what is in goes on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether nothing more is let in.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The threads that tokenize.
    pub(super) fn pool(&self) -> &CpuPool {
        &self.pool
    }

    /// Lets a request for `model` (from [`Admission::find`]) in. A row that is at fault is answered
    /// with its error and doesn't keep the others out.
    ///
    /// # Errors
    /// [`RequestError`] when the request as a whole is wrong, comes too late or finds no room.
    pub async fn board(
        &self,
        model: Arc<ServedModel>,
        call: Call,
        context: CallContext,
    ) -> Result<Boarded, RequestError> {
        let climb = self.climb(&model, &call, &context)?;
        let tap = self.mirror_rows(&model, &call);
        let mut boarded = self.line_up(model, call, context, Watching::Yes).await?;
        boarded.own.tap = tap;
        boarded.climb = climb;
        Ok(boarded)
    }

    /// Lets a request in of which nobody gets a copy.
    pub(super) async fn line_up(
        &self,
        model: Arc<ServedModel>,
        mut call: Call,
        context: CallContext,
        watching: Watching,
    ) -> Result<Boarded, RequestError> {
        let encoder = model.encoder()?;
        call.check(model.output_size, &self.limits)?;
        let deadline = context.deadline.map(|deadline| {
            let answer_by = deadline.checked_sub(REPLY_MARGIN).unwrap_or(deadline);
            tokio::time::Instant::from_std(answer_by)
        });
        // Only spans point back into their text.
        call.options.offsets = model.task() == Task::Tokens;
        let keeps_no_answer = call.keeps_no_answer;
        let watched = model.drift.as_ref().filter(|_| watching == Watching::Yes);
        let excerpts = watched.map_or_else(Vec::new, |drift| excerpts(drift, &call.rows));
        let mut excerpts = excerpts.into_iter();
        let started = Instant::now();
        let tokenizing = self.encode_rows(&encoder.text, model.task(), call);
        let encoded = match deadline {
            None => tokenizing.await?,
            Some(deadline) => tokio::time::timeout_at(deadline, tokenizing)
                .await
                .map_err(|_| RequestError::DeadlineExceeded {
                    stage: Stage::Tokenize,
                })??,
        };
        let tokenize = started.elapsed();
        model.metrics.tokenize.observe(tokenize.as_secs_f64());

        let rows = encoded.len();
        let mut work = Vec::with_capacity(rows);
        let mut kept = Vec::with_capacity(rows);
        let mut refused = VecDeque::new();
        for (row, encoded) in encoded.into_iter().enumerate() {
            let excerpt = excerpts.next().flatten();
            match encoded {
                Ok(mut encoded) => {
                    let tokens = encoded.ids.len();
                    let unknown = match &model.drift {
                        Some(_) => encoder.text.unknown_in(&encoded.ids),
                        None => 0,
                    };
                    let ids = std::mem::take(&mut encoded.ids);
                    let type_ids = std::mem::take(&mut encoded.type_ids);
                    work.push((row, RowWork { ids, type_ids }));
                    kept.push(Some(Encoded {
                        row: encoded,
                        tokens,
                        unknown,
                        excerpt,
                    }));
                }
                Err(error) => {
                    refused.push_back((row, error));
                    kept.push(None);
                }
            }
        }
        let answers = if work.is_empty() {
            None
        } else {
            let departure = Departure {
                deadline: context.deadline,
                priority: context.priority,
                tenant: Arc::clone(&context.tenant),
                trace: context.trace.as_ref().map(|trace| trace.link()),
            };
            Some(Arriving::board(encoder, work, &departure, keeps_no_answer)?)
        };
        let watched = watched.is_some().then(|| Arc::clone(&model));
        Ok(Boarded {
            model,
            rows,
            tokenize,
            tokenize_started: started,
            own: OwnRows {
                encoded: kept,
                watched,
                refused,
                answers,
                deadline,
                tap: None,
            },
            context,
            climb: None,
        })
    }

    pub(super) async fn encode_rows(
        &self,
        text: &Arc<TextEncoder>,
        task: Task,
        mut call: Call,
    ) -> Result<Vec<Result<EncodedRow, RequestError>>, RequestError> {
        let mut encoded: Vec<Option<Result<EncodedRow, RequestError>>> = (0..call.rows.len())
            .map(|row| call.check_row(row, task, &self.limits).err())
            .map(|error| error.map(Err))
            .collect();
        let wanted: Vec<(usize, RowInput)> = std::mem::take(&mut call.rows)
            .into_iter()
            .enumerate()
            .filter(|(row, _)| encoded[*row].is_none())
            .collect();
        let options = call.options;
        let encode = |row: usize, result: Result<EncodedRow, EncodeError>| {
            Some(result.map_err(|error| encode_error(call.row_name(row), error)))
        };
        if wanted.iter().map(|(_, row)| row.bytes()).sum::<usize>() <= INLINE_BYTES {
            for (row, input) in wanted {
                // As on the pool, a tokenizer that panics on a text fails that text.
                let result = catch_unwind(AssertUnwindSafe(|| text.encode(&input, options)));
                let panicked = || Err(EncodeError::Failed("it panicked".to_owned()));
                encoded[row] = encode(row, result.unwrap_or_else(|_| panicked()));
            }
            return Ok(all_encoded(encoded));
        }
        let mut jobs = Vec::with_capacity(wanted.len().div_ceil(ROWS_PER_JOB));
        let mut wanted = wanted.into_iter().peekable();
        while wanted.peek().is_some() {
            let chunk: Vec<_> = wanted.by_ref().take(ROWS_PER_JOB).collect();
            let bytes = chunk.iter().map(|(_, row)| row.bytes()).sum();
            let text = Arc::clone(text);
            let rows: Vec<usize> = chunk.iter().map(|(row, _)| *row).collect();
            let job = self.pool.submit(bytes, move || {
                chunk
                    .iter()
                    .map(|(_, input)| text.encode(input, options))
                    .collect::<Vec<_>>()
            });
            jobs.push((rows, job.map_err(pool_full)?));
        }
        for (rows, job) in jobs {
            // A closed channel means that the tokenizer panicked: on which row isn't known.
            let results = job.await.unwrap_or_else(|_| {
                vec![Err(EncodeError::Failed("it panicked".to_owned())); rows.len()]
            });
            for (row, result) in rows.into_iter().zip(results) {
                encoded[row] = encode(row, result);
            }
        }
        Ok(all_encoded(encoded))
    }

    /// Tokenizes texts without running a model.
    ///
    /// # Errors
    /// [`RequestError`] when the request as a whole is wrong or finds no room.
    pub async fn tokenize(
        &self,
        model: &Arc<ServedModel>,
        call: Call,
        with_special_tokens: bool,
    ) -> Result<Vec<Result<EncodedRow, RequestError>>, RequestError> {
        call.check(model.output_size, &self.limits)?;
        let encoder = match &model.runner {
            Runner::Encoder(encoder) => encoder,
            Runner::Decoder(decoder) => {
                return self
                    .tokenize_prompts(&decoder.text, call, with_special_tokens)
                    .await;
            }
        };
        if with_special_tokens {
            let mut call = call;
            call.options.offsets = true;
            return self.encode_rows(&encoder.text, model.task(), call).await;
        }
        let bytes = call.rows.iter().map(RowInput::bytes).sum();
        let limits = self.limits.clone();
        let (text, task) = (Arc::clone(&encoder.text), model.task());
        let job = self.pool.submit(bytes, move || {
            (0..call.rows.len())
                .map(|row| {
                    if let RowInput::Text(input) = &call.rows[row] {
                        if input.len() > limits.max_text_bytes {
                            call.check_row(row, task, &limits)?;
                        }
                        return text
                            .encode_bare(input)
                            .map_err(|error| encode_error(call.row_name(row), error));
                    }
                    Err(RequestError::invalid(call.row_name(row), "ids", "a text"))
                })
                .collect()
        });
        job.map_err(pool_full)?
            .await
            .map_err(|_| RequestError::internal("the tokenizer panicked"))
    }
}

impl Boarded {
    /// The next row's answer with its index, in the order they become ready; `None` after the last.
    /// After the deadline the rows still out are answered with [`RequestError::DeadlineExceeded`].
    pub async fn next(&mut self) -> Option<(usize, RowResult)> {
        match &mut self.climb {
            None => self.own.next().await,
            Some(climb) => climb.next(&self.model, &mut self.own).await,
        }
    }

    /// Every row's answer, in the order of the request.
    pub async fn all(&mut self) -> Vec<RowResult> {
        let mut rows: Vec<Option<RowResult>> = (0..self.rows).map(|_| None).collect();
        while let Some((row, result)) = self.next().await {
            rows[row] = Some(result);
        }
        rows.into_iter()
            .map(|row| row.unwrap_or_else(|| Err(RequestError::internal("a row got no answer"))))
            .collect()
    }

    /// When the request came in.
    pub fn received(&self) -> Instant {
        self.context.received
    }

    /// The times of a request whose slowest row waited `queue` and ran `execute`, answered now.
    pub fn times(&self, queue: Duration, execute: Duration, output: Duration) -> RequestTimes {
        RequestTimes {
            total: self.context.received.elapsed(),
            queue,
            input: self.tokenize,
            execute,
            output,
        }
    }
}

impl OwnRows {
    /// As [`Boarded::next`]. May be dropped while it waits; nothing is lost by that.
    pub(super) async fn next(&mut self) -> Option<(usize, RowResult)> {
        let next = self.next_row().await;
        if let (Some(tap), Some((row, result))) = (&mut self.tap, &next) {
            tap.note(*row, result);
        }
        next
    }

    async fn next_row(&mut self) -> Option<(usize, RowResult)> {
        if let Some((row, error)) = self.refused.pop_front() {
            return Some((row, Err(error)));
        }
        let answers = self.answers.as_mut()?;
        let next = match self.deadline {
            None => answers.next().await,
            Some(deadline) => {
                let Ok(next) = tokio::time::timeout_at(deadline, answers.next()).await else {
                    self.give_up();
                    let late = self.refused.pop_front();
                    return late.map(|(row, error)| (row, Err(error)));
                };
                next
            }
        };
        let (row, answer) = next?;
        let encoded = self.encoded[row].take();
        let answered = answer.and_then(|(answer, cached)| {
            let Encoded {
                row,
                tokens,
                unknown,
                excerpt,
            } = encoded.ok_or_else(|| RequestError::internal("a row was answered twice"))?;
            let mut answered = AnsweredRow {
                answer,
                encoded: row,
                tokens,
                unknown,
                cached,
                escalation: None,
                anomalies: Anomalies::default(),
                excerpt,
            };
            if let Some(model) = &self.watched {
                answered.anomalies = anomalies(model, &answered);
            }
            Ok(answered)
        });
        Some((row, answered))
    }

    fn give_up(&mut self) {
        self.answers = None;
        for (row, encoded) in self.encoded.iter_mut().enumerate() {
            if encoded.take().is_some() {
                let stage = Stage::Queue;
                self.refused
                    .push_back((row, RequestError::DeadlineExceeded { stage }));
            }
        }
    }
}

fn excerpts(drift: &DriftWatch, rows: &[RowInput]) -> Vec<Option<Box<str>>> {
    rows.iter().map(|row| drift.excerpt(row)).collect()
}

/// Holds an answered row against its version's baseline.
fn anomalies(model: &ServedModel, row: &AnsweredRow) -> Anomalies {
    let Some(drift) = &model.drift else {
        return Anomalies::default();
    };
    let vector = match &row.answer.output {
        RowOutput::Embedding(vector) => Some(vector.as_slice()),
        _ => None,
    };
    let counts = (row.tokens, row.unknown);
    drift.anomalies(counts, vector, || sureness(model, row).ok())
}

fn all_encoded(
    rows: Vec<Option<Result<EncodedRow, RequestError>>>,
) -> Vec<Result<EncodedRow, RequestError>> {
    rows.into_iter()
        .map(|row| row.unwrap_or_else(|| Err(RequestError::internal("a row was not encoded"))))
        .collect()
}

pub(super) fn pool_full(full: PoolFull) -> RequestError {
    RequestError::Overloaded {
        what: format!(
            "{} bytes of text wait to be tokenized, {} may",
            full.waiting_bytes, full.max_waiting_bytes
        ),
        retry_after: Duration::from_millis(50),
    }
}

pub(super) fn encode_error(field: String, error: EncodeError) -> RequestError {
    match error {
        EncodeError::TooLong { found, allowed } => RequestError::invalid(
            field,
            format_args!("{found} tokens"),
            format_args!("at most {allowed} tokens (truncation is 'error')"),
        ),
        EncodeError::NoRoom { asked, special } => RequestError::invalid(
            "max_tokens",
            asked,
            format_args!("more than the {special} special tokens"),
        ),
        EncodeError::UnknownId { id, vocabulary } => RequestError::invalid(
            field,
            format_args!("token id {id}"),
            format_args!("ids from 0 to {}", vocabulary - 1),
        ),
        EncodeError::Empty => RequestError::invalid(field, "no token ids", "at least 1"),
        EncodeError::Failed(reason) => {
            RequestError::internal(format_args!("{field}: the tokenizer failed: {reason}"))
        }
    }
}
