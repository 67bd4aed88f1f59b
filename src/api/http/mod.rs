//! The HTTP listener: OpenAI's routes, health for orchestrators, metrics for Prometheus.

mod openai;

pub use openai::answer_row;

use std::future::Future;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::IntoResponse,
    routing::get,
    serve::ListenerExt as _,
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
        .merge(openai::routes())
        .method_not_allowed_fallback(openai::wrong_method)
        .fallback(openai::unknown_route)
        .layer(middleware::from_fn(openai::echo_request_id))
        .with_state(shared);
    let listener = listener.tap_io(|connection| {
        // A token must not wait for the client to have acknowledged the one before.
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
    });
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
    } else if shared.lost().is_empty() {
        (StatusCode::SERVICE_UNAVAILABLE, "loading models\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "a model has lost its device\n",
        )
    }
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content_type)],
        shared.metrics.render(),
    )
}
