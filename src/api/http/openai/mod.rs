//! The routes that OpenAI's clients call, and `/v1/rerank` as others offer it: JSON in, JSON or
//! server-sent events out.
//!
//! Unknown parameters are refused, so that nothing that was asked for is silently left out. The
//! headers `x-request-timeout-ms`, `x-ferry-tenant`, `x-ferry-priority` and `x-ferry-model-version`
//! stand for gRPC's metadata and `version`.

mod batches;
mod body;
mod chat;
mod completions;
mod constraints;
mod continuations;
mod embeddings;
mod errors;
mod fields;
mod files;
mod generate;
mod logprobs;
mod models;
mod output;
mod parameters;
mod request;
mod rerank;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};

pub use body::{MAX_BODY_BYTES, read_body};
pub use errors::ApiError;

use self::{generate::generate, output::new_id};
use crate::{api::grpc::Shared, error::RequestError, jobs::Endpoint};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{name}", get(models::show))
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/rerank", post(rerank::rerank))
        .merge(files::routes())
        .merge(batches::routes())
        // Where Jina's and Cohere's clients look for it.
        .route("/rerank", post(rerank::rerank))
        .route("/v2/rerank", post(rerank::rerank))
}

async fn complete(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    generate(shared, headers, body, completions::read).await
}

async fn chat(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    generate(shared, headers, body, chat::read).await
}

/// Answers a request that a job holds as its route does, but whole.
pub async fn answer_row(
    shared: Shared,
    endpoint: Endpoint,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    #[derive(serde::Deserialize)]
    struct Look {
        stream: bool,
    }
    let streams = serde_json::from_slice::<Look>(&body).is_ok_and(|look| look.stream);
    if streams {
        let error = RequestError::invalid("stream", true, "false: a job keeps whole answers");
        return ApiError::from(error).into_response();
    }
    let (shared, body) = (State(shared), Body::from(body));
    let answer = match endpoint {
        Endpoint::Embeddings => embeddings::embed(shared, headers, body).await,
        Endpoint::Completions => complete(shared, headers, body).await,
        Endpoint::ChatCompletions => chat(shared, headers, body).await,
        Endpoint::Rerank => rerank::rerank(shared, headers, body).await,
    };
    answer.unwrap_or_else(ApiError::into_response)
}

/// Answers what has no route.
pub async fn unknown_route(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    let message = format!("nothing is served at {path}");
    ApiError::of_request(StatusCode::NOT_FOUND, "unknown_route", message).into_response()
}

/// Answers a method that a route doesn't have.
pub async fn wrong_method(request: Request) -> Response {
    let path: String = request.uri().path().chars().take(200).collect();
    let message = format!("{path} has no method {}", request.method());
    let status = StatusCode::METHOD_NOT_ALLOWED;
    ApiError::of_request(status, "method_not_allowed", message).into_response()
}

/// Gives an answer the id of its request, or one of its own.
pub async fn echo_request_id(request: Request, next: Next) -> Response {
    let id = request.headers().get(REQUEST_ID).cloned();
    let mut response = next.run(request).await;
    let id = id.or_else(|| HeaderValue::try_from(new_id("req")).ok());
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
