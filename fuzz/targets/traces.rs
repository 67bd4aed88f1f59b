//! `traceparent` and `tracestate` of callers.

use std::sync::OnceLock;

use ferry::{
    config::TracesConfig,
    telemetry::{Metrics, traces::Tracer},
};
use opentelemetry::propagation::Extractor;

use super::bytes::lossy;

/// Traces that go nowhere: nothing listens there.
fn tracer() -> &'static Tracer {
    static TRACER: OnceLock<Tracer> = OnceLock::new();
    TRACER.get_or_init(|| {
        let config = TracesConfig {
            endpoint: "http://127.0.0.1:9".to_owned(),
            ratio: 0.0,
            max_waiting: 64,
            ..TracesConfig::default()
        };
        Tracer::start(&config, Metrics::new().traces()).expect("a thread")
    })
}

struct Headers {
    parent: String,
    state: String,
}

impl Extractor for Headers {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(&self.parent),
            "tracestate" => Some(&self.state),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// The two headers, a line each.
pub fn run(input: &[u8]) {
    let text = lossy(input);
    let (parent, state) = text.split_once('\n').unwrap_or((&text, ""));
    let headers = Headers {
        parent: parent.to_owned(),
        state: state.to_owned(),
    };
    let Some(trace) = tracer().begin(&headers, "fuzz") else {
        return;
    };
    let ours = trace.traceparent();
    let parts: Vec<&str> = ours.split('-').collect();
    assert_eq!(
        parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
        [2, 32, 16, 2]
    );
    assert!(
        parent.to_ascii_lowercase().contains(parts[1]),
        "only a caller's sampled trace is followed: {parent:?} gave {ours}"
    );
    assert!(!parent.contains(parts[2]), "our span is our own");
    assert!(trace.tracestate().len() <= state.len() + 64);
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nrojo=00f067aa0ba902b7,congo=t61",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        "cc-12345678901234567890123456789012-1234567890123456-01-what-the-future-will-be-like\na=1",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
    ]
    .map(|headers| headers.as_bytes().to_vec())
    .to_vec()
}
