//! `/v1/files`: the files that batches are made of, and those that they write.
//!
//! An uploaded file is written to disk as it comes in. Output and error files are not kept: they are
//! written anew from the results whenever they are asked for.

use std::time::Duration;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        DefaultBodyLimit, FromRequest as _, Multipart, Path, Query, Request, State,
        multipart::{Field, MultipartError},
    },
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures_util::stream;
use serde::{Deserialize, Serialize};

use super::errors::ApiError;
use crate::{
    api::grpc::Shared,
    error::RequestError,
    jobs::{AnyFileId, FileId, FileRecord, FileUpload, JobId, JobRecord, Jobs, write_http_result},
};

/// Files that a listing tells of, and may.
const LIST_DEFAULT: usize = 1000;
const LIST_MOST: usize = 10_000;

/// Bytes of a form's field other than the file.
const FIELD_BYTES: usize = 1024;

/// Results that are read from disk at a time, or as many as have [`READ_BYTES`].
const READ_RESULTS: usize = 256;
const READ_BYTES: usize = 1 << 20;

/// How long a file may be kept that says so itself; OpenAI's bounds, in seconds.
const KEEP: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

/// The routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/files", get(list).post(upload))
        .route("/v1/files/{id}", get(show).delete(delete))
        .route("/v1/files/{id}/content", get(content))
        // The bound is the store's, which is told in its own words.
        .layer(DefaultBodyLimit::disable())
}

#[derive(Serialize)]
struct File {
    id: String,
    object: &'static str,
    bytes: u64,
    created_at: u64,
    expires_at: Option<u64>,
    filename: String,
    purpose: &'static str,
    status: &'static str,
    status_details: Option<()>,
}

#[derive(Serialize)]
struct Files {
    object: &'static str,
    data: Vec<File>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

#[derive(Serialize)]
#[allow(clippy::struct_field_names, reason = "OpenAI's names")]
struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

/// What a listing may be asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    after: Option<String>,
    limit: Option<usize>,
    order: Option<String>,
    purpose: Option<String>,
}

impl File {
    fn uploaded(file: &FileRecord) -> Self {
        Self {
            id: file.id.to_string(),
            object: "file",
            bytes: file.bytes,
            created_at: file.created_ms / 1000,
            expires_at: Some(file.expires_ms / 1000),
            filename: file.filename.clone(),
            purpose: "batch",
            status: "processed",
            status_details: None,
        }
    }

    /// A file that a batch wrote; `None` when it wrote none.
    fn written(job: &JobRecord, id: AnyFileId) -> Option<Self> {
        let batch = job.batch.as_ref()?;
        let (bytes, kind) = match id {
            AnyFileId::Errors(_) => (batch.error_bytes, "error"),
            _ => (batch.output_bytes, "output"),
        };
        (bytes > 0).then(|| Self {
            id: id.to_string(),
            object: "file",
            bytes,
            created_at: job.ended_ms.unwrap_or(job.created_ms) / 1000,
            expires_at: None,
            filename: format!("{}_{kind}.jsonl", job.id.batch_name()),
            purpose: "batch_output",
            status: "processed",
            status_details: None,
        })
    }

    fn find(jobs: &Jobs, id: AnyFileId) -> Result<Self, RequestError> {
        match id {
            AnyFileId::Uploaded(id) => Ok(Self::uploaded(&*jobs.file(id)?)),
            AnyFileId::Output(job) | AnyFileId::Errors(job) => jobs
                .job(job)
                .ok()
                .and_then(|job| Self::written(&job, id))
                .ok_or_else(|| no_file(&id.to_string())),
        }
    }
}

async fn list(
    State(shared): State<Shared>,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(listing) = listing.map_err(|error| {
        RequestError::invalid("query", error.body_text(), "after, limit, order, purpose")
    })?;
    let jobs = shared.jobs()?;
    let mut files: Vec<File> = jobs
        .files()
        .iter()
        .map(|file| File::uploaded(file))
        .collect();
    for job in jobs.jobs() {
        let ids = [AnyFileId::Output(job.id), AnyFileId::Errors(job.id)];
        files.extend(ids.into_iter().filter_map(|id| File::written(&job, id)));
    }
    if let Some(purpose) = &listing.purpose {
        files.retain(|file| file.purpose == purpose);
    }
    files.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    match listing.order.as_deref() {
        None | Some("desc") => files.reverse(),
        Some("asc") => {}
        Some(other) => {
            let found = other.chars().take(32).collect::<String>();
            return Err(RequestError::invalid("order", found, "asc or desc").into());
        }
    }
    if let Some(after) = &listing.after {
        let at = files.iter().position(|file| file.id == *after);
        let at = at.ok_or_else(|| no_file(after))?;
        files.drain(..=at);
    }
    let most = listing.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=LIST_MOST).contains(&most) {
        let allowed = format!("1 to {LIST_MOST}");
        return Err(RequestError::invalid("limit", most, allowed).into());
    }
    let has_more = files.len() > most;
    files.truncate(most);
    Ok(Json(Files {
        object: "list",
        first_id: files.first().map(|file| file.id.clone()),
        last_id: files.last().map(|file| file.id.clone()),
        data: files,
        has_more,
    })
    .into_response())
}

async fn show(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let file = File::find(shared.jobs()?, parse(&name)?)?;
    Ok(Json(file).into_response())
}

