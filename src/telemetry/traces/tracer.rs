//! Which requests are traced, and the queue that their records wait in.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use crossbeam::channel::{Sender, TrySendError, bounded};
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{IdGenerator as _, RandomIdGenerator},
};

use super::{
    export,
    notes::{BatchNotes, Ending},
    request::{JobRow, RequestTrace},
};
use crate::{config::TracesConfig, telemetry::TraceMetrics};

/// What has ended and is to become spans.
#[derive(Debug)]
pub(super) enum Record {
    Request {
        context: SpanContext,
        parent: SpanId,
        parent_is_remote: bool,
        name: Cow<'static, str>,
        received: Instant,
        ended: Instant,
        ending: Option<Box<Ending>>,
        row: Option<Box<JobRow>>,
    },
    Batch {
        batch: Arc<BatchNotes>,
        rows: Vec<SpanContext>,
        ended: Instant,
    },
    /// All before it is to be sent now; the word goes back when it is.
    Flush(Sender<()>),
}

/// Decides which requests are traced, and takes their records. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    queue: Sender<Record>,
    metrics: TraceMetrics,
    ratio: f64,
    /// A trace whose id's last 63 bits are below this is sampled.
    threshold: u64,
    parent_based: bool,
    max_token_events: usize,
}

/// Waits until everything recorded so far has been sent.
#[derive(Debug)]
pub struct Flush(Tracer);

impl Tracer {
    /// Starts the thread that sends spans, where `config` wants it.
    ///
    /// # Errors
    /// When the exporter can't be built from the configuration, or there is no thread to be had.
    pub fn start(config: &TracesConfig, metrics: TraceMetrics) -> std::io::Result<Self> {
        if !config.is_on() {
            return Ok(Self(None));
        }
        let (queue, records) = bounded(config.max_waiting);
        export::start(config, records, metrics.clone())?;
        Ok(Self(Some(Arc::new(Inner {
            queue,
            metrics,
            ratio: config.ratio,
            threshold: (config.ratio * (1_u64 << 63) as f64) as u64,
            parent_based: config.parent_based,
            max_token_events: config.max_token_events,
        }))))
    }

    /// Whether any request is traced.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Requests of one that are traced; `None` where traces are off.
    pub fn ratio(&self) -> Option<f64> {
        self.0.as_ref().map(|inner| inner.ratio)
    }

    /// Begins the trace of a request with these headers, if it is to be traced.
    pub fn begin(&self, headers: &dyn Extractor, name: &'static str) -> Option<Arc<RequestTrace>> {
        let inner = self.0.as_ref()?;
        let parent = parent_of(headers);
        let (trace, parent_id, state) = match &parent {
            Some(parent) => (
                parent.trace_id(),
                parent.span_id(),
                parent.trace_state().clone(),
            ),
            None => (
                RandomIdGenerator::default().new_trace_id(),
                SpanId::INVALID,
                TraceState::NONE,
            ),
        };
        let is_sampled = match &parent {
            Some(parent) if inner.parent_based => parent.is_sampled(),
            _ => is_sampled(trace, inner.threshold),
        };
        is_sampled.then(|| {
            Arc::new(RequestTrace {
                tracer: self.clone(),
                context: sampled(trace, state),
                parent: parent_id,
                parent_is_remote: parent.is_some(),
                name: Cow::Borrowed(name),
                received: Instant::now(),
                ending: OnceLock::new(),
                row: None,
                discarded: AtomicBool::new(false),
            })
        })
    }

    /// Begins the trace of a row of a job, if it is to be traced: a share of them is, whether or not who
    /// submitted the job was, since a job has more rows than anyone wants to see.
    pub fn begin_row(&self, row: impl FnOnce() -> JobRow) -> Option<Arc<RequestTrace>> {
        let inner = self.0.as_ref()?;
        let trace = RandomIdGenerator::default().new_trace_id();
        is_sampled(trace, inner.threshold).then(|| {
            Arc::new(RequestTrace {
                tracer: self.clone(),
                context: sampled(trace, TraceState::NONE),
                parent: SpanId::INVALID,
                parent_is_remote: false,
                name: Cow::Borrowed("ferry.v1.Jobs row"),
                received: Instant::now(),
                ending: OnceLock::new(),
                row: Some(Box::new(row())),
                discarded: AtomicBool::new(false),
            })
        })
    }

    /// Waits for what is under way to be sent; see [`Flush::wait`].
    pub fn flush(&self) -> Flush {
        Flush(self.clone())
    }

