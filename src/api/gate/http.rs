//! The gate as a middleware of the HTTP server.

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{body::Held, enter, needs, restricted};
use crate::api::{
    grpc::Shared,
    http::{ApiError, Peer},
};

/// Lets a request in, or answers why not.
pub async fn http_gate(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    let need = needs::of_http(request.uri().path(), shared.open_metrics);
    let peer = request
        .extensions()
        .get::<ConnectInfo<Peer>>()
        .map(|ConnectInfo(Peer(peer))| peer.ip());
    match enter(&shared.callers, need, request.headers_mut(), peer) {
        Ok((None, models)) => restricted(models, next.run(request)).await,
        Ok((place, models)) => {
            let answer = restricted(models, next.run(request)).await;
            answer.map(|body| Body::new(Held::new(body, place)))
        }
        Err(error) => ApiError::from(error).into_response(),
    }
}
