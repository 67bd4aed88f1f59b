//! The trace of a request around its handler: W3C's `traceparent` and `tracestate` come in, and go out
//! with the answer's headers, which are gRPC's metadata.

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method},
    middleware::Next,
    response::Response,
};
use http_body_util::BodyExt as _;
use opentelemetry::propagation::Extractor;

use crate::telemetry::traces::{Tracer, scope};

/// The calls that are traced: those that run a model.
const TRACED: [(&str, &str); 14] = [
    ("/ferry.v1.Inference/Embed", "ferry.v1.Inference/Embed"),
    (
        "/ferry.v1.Inference/Classify",
        "ferry.v1.Inference/Classify",
    ),
    ("/ferry.v1.Inference/Rerank", "ferry.v1.Inference/Rerank"),
    (
        "/ferry.v1.Inference/ClassifyTokens",
        "ferry.v1.Inference/ClassifyTokens",
    ),
    (
        "/ferry.v1.Inference/Generate",
        "ferry.v1.Inference/Generate",
    ),
    ("/ferry.v1.Inference/Chat", "ferry.v1.Inference/Chat"),
    ("/ferry.v1.Inference/Stream", "ferry.v1.Inference/Stream"),
    (
        "/inference.GRPCInferenceService/ModelInfer",
        "inference.GRPCInferenceService/ModelInfer",
    ),
    (
        "/inference.GRPCInferenceService/ModelStreamInfer",
        "inference.GRPCInferenceService/ModelStreamInfer",
    ),
    ("/v1/completions", "POST /v1/completions"),
    ("/v1/chat/completions", "POST /v1/chat/completions"),
    ("/v1/embeddings", "POST /v1/embeddings"),
    ("/v1/rerank", "POST /v1/rerank"),
    // Where Jina's and Cohere's clients look for it.
    ("/rerank", "POST /v1/rerank"),
];

/// Traces a request that is to be traced, until the last byte of its answer has been handed over.
pub async fn trace_request(State(tracer): State<Tracer>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let path = path
        .strip_prefix("/v2")
        .filter(|path| *path == "/rerank")
        .unwrap_or(path);
    let name = TRACED.iter().find(|(traced, _)| *traced == path);
    let begun = match name {
        Some((_, name)) if request.method() == Method::POST => {
            tracer.begin(&Headers(request.headers()), name)
        }
        _ => None,
    };
    let Some(trace) = begun else {
        return next.run(request).await;
    };
    let (parent, state) = (trace.traceparent(), trace.tracestate());
    let mut response = scope(trace.clone(), next.run(request)).await;
    let headers = response.headers_mut();
    if let Ok(parent) = HeaderValue::try_from(parent) {
        headers.insert("traceparent", parent);
    }
    if !state.is_empty()
        && let Ok(state) = HeaderValue::try_from(state)
    {
        headers.insert("tracestate", state);
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            // Held until the body has been sent, or dropped.
            let _held = &trace;
            frame
        }))
    })
}

/// Headers, to read a trace's context from.
pub(super) struct Headers<'a>(pub(super) &'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
