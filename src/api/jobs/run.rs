//! Runs a row by the code that answers the same request when it comes by itself, at the lowest
//! priority.

use std::{sync::Arc, time::Duration};

use axum::{
    body::to_bytes,
    http::{HeaderMap, HeaderValue, StatusCode},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use prost::Message as _;
use tonic::{Code, Request, Response, Status};

use super::submit::models_of;
use crate::{
    api::{
        gate::restricted,
        grpc::{Shared, TypedInference},
        http::answer_row,
        proto::ferry::v1::{
            GenerateResponse, GenerateResult, JobResult, JobRow as ProtoRow, RowError,
            inference_server::Inference, job_result, job_row,
        },
    },
    jobs::{Endpoint, RowForm, RowWork, RunEnd, RunRow, Submitter},
    telemetry::traces::{JobRow, RequestTrace, Tracer, scope},
};

/// What runs the rows of jobs.
pub fn row_runner(shared: Shared) -> RunRow {
    let shared = Arc::new(shared);
    Arc::new(move |row| {
        let shared = Shared::clone(&shared);
        Box::pin(async move {
            let models = models_of(&row.submitter);
            let trace = begin_trace(&shared.tracer, &row);
            // A request's future is large.
            let run = Box::pin(restricted(models, run(shared, row)));
            let Some(trace) = trace else {
                return run.await;
            };
            let end = scope(Arc::clone(&trace), run).await;
            if let RunEnd::Later { .. } = end {
                trace.discard();
            }
            end
        })
    })
}

async fn run(shared: Shared, row: RowWork) -> RunEnd {
    match row.form {
        RowForm::Typed => run_typed(shared, row).await,
        RowForm::Http(endpoint) => run_http(shared, row, endpoint).await,
    }
}

/// Begins the trace of a row, if it is to be traced.
fn begin_trace(tracer: &Tracer, row: &RowWork) -> Option<Arc<RequestTrace>> {
    tracer.begin_row(|| {
        let Submitter {
            traceparent,
            tracestate,
            ..
        } = &*row.submitter;
        JobRow::new(row.job.name(), row.index, traceparent, tracestate)
    })
}

/// Whose a row is and how urgent, as metadata.
fn headers(row: &RowWork) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-ferry-priority", HeaderValue::from_static("low"));
    // It came in as a header.
    if let Ok(tenant) = HeaderValue::from_str(&row.tenant) {
        headers.insert("x-ferry-tenant", tenant);
    }
    headers
}

async fn run_http(shared: Shared, row: RowWork, endpoint: Endpoint) -> RunEnd {
    let headers = headers(&row);
    let response = answer_row(shared, endpoint, headers, row.body).await;
    let status = response.status();
    let after = response
        .headers()
        .get("retry-after-ms")
        .and_then(|after| after.to_str().ok()?.parse().ok())
        .map(Duration::from_millis);
    // The answer is in memory already, whole.
    let body = to_bytes(response.into_body(), usize::MAX).await;
    match body {
        Ok(body) if is_transient(status) => RunEnd::Later {
            reason: error_message(&body),
            after,
        },
        Ok(body) => RunEnd::Answered {
            failed: !status.is_success(),
            status: status.as_u16(),
            body,
        },
        Err(error) => RunEnd::Later {
            reason: error.to_string(),
            after: None,
        },
    }
}

/// Whether it is the server's state, and not the request, that there is no answer for.
fn is_transient(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE
}

fn error_message(body: &[u8]) -> String {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    json.and_then(|json| Some(json["error"]["message"].as_str()?.to_owned()))
        .unwrap_or_default()
}

async fn run_typed(shared: Shared, row: RowWork) -> RunEnd {
    let answered = match ProtoRow::decode(&*row.body) {
        Ok(ProtoRow {
            request: Some(request),
            ..
        }) => answer(&TypedInference::new(shared), request, &row).await,
        Ok(_) => Err(Status::invalid_argument("no request")),
        Err(error) => Err(Status::internal(format!("what is kept is no row: {error}"))),
    };
    let (result, failed) = match answered {
        Ok(result) => (result, false),
        Err(status) if matches!(status.code(), Code::Unavailable | Code::ResourceExhausted) => {
            return RunEnd::Later {
                reason: status.message().to_owned(),
                after: pushback(&status),
            };
        }
        Err(status) => {
            let error = RowError {
                code: status.code() as i32,
                message: status.message().to_owned(),
            };
            (job_result::Result::Error(error), true)
        }
    };
    let result = JobResult {
        row: row.index,
        id: row.id,
        result: Some(result),
    };
    RunEnd::Answered {
        failed,
        status: 0,
        body: Bytes::from(result.encode_to_vec()),
    }
}

fn pushback(status: &Status) -> Option<Duration> {
    let after = status.metadata().get("grpc-retry-pushback-ms")?;
    Some(Duration::from_millis(after.to_str().ok()?.parse().ok()?))
}

async fn answer(
    inference: &TypedInference,
    request: job_row::Request,
    row: &RowWork,
) -> Result<job_result::Result, Status> {
    use job_result::Result as Answer;
    use job_row::Request as Asked;
    Ok(match request {
        Asked::Embed(asked) => Answer::Embed(whole(inference.embed(low(asked, row)).await?)),
        Asked::Classify(asked) => {
            Answer::Classify(whole(inference.classify(low(asked, row)).await?))
        }
        Asked::Rerank(asked) => Answer::Rerank(whole(inference.rerank(low(asked, row)).await?)),
        Asked::ClassifyTokens(asked) => {
            Answer::ClassifyTokens(whole(inference.classify_tokens(low(asked, row)).await?))
        }
        Asked::Tokenize(asked) => {
            Answer::Tokenize(whole(inference.tokenize(low(asked, row)).await?))
        }
        Asked::Generate(asked) => {
            let pieces = inference.generate(low(asked, row)).await?;
            Answer::Generate(gather(pieces.into_inner()).await?)
        }
        Asked::Chat(asked) => {
            let pieces = inference.chat(low(asked, row)).await?;
            Answer::Chat(gather(pieces.into_inner()).await?)
        }
        Asked::Http(_) => return Err(Status::internal("a row of HTTP was kept as a typed one")),
    })
}

fn low<T>(asked: T, row: &RowWork) -> Request<T> {
    let metadata = tonic::metadata::MetadataMap::from_headers(headers(row));
    Request::from_parts(metadata, tonic::Extensions::default(), asked)
}

fn whole<T>(response: Response<T>) -> T {
    response.into_inner()
}

/// Puts what is generated together, each continuation to one message.
async fn gather(
    mut pieces: impl futures_util::Stream<Item = Result<GenerateResponse, Status>> + Unpin,
) -> Result<GenerateResult, Status> {
    let mut continuations: Vec<GenerateResponse> = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        let at = piece.index as usize;
        if continuations.len() <= at {
            continuations.resize_with(at + 1, GenerateResponse::default);
        }
        let gathered = &mut continuations[at];
        gathered.model = piece.model;
        gathered.index = piece.index;
        gathered.text.push_str(&piece.text);
        gathered.tokens.extend(piece.tokens);
        gathered.finish = piece.finish.or(gathered.finish.take());
    }
    Ok(GenerateResult { continuations })
}
