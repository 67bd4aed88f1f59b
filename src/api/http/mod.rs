//! The HTTP listener: health for orchestrators, metrics for Prometheus.

use std::future::Future;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use super::grpc::Shared;

/// Serves HTTP on `listener` until `shutdown` is done.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    shared: Shared,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        // Open Inference Protocol's names for the same.
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(shared);
    axum::serve(listener, routes)
        .with_graceful_shutdown(shutdown)
        .await
}

async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.is_ready() {
        (StatusCode::OK, "ready\n")
    } else if shared.admission.is_closed() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "loading models\n")
    }
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content_type)],
        shared.metrics.render(),
    )
}
