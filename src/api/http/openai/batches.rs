//! `/v1/batches`: jobs that are made of a file, as OpenAI has them.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::HeaderMap,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};

use super::{
    errors::ApiError,
    fields::{Fields, Kind},
    request::Incoming,
};
use crate::{
    api::{
        grpc::{DEFAULT_TENANT, Shared},
        jobs::submitter,
    },
    error::RequestError,
    jobs::{AnyFileId, Endpoint, FileId, JobId, JobRecord, JobRequest, JobState, LineFault},
};

/// Batches that a listing tells of, and may.
const LIST_DEFAULT: usize = 20;
const LIST_MOST: usize = 100;

/// The longest window, in days.
const MOST_DAYS: u64 = 366;

const WINDOW: &str = "a number with s, m, h or d, such as \"24h\"; at most 366 days";

/// The routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/batches", get(list).post(create))
        .route("/v1/batches/{id}", get(show))
        .route("/v1/batches/{id}/cancel", post(cancel))
}

#[derive(Serialize)]
struct BatchJson {
    id: String,
    object: &'static str,
    endpoint: String,
    errors: Option<Faults>,
    input_file_id: String,
    completion_window: String,
    status: &'static str,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    created_at: u64,
    in_progress_at: Option<u64>,
    expires_at: u64,
    finalizing_at: Option<u64>,
    completed_at: Option<u64>,
    failed_at: Option<u64>,
    expired_at: Option<u64>,
    cancelling_at: Option<u64>,
    cancelled_at: Option<u64>,
    request_counts: Counts,
    metadata: Option<BTreeMap<String, String>>,
}

#[derive(Serialize)]
struct Faults {
    object: &'static str,
    data: Vec<Fault>,
}

#[derive(Serialize)]
struct Fault {
    code: String,
    message: String,
    param: Option<String>,
    line: Option<u32>,
}

#[derive(Serialize)]
struct Counts {
    total: u32,
    completed: u32,
    failed: u32,
}

#[derive(Serialize)]
struct Batches {
    object: &'static str,
    data: Vec<BatchJson>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

/// What a listing may be asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    after: Option<String>,
    limit: Option<usize>,
}

impl BatchJson {
    /// A job as a batch; `None` when it was not made of a file.
    fn of(job: &JobRecord) -> Option<Self> {
        let batch = job.batch.as_ref()?;
        let seconds = |ms: u64| ms / 1000;
        let ended = |state| {
            job.ended_ms
                .filter(|_| job.state == state)
                .map(|ms| ms / 1000)
        };
        Some(Self {
            id: job.id.batch_name(),
            object: "batch",
            endpoint: batch.endpoint.clone(),
            errors: (!job.faults.is_empty()).then(|| Faults {
                object: "list",
                data: job.faults.iter().map(Fault::of).collect(),
            }),
            input_file_id: batch.input.to_string(),
            completion_window: batch.window.clone(),
            status: status(job.state),
            output_file_id: job.output_file().map(|id| id.to_string()),
            error_file_id: job.error_file().map(|id| id.to_string()),
            created_at: seconds(job.created_ms),
            in_progress_at: job.queued_ms.map(seconds),
            expires_at: seconds(job.expires_ms),
            finalizing_at: ended(JobState::Completed),
            completed_at: ended(JobState::Completed),
            failed_at: ended(JobState::Failed),
            expired_at: ended(JobState::Expired),
            cancelling_at: job.cancelling_ms.map(seconds),
            cancelled_at: ended(JobState::Cancelled),
            request_counts: Counts {
                total: job.total,
                completed: job.done,
                failed: job.failed,
            },
            metadata: (!job.metadata.is_empty()).then(|| job.metadata.clone()),
        })
    }
}

impl Fault {
    fn of(fault: &LineFault) -> Self {
        Self {
            code: fault.code.clone(),
            message: fault.message.clone(),
            param: fault.param.clone(),
            line: Some(fault.line).filter(|&line| line > 0),
        }
    }
}

/// OpenAI's word for a state; it has none for being in line.
fn status(state: JobState) -> &'static str {
    match state {
        JobState::Queued | JobState::Running => "in_progress",
        other => other.name(),
    }
}

async fn create(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let incoming = Incoming::take(&shared, &headers, body).await?;
    let jobs = shared.jobs()?;
    let Asked {
        input,
        endpoint,
        window,
        mut request,
    } = incoming.read(&shared, read)?;
    request.tenant = match &*incoming.context.tenant {
        "" => DEFAULT_TENANT.to_owned(),
        tenant => tenant.to_owned(),
    };
    request.submitter = submitter(&headers);
    let job = jobs.submit_batch(request, endpoint, input, window).await?;
    answer(&job)
}

/// A request that has been read.
#[derive(Debug)]
struct Asked {
    input: FileId,
    endpoint: Endpoint,
    window: String,
    request: JobRequest,
}

