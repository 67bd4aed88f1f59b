//! A traced request, from its headers to the last byte of its answer.

use std::{
    borrow::Cow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use opentelemetry::trace::{SpanContext, SpanId};

use super::{
    notes::{BatchNotes, Ending},
    tracer::{Record, Tracer, context_within, new_context, span_of},
};

tokio::task_local! {
    /// The traced request whose handler runs. It is set around the handler, where headers become a
    /// context, so that it need not pass through every generated signature in between.
    static CURRENT: Arc<RequestTrace>;
}

/// The traced request that is being handled here, if it is.
pub fn current() -> Option<Arc<RequestTrace>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// Runs a handler with `trace` as [`current`].
pub async fn scope<F: Future>(trace: Arc<RequestTrace>, handler: F) -> F::Output {
    CURRENT.scope(trace, handler).await
}

/// A traced request. It is over when the last who holds it is done with it; its spans are then on
/// their way.
#[derive(Debug)]
pub struct RequestTrace {
    pub(super) tracer: Tracer,
    pub(super) context: SpanContext,
    pub(super) parent: SpanId,
    pub(super) parent_is_remote: bool,
    pub(super) name: Cow<'static, str>,
    pub(super) received: Instant,
    pub(super) ending: OnceLock<Ending>,
    /// Where it is a row of a job.
    pub(super) row: Option<Box<JobRow>>,
    /// Whether nobody is to hear of it.
    pub(super) discarded: AtomicBool,
}

/// A row of a job, as its trace tells of it.
#[derive(Debug, Clone)]
pub struct JobRow {
    pub(super) job: String,
    pub(super) index: u32,
    /// The span of who submitted the job.
    pub(super) submitted: Option<SpanContext>,
}

impl JobRow {
    /// Row `index` of a job that was submitted with this `traceparent` and `tracestate`, empty for none.
    pub fn new(job: String, index: u32, traceparent: &str, tracestate: &str) -> Self {
        Self {
            job,
            index,
            submitted: span_of(traceparent, tracestate),
        }
    }
}

/// What of a traced request goes with its rows.
#[derive(Debug, Clone)]
pub struct TraceLink {
    tracer: Tracer,
    context: SpanContext,
}

impl RequestTrace {
    /// The trace's id, for logs.
    pub fn id(&self) -> opentelemetry::trace::TraceId {
        self.context.trace_id()
    }

    /// Its span as W3C's `traceparent` writes it.
    pub fn traceparent(&self) -> String {
        let context = &self.context;
        format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            context.trace_flags().to_u8()
        )
    }

    /// What other vendors' tracers want carried along.
    pub fn tracestate(&self) -> String {
        self.context.trace_state().header()
    }

    /// When its headers had come in.
    pub fn received(&self) -> Instant {
        self.received
    }

    /// A request that came within this one, as those of a stream do.
    pub fn child(&self, name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            tracer: self.tracer.clone(),
            context: context_within(&self.context),
            parent: self.context.span_id(),
            parent_is_remote: false,
            name: Cow::Borrowed(name),
            received: Instant::now(),
            ending: OnceLock::new(),
            row: None,
            discarded: AtomicBool::new(false),
        })
    }

    /// What of it goes with its rows.
    pub fn link(&self) -> TraceLink {
        TraceLink {
            tracer: self.tracer.clone(),
            context: self.context.clone(),
        }
    }

    /// Events of a decode span at most.
    pub fn max_token_events(&self) -> usize {
        self.tracer.max_token_events()
    }

    /// Nobody is to hear of it: it comes again.
    pub fn discard(&self) {
        self.discarded.store(true, Relaxed);
    }

    /// Notes how it ended. Only the first word counts.
    pub fn end(&self, ending: Ending) {
        let _ = self.ending.set(ending);
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        if self.discarded.load(Relaxed) {
            return;
        }
        let tracer = self.tracer.clone();
        tracer.send(Record::Request {
            context: std::mem::replace(&mut self.context, SpanContext::NONE),
            parent: self.parent,
            parent_is_remote: self.parent_is_remote,
            name: std::mem::take(&mut self.name),
            received: self.received,
            ended: Instant::now(),
            ending: self.ending.take().map(Box::new),
            row: self.row.take(),
        });
    }
}

impl TraceLink {
    /// A span for a batch, in a trace of its own.
    pub fn batch_context() -> SpanContext {
        new_context()
    }

    /// Notes a batch, with the rows of it that are traced.
    pub fn send_batch<'a>(
        &self,
        batch: Arc<BatchNotes>,
        rows: impl Iterator<Item = &'a Self>,
        ended: Instant,
    ) {
        let rows = rows
            .take(super::spans::MAX_LINKS)
            .map(|row| row.context.clone())
            .collect();
        self.tracer.send(Record::Batch { batch, rows, ended });
    }
}
