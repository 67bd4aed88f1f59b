//! Errors as OpenAI's clients read them: `{"error":{"message","type","param","code"}}`.
//!
//! The HTTP status is the one of `api::status`; `type` follows from it, `code` names the kind of
//! error, `param` the field at fault.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{api::status, error::RequestError};

/// An error on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    param: Option<String>,
    message: String,
    retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

impl ApiError {
    /// An error of the HTTP side itself, about the request as a whole.
    pub fn of_request(status: StatusCode, code: &'static str, message: String) -> Self {
        Self {
            status,
            code,
            param: None,
            message,
            retry_after: None,
        }
    }

    /// The JSON body.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::with_capacity(128 + self.message.len());
        super::output::write_json(
            &mut json,
            &Body {
                error: Detail {
                    message: &self.message,
                    r#type: kind(self.status),
                    param: self.param.as_deref(),
                    code: self.code,
                },
            },
        );
        json
    }
}

/// OpenAI's `type` for a status.
fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        429 => "rate_limit_error",
        499 => "cancelled_error",
        501 => "not_implemented_error",
        503 => "service_unavailable_error",
        504 => "timeout_error",
        500..=599 => "server_error",
        _ => "invalid_request_error",
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        use RequestError as E;
        let code = match &error {
            E::InvalidArgument { .. } => "invalid_value",
            E::ModelNotFound { .. } => "model_not_found",
            E::VersionNotFound { .. } => "model_version_not_found",
            E::ModelNotReady { .. } => "model_not_ready",
            E::WrongTask { .. } => "wrong_task",
            E::Overloaded { .. } => "overloaded",
            E::DeadlineUnreachable { .. } => "deadline_unreachable",
            E::DeadlineExceeded { .. } => "deadline_exceeded",
            E::Cancelled => "cancelled",
            E::ShuttingDown => "shutting_down",
            E::Refused { .. } => "refused",
            E::Unauthenticated { .. } => "unauthenticated",
            E::NotPermitted { .. } => "not_permitted",
            E::NotFound { .. } => "not_found",
            E::NoRoom { .. } => "no_room",
            E::Unimplemented { .. } => "not_implemented",
            E::DeviceMemory { .. } => "out_of_device_memory",
            E::DeviceLost { .. } => "device_lost",
            E::InstanceHung { .. } => "instance_hung",
            E::Internal { .. } => "internal_error",
        };
        let param = match &error {
            E::InvalidArgument { field, .. } => Some(field.clone()),
            E::ModelNotFound { .. } | E::WrongTask { .. } => Some("model".to_owned()),
            _ => None,
        };
        let status = StatusCode::from_u16(status::map(&error).http);
        Self {
            status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            code,
            param,
            message: error.to_string(),
            retry_after: error.retry_after(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status, self.to_json()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, json);
        if let Some(after) = self.retry_after {
            // Whole seconds are all that HTTP has; OpenAI's clients read the finer one first.
            let milliseconds = after.as_millis().clamp(1, 3_600_000) as u64;
            let seconds = milliseconds.div_ceil(1000);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            headers.insert("retry-after-ms", HeaderValue::from(milliseconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_argument_names_its_parameter() {
        let error = ApiError::from(RequestError::invalid("top_p", 7, "0 to 1"));
        let json: serde_json::Value = serde_json::from_slice(&error.to_json()).unwrap();
        let wanted = serde_json::json!({"error": {
            "message": "top_p: found 7; allowed: 0 to 1",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "invalid_value",
        }});
        assert_eq!(json, wanted);
        assert_eq!(error.into_response().status(), 400);
    }

    #[test]
    fn an_overload_tells_in_whole_seconds_when_to_retry() {
        let error = ApiError::from(RequestError::Overloaded {
            what: "9 rows wait".to_owned(),
            retry_after: Duration::from_millis(1200),
        });
        let response = error.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["retry-after-ms"], "1200");
    }
}
