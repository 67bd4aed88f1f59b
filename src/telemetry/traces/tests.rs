//! Traces without a collector: who is sampled, and what spans an ending becomes.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use super::{
    notes::{BatchNotes, Ending, RowTrace, Sequence, Stages},
    spans::spans_of,
    tracer::{Record, Tracer, is_sampled},
};

fn context(trace: u128, span: u64) -> SpanContext {
    SpanContext::new(
        TraceId::from(trace),
        SpanId::from(span),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    )
}

fn ended(stages: Stages, received: Instant, answered: Instant, ended: Instant) -> Record {
    Record::Request {
        context: context(7, 1),
        parent: SpanId::from(9),
        parent_is_remote: true,
        name: "call".into(),
        received,
        ended,
        ending: Some(Box::new(Ending {
            model: "m".to_owned(),
            version: "1".to_owned(),
            tenant: Arc::from("t"),
            stages,
            answered,
            error: None,
        })),
        row: None,
    }
}

#[test]
fn a_share_of_all_ids_is_sampled_and_always_the_same_ones() {
    let threshold = (0.25 * (1_u64 << 63) as f64) as u64;
    let ids = (0..4000_u128).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    let sampled = ids
        .filter(|&id| is_sampled(TraceId::from(id), threshold))
        .count();
    assert!((900..1100).contains(&sampled), "{sampled}");
    assert!(!is_sampled(TraceId::from(u128::MAX), threshold));
    assert!(!is_sampled(TraceId::from(1), 0));
}

#[test]
fn without_a_collector_nothing_is_traced() {
    let headers = HashMap::from([(
        "traceparent".to_owned(),
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
    )]);
    assert!(Tracer::default().begin(&headers, "call").is_none());
}

#[test]
fn the_stages_of_a_request_add_up_to_the_whole() {
    let ms = Duration::from_millis;
    // All of it is over when its spans are made.
    let start = Instant::now().checked_sub(ms(100)).unwrap();
    let batch = Arc::new(BatchNotes {
        context: context(8, 2),
        model: Arc::from("m"),
        started: start + ms(6),
        packed: start + ms(7),
        executed: start + ms(20),
        rows: 3,
        tokens: 30,
    });
    let row = RowTrace {
        arrived: start + ms(3),
        batch: Arc::clone(&batch),
    };
    let rows = [row.clone(), row];
    let stages = Stages::Rows {
        tokenize: (start + ms(1), start + ms(3)),
        rows: 2,
        cached: false,
        batches: Stages::batches_of(rows.iter()),
    };
    let spans = spans_of(ended(stages, start, start + ms(24), start + ms(25)));
    let names: Vec<_> = spans.iter().map(|span| span.name.as_ref()).collect();
    assert_eq!(
        names,
        [
            "call",
            "admission",
            "tokenize",
            "queue",
            "execute",
            "postprocess",
            "reply"
        ]
    );
    let length = |span: &opentelemetry_sdk::trace::SpanData| {
        span.end_time.duration_since(span.start_time).unwrap()
    };
    let parts: Duration = spans[1..].iter().map(length).sum();
    assert_eq!((length(&spans[0]), parts), (ms(25), ms(25)));
    assert_eq!(spans[0].parent_span_id, SpanId::from(9));
    for part in &spans[1..] {
        assert_eq!(part.parent_span_id, SpanId::from(1));
        assert_eq!(part.span_context.trace_id(), TraceId::from(7));
    }
    assert_eq!(spans[4].links.links[0].span_context, batch.context);
}

#[test]
fn a_long_decode_keeps_few_events_spread_over_all_of_it() {
    let start = Instant::now();
    let mut sequence = Sequence::new(start, 16);
    sequence.started = Some(start);
    for _ in 0..1000 {
        sequence.note_token(start);
    }
    assert!((8..=16).contains(&sequence.events.len()));
    let last = sequence.events.last().unwrap().0;
    assert!(last > 800, "{last}");
    let stages = Stages::Sequences {
        tokenize: (start, start),
        prompt_tokens: 5,
        sequences: vec![sequence],
    };
    let spans = spans_of(ended(stages, start, start, start));
    let decode = spans.iter().find(|span| span.name == "decode").unwrap();
    let told = decode.events.len() as u32 + decode.events.dropped_count;
    assert_eq!(told, 1000);
}
