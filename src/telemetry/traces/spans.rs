//! From what was noted of a request or a batch to its spans.

use std::{
    borrow::Cow,
    time::{Instant, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_sdk::trace::{
    IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks,
};

use super::{
    notes::{BatchNotes, Ending, RowTrace, Sequence, Stages},
    request::JobRow,
    tracer::Record,
};

/// Rows that a batch's span is linked to, at most.
pub(super) const MAX_LINKS: usize = 128;

/// Continuations that a request's spans tell of, at most.
const MAX_SEQUENCES: usize = 8;

/// Turns instants into times of day. Made anew for each record, so that a clock that was set does not
/// tear a request apart.
struct Clock {
    now: (Instant, SystemTime),
}

impl Clock {
    fn time(&self, at: Instant) -> SystemTime {
        let (now, time) = self.now;
        time - now.saturating_duration_since(at)
    }
}

/// The spans of a record.
pub(super) fn spans_of(record: Record) -> Vec<SpanData> {
    let clock = Clock {
        now: (Instant::now(), SystemTime::now()),
    };
    match record {
        Record::Request {
            context,
            parent,
            parent_is_remote,
            name,
            received,
            ended,
            ending,
            row,
        } => {
            let mut root = span(&clock, name, context.clone(), (received, ended));
            root.parent_span_id = parent;
            root.parent_span_is_remote = parent_is_remote;
            root.span_kind = SpanKind::Server;
            if let Some(row) = row {
                describe_row(&mut root, *row);
            }
            let mut spans = vec![root];
            if let Some(ending) = ending {
                describe(&mut spans[0], &ending);
                let parts = Parts {
                    clock: &clock,
                    root: context,
                    received,
                    ended,
                };
                parts.tell(*ending, &mut spans);
            }
            spans
        }
        Record::Batch { batch, rows, ended } => vec![batch_span(&clock, &batch, rows, ended)],
        Record::Flush(_) => Vec::new(),
    }
}

fn describe_row(root: &mut SpanData, row: JobRow) {
    root.span_kind = SpanKind::Consumer;
    root.attributes.extend([
        KeyValue::new("ferry.job", row.job),
        KeyValue::new("ferry.job.row", i64::from(row.index)),
    ]);
    root.links = links(row.submitted.into_iter().collect());
}

fn describe(root: &mut SpanData, ending: &Ending) {
    root.attributes.extend([
        KeyValue::new("ferry.model", ending.model.clone()),
        KeyValue::new("ferry.version", ending.version.clone()),
    ]);
    if !ending.tenant.is_empty() {
        let tenant = ending.tenant.to_string();
        root.attributes.push(KeyValue::new("ferry.tenant", tenant));
    }
    match &ending.stages {
        Stages::None => {}
        Stages::Rows { rows, cached, .. } => root.attributes.extend([
            KeyValue::new("ferry.rows", *rows as i64),
            KeyValue::new("ferry.cached", *cached),
        ]),
        Stages::Sequences {
            prompt_tokens,
            sequences,
            ..
        } => {
            let generated: u32 = sequences.iter().map(|sequence| sequence.tokens).sum();
            root.attributes.extend([
                KeyValue::new("gen_ai.usage.input_tokens", i64::from(*prompt_tokens)),
                KeyValue::new("gen_ai.usage.output_tokens", i64::from(generated)),
            ]);
        }
    }
    if let Some((code, message)) = &ending.error {
        root.status = Status::error(message.clone());
        root.attributes.push(KeyValue::new("error.type", *code));
    }
}

/// The stages of one request.
struct Parts<'a> {
    clock: &'a Clock,
    root: SpanContext,
    received: Instant,
    ended: Instant,
}

impl Parts<'_> {
    fn tell(&self, ending: Ending, spans: &mut Vec<SpanData>) {
        let answered = ending.answered;
        let worked = match ending.stages {
            Stages::None => {
                spans.push(self.part("admission", self.received, answered));
                answered
            }
            Stages::Rows {
                tokenize, batches, ..
            } => {
                self.way_in(tokenize, spans);
                for row in &batches {
                    self.row(row, spans);
                }
                let last = batches.iter().map(|row| row.batch.executed).max();
                last.unwrap_or(tokenize.1)
            }
            Stages::Sequences {
                tokenize,
                sequences,
                ..
            } => {
                self.way_in(tokenize, spans);
                for (index, sequence) in sequences.iter().take(MAX_SEQUENCES).enumerate() {
                    self.sequence(index, sequence, spans);
                }
                let last = sequences
                    .iter()
                    .filter_map(|sequence| sequence.last_token)
                    .max();
                last.unwrap_or(tokenize.1)
            }
        };
        if worked < answered {
            spans.push(self.part("postprocess", worked, answered));
        }
        spans.push(self.part("reply", answered, self.ended));
    }

    fn way_in(&self, tokenize: (Instant, Instant), spans: &mut Vec<SpanData>) {
        spans.push(self.part("admission", self.received, tokenize.0));
        spans.push(self.part("tokenize", tokenize.0, tokenize.1));
    }

    fn row(&self, row: &RowTrace, spans: &mut Vec<SpanData>) {
        let batch = &row.batch;
        // One who shares the run of an equal row may have come when that was under way.
        let arrived = row.arrived.max(self.received);
        spans.push(self.part("queue", arrived.min(batch.started), batch.started));
        let mut execute = self.part("execute", batch.started, batch.executed);
        execute.attributes = batch_attributes(batch);
        execute.links = links(vec![batch.context.clone()]);
        spans.push(execute);
    }

    fn sequence(&self, index: usize, sequence: &Sequence, spans: &mut Vec<SpanData>) {
        let numbered = |mut span: SpanData| {
            span.attributes
                .push(KeyValue::new("ferry.continuation", index as i64));
            span
        };
        let Some(started) = sequence.started else {
            return;
        };
        spans.push(numbered(self.part("queue", sequence.arrived, started)));
        let Some(first) = sequence.first_token else {
            spans.push(numbered(self.part("prefill", started, self.ended)));
            return;
        };
        let mut prefill = numbered(self.part("prefill", started, first));
        let cached = KeyValue::new("ferry.cached_tokens", i64::from(sequence.cached_tokens));
        prefill.attributes.push(cached);
        spans.push(prefill);
        let last = sequence.last_token.unwrap_or(first);
        let mut decode = numbered(self.part("decode", first, last));
        let tokens = KeyValue::new("ferry.tokens", i64::from(sequence.tokens));
        decode.attributes.push(tokens);
        let mut events = SpanEvents::default();
        events.events = sequence
            .events
            .iter()
            .map(|&(number, at)| {
                let number = vec![KeyValue::new("ferry.token", i64::from(number))];
                Event::new("token", self.clock.time(at), number, 0)
            })
            .collect();
        events.dropped_count = sequence.tokens - events.events.len() as u32;
        decode.events = events;
        spans.push(decode);
    }

    /// A span within the request's.
    fn part(&self, name: &'static str, start: Instant, end: Instant) -> SpanData {
        let context = SpanContext::new(
            self.root.trace_id(),
            RandomIdGenerator::default().new_span_id(),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        );
        let mut span = span(self.clock, Cow::Borrowed(name), context, (start, end));
        span.parent_span_id = self.root.span_id();
        span
    }
}

