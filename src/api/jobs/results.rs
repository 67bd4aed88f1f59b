//! From the result that is kept to what the protocols tell of it.

use prost::Message as _;
use tonic::Code;

use crate::{
    api::json::to_json,
    api::proto::ferry::v1::{HttpResponse, JobResult, RowError, job_result},
    error::RequestError,
    jobs::{JobId, RowForm, StoredResult, Unrun, write_http_result},
};

/// A result as a message.
///
/// # Errors
/// [`RequestError::Internal`] when what was kept is none.
pub fn typed_result(result: &StoredResult) -> Result<JobResult, RequestError> {
    let told = |told| JobResult {
        row: result.index,
        id: result.id.clone(),
        result: Some(told),
    };
    if let Some(unrun) = result.unrun {
        return Ok(told(job_result::Result::Error(not_run(unrun))));
    }
    if let RowForm::Http(_) = result.form {
        let body = String::from_utf8(result.body.to_vec()).map_err(RequestError::internal)?;
        let status = result.status.into();
        return Ok(told(job_result::Result::Http(HttpResponse {
            status,
            body,
        })));
    }
    let kept = JobResult::decode(&*result.body).map_err(RequestError::internal)?;
    Ok(told(kept.result.unwrap_or_else(|| {
        // Running it panicked.
        job_result::Result::Error(RowError {
            code: Code::Internal as i32,
            message: "running this row failed".to_owned(),
        })
    })))
}

fn not_run(unrun: Unrun) -> RowError {
    let (code, message) = match unrun {
        Unrun::Expired => (Code::DeadlineExceeded, "not run: the job's time was over"),
        Unrun::Cancelled => (Code::Cancelled, "not run: the job was cancelled"),
    };
    RowError {
        code: code as i32,
        message: message.to_owned(),
    }
}

/// A result as a line of JSON, line break included.
///
/// # Errors
/// [`RequestError::Internal`] when what was kept is none.
pub fn json_line(job: JobId, result: &StoredResult) -> Result<Vec<u8>, RequestError> {
    if let RowForm::Http(_) = result.form {
        return Ok(write_http_result(job, result));
    }
    let mut line = to_json(&typed_result(result)?, "ferry.v1.JobResult")?;
    line.push(b'\n');
    Ok(line)
}
