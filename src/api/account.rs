//! Runs one call from admission to its encoded answer, and accounts for how it ended: metrics,
//! statistics, a log event.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    admission::{Admission, AnsweredRow, Boarded, Call, CallContext, RowResult},
    api::{request_log::Copied, status},
    error::RequestError,
    repository::ServedModel,
    telemetry::{
        Metrics, Outcome, RequestTimes, Used,
        traces::{Ending, RequestTrace, RowTrace, Stages},
    },
};

/// A call whose rows all have their answers.
#[derive(Debug)]
pub struct Answered {
    /// The model that answered.
    pub model: Arc<ServedModel>,
    /// Each row's answer, in the order of the request.
    pub rows: Vec<RowResult>,
    /// What the slowest row waited to board.
    pub queue: Duration,
    /// What the slowest row's batch ran.
    pub execute: Duration,
    /// When the call came in.
    pub received: Instant,
}

impl Answered {
    /// Rows that another model answered, since the one asked was not sure.
    pub fn escalated_rows(&self) -> usize {
        let handed_on = |row: &&AnsweredRow| {
            let escalation = row.escalation.as_ref();
            escalation.is_some_and(|escalation| !escalation.from.is_empty())
        };
        self.rows.iter().flatten().filter(handed_on).count()
    }

    /// Rows that are far from what is usual for their model although it is sure of them.
    pub fn anomalous_rows(&self) -> usize {
        let anomalous = |row: &&AnsweredRow| !row.anomalies.is_empty();
        self.rows.iter().flatten().filter(anomalous).count()
    }

    /// Whether no row was run, since all answers were known; `None` where the model keeps none.
    pub fn cached(&self) -> Option<bool> {
        self.model.is_caching().then(|| all_cached(&self.rows))
    }
}

/// Lets a call in, waits for all its rows and encodes the answer. When every row failed in the same
/// way, so does the call.
///
/// # Errors
/// [`RequestError`] of the call, or what `encode` returns.
pub async fn answer_call<T>(
    admission: &Admission,
    metrics: &Metrics,
    call: Call,
    context: CallContext,
    encode: impl FnOnce(&Answered) -> Result<T, RequestError>,
) -> Result<T, RequestError> {
    let received = context.received;
    admission.wake(&call.model, &context).await;
    let (model, mut account) = find(admission, metrics, &call, &context)?;
    let mut boarded = match admission.board(model, call, context).await {
        Ok(boarded) => boarded,
        Err(error) => return Err(account.failed(error)),
    };
    let rows = boarded.all().await;
    let answering = Instant::now();
    if let Some(error) = common_failure(&rows) {
        return Err(account.failed(error));
    }
    let (queue, execute) = slowest(&rows);
    let answered = Answered {
        model: Arc::clone(&boarded.model),
        rows,
        queue,
        execute,
        received,
    };
    account.note_rows(&answered.rows);
    match encode(&answered) {
        Ok(answer) => {
            account.answered(&boarded, queue, execute, answering.elapsed());
            Ok(answer)
        }
        Err(error) => Err(account.failed(error)),
    }
}

/// Finds the model a call names and opens the call's account.
///
/// # Errors
/// [`RequestError`] when there is no such model; it is counted then.
pub fn find(
    admission: &Admission,
    metrics: &Metrics,
    call: &Call,
    context: &CallContext,
) -> Result<(Arc<ServedModel>, Account), RequestError> {
    match admission.find(call, context) {
        Ok(model) => {
            let mut account = Account::open(Arc::clone(&model), context);
            account.copy = Copied::of_call(admission, &model, call, context);
            Ok((model, account))
        }
        Err(error) => {
            metrics.count_unrouted(status::map(&error).outcome);
            Err(error)
        }
    }
}

/// A call that is under way. Dropped unclosed, it counts as cancelled.
#[derive(Debug)]
pub struct Account {
    model: Arc<ServedModel>,
    received: Instant,
    closed: bool,
    unrun: bool,
    trace: Option<Arc<RequestTrace>>,
    tenant: Arc<str>,
    endpoint: &'static str,
    used: Used,
    /// Its copy for the request log, if it is written down.
    copy: Option<Box<Copied>>,
    /// The batches of its rows, where it is traced.
    batches: Vec<RowTrace>,
}

impl Account {
    /// Opens the account of a call to `model`.
    pub(super) fn open(model: Arc<ServedModel>, context: &CallContext) -> Self {
        model.traffic.open();
        Self {
            model,
            received: context.received,
            closed: false,
            unrun: false,
            trace: context.trace.clone(),
            tenant: Arc::clone(&context.tenant),
            endpoint: context.endpoint,
            used: Used::default(),
            copy: None,
            batches: Vec::new(),
        }
    }

    /// Closes it with a failure, which is handed back.
    pub fn failed(mut self, error: RequestError) -> RequestError {
        let mapped = status::map(&error);
        let outcome = mapped.outcome;
        self.close(outcome);
        self.model.metrics.work.count_error(mapped.code());
        self.end_trace(Stages::None, Some((mapped.code(), error.to_string())));
        if let Some(copy) = self.copy.take() {
            copy.failed(mapped.code(), &error.to_string());
        }
        self.model
            .statistics
            .record_failure(self.received.elapsed());
        if outcome == Outcome::Internal {
            let trace_id = self.trace_id();
            tracing::error!(model = self.model.name, trace_id, %error, "request failed");
        } else {
            let trace_id = self.trace_id();
            tracing::debug!(model = self.model.name, trace_id, %error, "request refused");
        }
        error
    }

