//! The HTTP listener: OpenAI's routes, typed calls as JSON, health for orchestrators, metrics for
//! Prometheus, and a page that shows them.

mod connect;
mod connections;
mod dashboard;
mod metrics;
mod openai;

pub use openai::{ApiError, answer_row};

use std::{future::Future, net::SocketAddr};

use axum::{Router, extract::State, http::StatusCode, middleware, routing::get};

use super::{gate::http_gate, grpc::Shared, listener::Incoming, trace::trace_request};
use crate::config::server::HttpConfig;

/// Serves HTTP on what comes in until `shutdown` is done.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    shared: Shared,
    config: HttpConfig,
    incoming: Incoming,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let tracer = shared.tracer.clone();
    let mut routes = Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        // Open Inference Protocol's names for the same.
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/metrics", get(metrics::page))
        .merge(openai::routes())
        .merge(connect::routes())
        .merge(if shared.dashboard {
            dashboard::routes()
        } else {
            Router::new()
        })
        .method_not_allowed_fallback(openai::wrong_method)
        .fallback(openai::unknown_route);
    if tracer.is_on() {
        routes = routes.layer(middleware::from_fn_with_state(tracer, trace_request));
    }
    let routes = routes
        .layer(middleware::from_fn_with_state(shared.clone(), http_gate))
        .layer(middleware::from_fn(openai::echo_request_id))
        .with_state(shared);
    connections::serve(routes, &config, incoming, shutdown).await
}

/// Whom a connection is with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.is_ready() {
        (StatusCode::OK, "ready\n")
    } else if shared.admission.is_closed() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    } else if shared.lost().is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "loading models\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "a model has lost its device\n",
        )
    }
}