async fn delete(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let jobs = shared.jobs()?;
    let id = parse(&name)?;
    File::find(jobs, id)?;
    match id {
        AnyFileId::Uploaded(id) => jobs.delete_file(id).await?,
        AnyFileId::Output(job) => jobs.delete_results(job, false).await?,
        AnyFileId::Errors(job) => jobs.delete_results(job, true).await?,
    }
    let deleted = Deleted {
        id: name,
        object: "file",
        deleted: true,
    };
    Ok(Json(deleted).into_response())
}

async fn upload(State(shared): State<Shared>, request: Request) -> Result<Response, ApiError> {
    let jobs = shared.jobs()?;
    let mut form = Multipart::from_request(request, &shared)
        .await
        .map_err(|error| RequestError::invalid("body", error.body_text(), "multipart/form-data"))?;
    let mut purpose = None;
    let mut seconds = None;
    let mut taken: Option<(String, FileUpload)> = None;
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        match field.name().unwrap_or_default() {
            "purpose" => purpose = Some(text(field).await?),
            "expires_after[seconds]" => seconds = Some(text(field).await?),
            "expires_after[anchor]" => {
                let anchor = text(field).await?;
                if anchor != "created_at" {
                    let name = "expires_after.anchor";
                    return Err(RequestError::invalid(name, anchor, "created_at").into());
                }
            }
            "file" if taken.is_none() => {
                let filename = field.file_name().unwrap_or("upload.jsonl").to_owned();
                let mut file = jobs.upload().await?;
                while let Some(bytes) = field.chunk().await.map_err(broken)? {
                    file.push(&bytes).await?;
                }
                taken = Some((filename, file));
            }
            other => {
                let name: String = other.chars().take(64).collect();
                let allowed = "file (once), purpose, expires_after";
                return Err(RequestError::invalid(name, "a field", allowed).into());
            }
        }
    }
    match purpose.as_deref() {
        Some("batch") => {}
        found => {
            let found = found.unwrap_or("nothing").to_owned();
            return Err(RequestError::invalid("purpose", found, "batch").into());
        }
    }
    let keep = seconds.map(read_keep).transpose()?;
    let (filename, file) =
        taken.ok_or_else(|| RequestError::invalid("file", "nothing", "a file"))?;
    let file = file.finish(filename, keep).await?;
    Ok(Json(File::uploaded(&file)).into_response())
}

fn read_keep(seconds: String) -> Result<Duration, RequestError> {
    let read = seconds.parse().ok().filter(|time| KEEP.contains(time));
    read.map(Duration::from_secs).ok_or_else(|| {
        let allowed = format!("{} to {}", KEEP.start(), KEEP.end());
        RequestError::invalid("expires_after.seconds", seconds, allowed)
    })
}

/// The text of a field that is no file.
async fn text(mut field: Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        if bytes.len() + chunk.len() > FIELD_BYTES {
            let name = field.name().unwrap_or_default().to_owned();
            let allowed = format!("at most {FIELD_BYTES} bytes");
            return Err(RequestError::invalid(name, "more bytes", allowed).into());
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| {
        RequestError::invalid(field.name().unwrap_or_default(), "no UTF-8", "text").into()
    })
}

#[allow(clippy::needless_pass_by_value, reason = "used with map_err")]
fn broken(error: MultipartError) -> ApiError {
    let message = format!("the form can't be read: {}", error.body_text());
    ApiError::of_request(StatusCode::BAD_REQUEST, "invalid_form", message)
}

async fn content(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let jobs = shared.jobs()?.clone();
    let id = parse(&name)?;
    let file = File::find(&jobs, id)?;
    let body = match id {
        AnyFileId::Uploaded(id) => {
            Body::from_stream(stream::unfold(Some((jobs, id, 0)), |state| async move {
                let (jobs, id, part) = state?;
                Some(uploaded_part(jobs, id, part).await)
            }))
        }
        AnyFileId::Output(job) => written_body(jobs, job, false),
        AnyFileId::Errors(job) => written_body(jobs, job, true),
    };
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, file.bytes.to_string()),
    ];
    Ok((headers, body).into_response())
}

type Step<S> = (Result<Bytes, RequestError>, Option<S>);

async fn uploaded_part(jobs: Jobs, id: FileId, part: u32) -> Step<(Jobs, FileId, u32)> {
    match jobs.file_part(id, part).await {
        Ok(read) => {
            let next = read.next.map(|next| (jobs, id, next));
            (Ok(Bytes::from(read.bytes)), next)
        }
        Err(error) => (Err(error), None),
    }
}

fn written_body(jobs: Jobs, job: JobId, errors: bool) -> Body {
    Body::from_stream(stream::unfold(Some((jobs, 0)), move |state| async move {
        let (jobs, from) = state?;
        match jobs.results(job, from, READ_RESULTS, READ_BYTES).await {
            Ok(results) => {
                let last = results.last()?.index;
                let mut lines = Vec::new();
                for result in results.iter().filter(|result| result.failed == errors) {
                    lines.extend(write_http_result(job, result));
                }
                Some((Ok(Bytes::from(lines)), Some((jobs, last + 1))))
            }
            Err(error) => Some((Err::<Bytes, RequestError>(error), None)),
        }
    }))
}

fn parse(name: &str) -> Result<AnyFileId, RequestError> {
    AnyFileId::parse(name).ok_or_else(|| no_file(name))
}

fn no_file(name: &str) -> RequestError {
    RequestError::NotFound {
        what: "file",
        id: name.chars().take(64).collect(),
    }
}