    /// Notes that nothing was run for the answer, if so.
    pub(super) fn note_unrun(&mut self, unrun: bool) {
        self.unrun = unrun;
    }

    /// Notes what became of its rows.
    pub fn note_rows(&mut self, rows: &[RowResult]) {
        self.unrun = all_cached(rows);
        let answered = rows.iter().flatten();
        self.used = Used {
            rows: answered.clone().count() as u64,
            input_tokens: answered.map(|row| row.tokens as u64).sum(),
            output_tokens: 0,
        };
        if let Some(drift) = &self.model.drift {
            let answered = rows.iter().flatten();
            drift.observe(answered.map(AnsweredRow::seen));
        }
        if let Some(copy) = &mut self.copy {
            copy.note_rows(&self.model, rows);
        }
        if self.trace.is_some() {
            let answered = rows.iter().flatten();
            let traced = answered.filter_map(|row| row.answer.trace.as_deref());
            self.batches = Stages::batches_of(traced);
        }
    }

    /// Notes what was generated.
    pub(super) fn note_generated(&mut self, input_tokens: u64, output_tokens: u64) {
        self.used = Used {
            rows: 1,
            input_tokens,
            output_tokens,
        };
    }

    /// Its copy for the request log, if it is written down.
    pub(super) fn copy(&mut self) -> &mut Option<Box<Copied>> {
        &mut self.copy
    }

    /// The trace's id, for logs.
    pub(super) fn trace_id(&self) -> Option<String> {
        self.trace.as_ref().map(|trace| trace.id().to_string())
    }

    /// Whether it is traced.
    pub(super) fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Notes in its trace how it ended, if it is traced.
    pub(super) fn end_trace(&self, stages: Stages, error: Option<(&'static str, String)>) {
        let Some(trace) = &self.trace else {
            return;
        };
        trace.end(Ending {
            model: self.model.name.clone(),
            version: self.model.version.clone(),
            tenant: Arc::clone(&self.tenant),
            stages,
            answered: Instant::now(),
            error,
        });
    }

    /// Closes it with an answer.
    pub fn answered(
        mut self,
        boarded: &Boarded,
        queue: Duration,
        execute: Duration,
        output: Duration,
    ) {
        let times = boarded.times(queue, execute, output);
        if self.is_traced() {
            let started = boarded.tokenize_started;
            let stages = Stages::Rows {
                tokenize: (started, started + boarded.tokenize),
                rows: boarded.rows,
                cached: self.unrun,
                batches: std::mem::take(&mut self.batches),
            };
            self.end_trace(stages, None);
        }
        tracing::debug!(
            model = self.model.name,
            version = self.model.version,
            trace_id = self.trace_id(),
            rows = boarded.rows,
            tokenize_us = times.input.as_micros() as u64,
            queue_us = queue.as_micros() as u64,
            execute_us = execute.as_micros() as u64,
            total_us = times.total.as_micros() as u64,
            "answered"
        );
        self.succeeded(&times);
    }

    /// Closes it with an answer whose times are known.
    pub(super) fn succeeded(mut self, times: &RequestTimes) {
        self.close(Outcome::Ok);
        let postprocess = times.output.as_secs_f64();
        self.model.metrics.work.postprocess.observe(postprocess);
        self.model.statistics.record_success(times);
        if let Some(copy) = self.copy.take() {
            let tokens = (self.used.input_tokens, self.used.output_tokens);
            copy.answered(times, self.unrun, tokens);
        }
    }

    fn close(&mut self, outcome: Outcome) {
        self.closed = true;
        self.model.metrics.count_request(outcome);
        let usage = &self.model.metrics.usage;
        usage.record(&self.tenant, self.endpoint, self.used);
        let total = self.received.elapsed();
        self.model.metrics.request_time.observe(total.as_secs_f64());
        if self.unrun && outcome == Outcome::Ok {
            self.model.traffic.close_unrun();
        } else {
            self.model.traffic.close(outcome, total);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.closed {
            self.close(Outcome::Cancelled);
            let error = "the caller went away".to_owned();
            self.model.metrics.work.count_error("CANCELLED");
            if let Some(copy) = self.copy.take() {
                copy.failed("CANCELLED", &error);
            }
            self.end_trace(Stages::None, Some(("CANCELLED", error)));
            self.model
                .statistics
                .record_failure(self.received.elapsed());
        }
    }
}

/// The error of a call all of whose rows failed with one code.
fn common_failure(rows: &[RowResult]) -> Option<RequestError> {
    let mut errors = rows.iter().map(|row| row.as_ref().err());
    let first = errors.next()??;
    let code = status::map(first).grpc;
    errors
        .all(|error| error.is_some_and(|error| status::map(error).grpc == code))
        .then(|| first.clone())
}

/// Whether no row was run, since the answers were known.
fn all_cached(rows: &[RowResult]) -> bool {
    rows.iter()
        .all(|row| row.as_ref().is_ok_and(|row| row.cached))
}

/// Queue and execute time of the row that took longest.
pub fn slowest(rows: &[RowResult]) -> (Duration, Duration) {
    rows.iter()
        .flatten()
        .map(|row| (row.answer.queue, row.answer.execute))
        .max_by_key(|(queue, execute)| *queue + *execute)
        .unwrap_or_default()
}
