//! `ferry.v1.Inference` for those who have no gRPC: its unary calls as JSON over HTTP, in the Connect
//! protocol's form (<https://connectrpc.com/docs/protocol>, unary requests):
//! `POST /ferry.v1.Inference/Classify` with the message as JSON.
//!
//! The same code answers as over gRPC. Fields have the names that stand in the protos, and may be sent
//! in camel case too. Errors are `{"code", "message"}`; those of single rows stand in their rows.

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use prost::Message;
use serde::Serialize;
use tonic::{Code, Extensions, Request, Status, metadata::MetadataMap};

use super::openai::{ApiError, MAX_BODY_BYTES, read_body};
use crate::{
    api::{
        grpc::{Shared, TypedInference},
        json::{from_json, to_json},
        proto::ferry::v1::inference_server::Inference,
    },
    telemetry::Outcome,
};

/// The routes.
pub fn routes() -> Router<Shared> {
    Router::new().route("/ferry.v1.Inference/{method}", post(call))
}

async fn call(
    State(shared): State<Shared>,
    Path(method): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&headers, body, MAX_BODY_BYTES)
        .await
        .inspect_err(|_| shared.metrics.count_unrouted(Outcome::Invalid))?;
    let call = Call {
        shared: &shared,
        metadata: metadata(headers),
        body: &body,
    };
    let service = TypedInference::new(shared.clone());
    let answer = match &*method {
        "Embed" => {
            let answer = async |request| service.embed(request).await;
            call.run("EmbedRequest", "EmbedResponse", answer).await
        }
        "Classify" => {
            let answer = async |request| service.classify(request).await;
            call.run("ClassifyRequest", "ClassifyResponse", answer)
                .await
        }
        "Rerank" => {
            let answer = async |request| service.rerank(request).await;
            call.run("RerankRequest", "RerankResponse", answer).await
        }
        "ClassifyTokens" => {
            let answer = async |request| service.classify_tokens(request).await;
            let (asked, told) = ("ClassifyTokensRequest", "ClassifyTokensResponse");
            call.run(asked, told, answer).await
        }
        "Tokenize" => {
            let answer = async |request| service.tokenize(request).await;
            call.run("TokenizeRequest", "TokenizeResponse", answer)
                .await
        }
        "Explain" => {
            let answer = async |request| service.explain(request).await;
            call.run("ExplainRequest", "ExplainResponse", answer).await
        }
        "Generate" | "Chat" | "Stream" => Err(Status::unimplemented(format!(
            "{method} streams, which is served over gRPC; over HTTP, /v1/completions and \
             /v1/chat/completions do"
        ))),
        _ => Err(Status::unimplemented(format!(
            "ferry.v1.Inference has no method '{}'",
            method.chars().take(64).collect::<String>()
        ))),
    };
    Ok(answer.unwrap_or_else(|status| refusal(&status)))
}

/// A call as it came in.
struct Call<'a> {
    shared: &'a Shared,
    metadata: MetadataMap,
    body: &'a [u8],
}

impl Call<'_> {
    /// Reads a message, has it answered, and writes what comes.
    async fn run<Q: Message + Default, A: Message>(
        self,
        asked: &str,
        told: &str,
        answer: impl AsyncFnOnce(Request<Q>) -> Result<tonic::Response<A>, Status>,
    ) -> Result<Response, Status> {
        let body = if self.body.is_empty() {
            b"{}"
        } else {
            self.body
        };
        let message: Q = from_json(body, &format!("ferry.v1.{asked}")).map_err(|wrong| {
            self.shared.metrics.count_unrouted(Outcome::Invalid);
            Status::invalid_argument(format!("the request is not a {asked} as JSON: {wrong}"))
        })?;
        let request = Request::from_parts(self.metadata, Extensions::default(), message);
        let answered = answer(request).await?.into_inner();
        let json = to_json(&answered, &format!("ferry.v1.{told}"))
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(([JSON], json).into_response())
    }
}

const JSON: (header::HeaderName, HeaderValue) = (
    header::CONTENT_TYPE,
    HeaderValue::from_static("application/json"),
);

/// The headers as gRPC's metadata, with Connect's name for the time that is left.
fn metadata(mut headers: HeaderMap) -> MetadataMap {
    if let Some(timeout) = headers.remove("connect-timeout-ms") {
        headers.insert("x-request-timeout-ms", timeout);
    }
    MetadataMap::from_headers(headers)
}

#[derive(Serialize)]
struct Refusal<'a> {
    code: &'static str,
    message: &'a str,
}

/// An error in Connect's form.
fn refusal(status: &Status) -> Response {
    let (http, code) = of_code(status.code());
    let message = status.message();
    let body = serde_json::to_vec(&Refusal { code, message }).unwrap_or_default();
    let status_code = StatusCode::from_u16(http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status_code, [JSON], body).into_response();
    if let Some(after) = status.metadata().get("grpc-retry-pushback-ms")
        && let Ok(milliseconds) = after.to_str().unwrap_or_default().parse::<u64>()
    {
        let seconds = HeaderValue::from(milliseconds.div_ceil(1000));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

/// Connect's table of codes.
fn of_code(code: Code) -> (u16, &'static str) {
    match code {
        Code::Ok => (200, "ok"),
        Code::Cancelled => (499, "canceled"),
        Code::Unknown => (500, "unknown"),
        Code::InvalidArgument => (400, "invalid_argument"),
        Code::DeadlineExceeded => (504, "deadline_exceeded"),
        Code::NotFound => (404, "not_found"),
        Code::AlreadyExists => (409, "already_exists"),
        Code::PermissionDenied => (403, "permission_denied"),
        Code::ResourceExhausted => (429, "resource_exhausted"),
        Code::FailedPrecondition => (400, "failed_precondition"),
        Code::Aborted => (409, "aborted"),
        Code::OutOfRange => (400, "out_of_range"),
        Code::Unimplemented => (501, "unimplemented"),
        Code::Internal => (500, "internal"),
        Code::Unavailable => (503, "unavailable"),
        Code::DataLoss => (500, "data_loss"),
        Code::Unauthenticated => (401, "unauthenticated"),
    }
}