    pub(super) fn max_token_events(&self) -> usize {
        self.0.as_ref().map_or(0, |inner| inner.max_token_events)
    }

    /// Puts a record in line; one that finds no room is dropped and counted.
    pub(super) fn send(&self, record: Record) {
        if let Some(inner) = &self.0
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
                inner.queue.try_send(record)
        {
            inner.metrics.dropped.inc();
        }
    }
}

impl Flush {
    /// Waits until everything recorded so far has been sent, or `limit` has passed. To be called
    /// from a thread that may wait.
    pub fn wait(&self, limit: Duration) -> bool {
        let Some(inner) = &self.0.0 else {
            return true;
        };
        let until = Instant::now() + limit;
        let (done, is_done) = bounded(1);
        inner
            .queue
            .send_deadline(Record::Flush(done), until)
            .is_ok()
            && is_done.recv_deadline(until).is_ok()
    }
}

/// A span within another.
pub(super) fn context_within(parent: &SpanContext) -> SpanContext {
    sampled(parent.trace_id(), parent.trace_state().clone())
}

/// A span of a trace of its own.
pub(super) fn new_context() -> SpanContext {
    let trace = RandomIdGenerator::default().new_trace_id();
    sampled(trace, TraceState::NONE)
}

fn sampled(trace: TraceId, state: TraceState) -> SpanContext {
    let span = RandomIdGenerator::default().new_span_id();
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, state)
}

/// The span of the caller, where the headers name one that is valid.
fn parent_of(headers: &dyn Extractor) -> Option<SpanContext> {
    // The propagator takes ids of any length for whole ones; what is no `traceparent` begins a trace
    // of its own.
    if !is_traceparent(headers.get("traceparent")?) {
        return None;
    }
    let context = TraceContextPropagator::new().extract(headers);
    let parent = context.span().span_context().clone();
    parent.is_valid().then_some(parent)
}

/// The caller's span as `traceparent` and `tracestate` write it, where the headers name one that is
/// valid.
pub fn caller_of(headers: &dyn Extractor) -> Option<(String, String)> {
    parent_of(headers)?;
    let value = |key| headers.get(key).unwrap_or_default().to_owned();
    Some((value("traceparent"), value("tracestate")))
}

/// The span that `traceparent` and `tracestate` name, if they do.
pub(super) fn span_of(traceparent: &str, tracestate: &str) -> Option<SpanContext> {
    let headers: HashMap<String, String> = [
        ("traceparent".to_owned(), traceparent.to_owned()),
        ("tracestate".to_owned(), tracestate.to_owned()),
    ]
    .into();
    parent_of(&headers)
}

/// Whether a header is of the form that W3C's Trace Context, 2.2, gives it: version, trace, span and
/// flags, lower-case, and in versions to come more behind.
fn is_traceparent(header: &str) -> bool {
    let mut fields = header.trim().split('-');
    let mut next = |digits: usize| {
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let field = fields.next().filter(|field| field.len() == digits);
        field.filter(|field| field.bytes().all(hex))
    };
    let (version, trace, span, flags) = (next(2), next(32), next(16), next(2));
    let is_whole = trace.is_some() && span.is_some() && flags.is_some();
    match version {
        Some("00") => is_whole && fields.next().is_none(),
        Some(version) => is_whole && version != "ff",
        None => false,
    }
}

/// As OpenTelemetry's `TraceIdRatioBased` decides, so that servers with the same ratio agree.
pub(super) fn is_sampled(trace: TraceId, threshold: u64) -> bool {
    let bytes = trace.to_bytes();
    let low = bytes[8..]
        .iter()
        .fold(0, |low, &byte| low << 8 | u64::from(byte));
    low >> 1 < threshold
}

#[cfg(test)]
mod tests {
    use super::is_traceparent;

    #[test]
    fn ids_of_another_length_are_no_traceparent() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        assert!(is_traceparent(&format!("00-{trace}-{span}-01")));
        assert!(is_traceparent(&format!(
            "cc-{trace}-{span}-01-what-will-be"
        )));
        for wrong in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-more"),
            format!("ff-{trace}-{span}-01"),
            format!("0-{trace}-{span}-01"),
            format!("00-{}-{span}-01", &trace[1..]),
            format!("00-{trace}-{}-01", &span[1..]),
            format!("00-{trace}-{span}-1"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            // What the fuzzer found: taken for a trace of 32 digits.
            "cc-123890123457789012-1034565780246912-01-what-the-future-will-be".to_owned(),
        ] {
            assert!(!is_traceparent(&wrong), "{wrong}");
        }
    }
}