fn batch_span(
    clock: &Clock,
    batch: &BatchNotes,
    rows: Vec<SpanContext>,
    ended: Instant,
) -> SpanData {
    let times = (batch.started, ended);
    let mut span = span(clock, Cow::Borrowed("batch"), batch.context.clone(), times);
    span.attributes = batch_attributes(batch);
    let mut events = SpanEvents::default();
    events.events = [("packed", batch.packed), ("executed", batch.executed)]
        .map(|(name, at)| Event::new(name, clock.time(at), Vec::new(), 0))
        .to_vec();
    span.events = events;
    span.links = links(rows);
    span
}

fn batch_attributes(batch: &BatchNotes) -> Vec<KeyValue> {
    vec![
        KeyValue::new("ferry.model", batch.model.to_string()),
        KeyValue::new("ferry.batch.rows", batch.rows as i64),
        KeyValue::new("ferry.batch.tokens", batch.tokens as i64),
    ]
}

fn links(contexts: Vec<SpanContext>) -> SpanLinks {
    let mut links = SpanLinks::default();
    links.links = contexts.into_iter().map(Link::with_context).collect();
    links
}

fn span(
    clock: &Clock,
    name: Cow<'static, str>,
    context: SpanContext,
    (start, end): (Instant, Instant),
) -> SpanData {
    SpanData {
        span_context: context,
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name,
        start_time: clock.time(start),
        end_time: clock.time(end.max(start)),
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("ferry")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}