fn read(body: &[u8]) -> Result<Asked, RequestError> {
    let mut fields = Fields::parse(body)?;
    let name: String = fields.need("input_file_id", "an uploaded file's id")?;
    let Some(AnyFileId::Uploaded(input)) = AnyFileId::parse(&name) else {
        return Err(RequestError::NotFound {
            what: "file",
            id: name.chars().take(64).collect(),
        });
    };
    let endpoint = fields.needed("endpoint", "a route")?;
    let paths = Endpoint::ALL.map(Endpoint::path).join(", ");
    let route = Endpoint::of_path(&endpoint.read::<String>(&paths)?);
    let route = route.ok_or_else(|| endpoint.refuse(&paths))?;
    let window = fields.needed("completion_window", WINDOW)?;
    let text: String = window.read(WINDOW)?;
    let expires_in = parse_window(&text).ok_or_else(|| window.refuse(WINDOW))?;
    let metadata = match fields.take("metadata") {
        Some(field) if field.kind() == Kind::Object => field.read("an object of texts")?,
        Some(field) => return Err(field.refuse("an object of texts")),
        None => BTreeMap::new(),
    };
    fields.finish()?;
    Ok(Asked {
        input,
        endpoint: route,
        window: text,
        request: JobRequest {
            metadata,
            expires_in: Some(expires_in),
            ..JobRequest::default()
        },
    })
}

fn parse_window(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let time = number.checked_mul(seconds)?;
    (1..=MOST_DAYS * 86_400)
        .contains(&time)
        .then(|| Duration::from_secs(time))
}

async fn show(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    answer(&*shared.jobs()?.job(parse(&name)?)?)
}

async fn cancel(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let jobs = shared.jobs()?;
    let id = parse(&name)?;
    let job = jobs.job(id)?;
    if job.batch.is_none() {
        return Err(no_batch(&name).into());
    }
    if job.state.has_ended() {
        let state = job.state.name();
        let what = format!("{name} is {state}; only a batch that has not ended can be cancelled");
        return Err(RequestError::Refused { what }.into());
    }
    answer(&*jobs.cancel(id).await?)
}

async fn list(
    State(shared): State<Shared>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(listing) = listing
        .map_err(|error| RequestError::invalid("query", error.body_text(), "after, limit"))?;
    let jobs = shared.jobs()?.jobs();
    let most = listing.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=LIST_MOST).contains(&most) {
        let allowed = format!("1 to {LIST_MOST}");
        return Err(RequestError::invalid("limit", most, allowed).into());
    }
    let after = listing.after.as_deref().map(parse).transpose()?;
    let newest_first = jobs.iter().rev();
    let mut batches = newest_first
        .filter(|job| after.is_none_or(|after| job.id < after))
        .filter_map(|job| BatchJson::of(job));
    let data: Vec<_> = batches.by_ref().take(most).collect();
    Ok(Json(Batches {
        object: "list",
        first_id: data.first().map(|batch| batch.id.clone()),
        last_id: data.last().map(|batch| batch.id.clone()),
        has_more: batches.next().is_some(),
        data,
    })
    .into_response())
}

fn answer(job: &JobRecord) -> Result<Response, ApiError> {
    let batch = BatchJson::of(job).ok_or_else(|| no_batch(&job.id.batch_name()))?;
    Ok(Json(batch).into_response())
}

fn parse(name: &str) -> Result<JobId, RequestError> {
    JobId::parse(name)
        .filter(|_| name.starts_with("batch_"))
        .ok_or_else(|| no_batch(name))
}

fn no_batch(name: &str) -> RequestError {
    RequestError::NotFound {
        what: "batch",
        id: name.chars().take(64).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read_with_their_unit() {
        assert_eq!(parse_window("24h"), Some(Duration::from_secs(86_400)));
        assert_eq!(parse_window("90s"), Some(Duration::from_secs(90)));
        for wrong in [
            "",
            "h",
            "0h",
            "24",
            "-1h",
            "1w",
            "367d",
            "99999999999999999999d",
        ] {
            assert_eq!(parse_window(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_batch_is_named() {
        let file = "\"input_file_id\":\"file-0000000000000001\"";
        for (body, says) in [
            ("{}".to_owned(), "input_file_id: found nothing"),
            ("{\"input_file_id\":\"x\"}".to_owned(), "no file 'x'"),
            (format!("{{{file}}}"), "endpoint: found nothing"),
            (
                format!("{{{file},\"endpoint\":\"/v1/images\"}}"),
                "endpoint: found \"/v1/images\"",
            ),
            (
                format!("{{{file},\"endpoint\":\"/v1/embeddings\",\"completion_window\":\"1w\"}}"),
                "completion_window: found \"1w\"",
            ),
        ] {
            let error = read(body.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(says), "{body}: {error}");
        }
    }
}
