//! The one table from [`RequestError`] to gRPC codes, HTTP codes and metric outcomes.
//!
//! | error | gRPC | HTTP |
//! | --- | --- | --- |
//! | `InvalidArgument`, `WrongTask` | `INVALID_ARGUMENT` | 400 |
//! | `ModelNotFound`, `VersionNotFound` | `NOT_FOUND` | 404 |
//! | `ModelNotReady`, `ShuttingDown`, `DeviceLost` and `InstanceHung` (with a retry hint) | `UNAVAILABLE` | 503 |
//! | `Overloaded`, `DeadlineUnreachable` | `RESOURCE_EXHAUSTED`, with a retry hint | 429 |
//! | `DeadlineExceeded` | `DEADLINE_EXCEEDED` | 504 |
//! | `NotFound` | `NOT_FOUND` | 404 |
//! | `NoRoom`, `DeviceMemory` | `RESOURCE_EXHAUSTED` | 507 |
//! | `Cancelled` | `CANCELLED` | 499 |
//! | `Refused` | `FAILED_PRECONDITION` | 409 |
//! | `Unauthenticated` | `UNAUTHENTICATED` | 401 |
//! | `NotPermitted` | `PERMISSION_DENIED` | 403 |
//! | `Unimplemented` | `UNIMPLEMENTED` | 501 |
//! | `Internal` | `INTERNAL` | 500 |

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{error::RequestError, telemetry::Outcome};

/// Where an error stands in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// The gRPC code.
    pub grpc: Code,
    /// The HTTP status.
    pub http: u16,
    /// How the request is counted.
    pub outcome: Outcome,
}

impl Mapped {
    /// The gRPC code's name.
    pub fn code(&self) -> &'static str {
        code_name(self.grpc)
    }
}

/// A gRPC code's name, as the protocol writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The table.
pub fn map(error: &RequestError) -> Mapped {
    use RequestError as E;
    let (grpc, http, outcome) = match error {
        E::InvalidArgument { .. } | E::WrongTask { .. } => {
            (Code::InvalidArgument, 400, Outcome::Invalid)
        }
        E::ModelNotFound { .. } | E::VersionNotFound { .. } => {
            (Code::NotFound, 404, Outcome::Invalid)
        }
        E::ModelNotReady { .. }
        | E::ShuttingDown
        | E::DeviceLost { .. }
        | E::InstanceHung { .. } => (Code::Unavailable, 503, Outcome::Unavailable),
        E::Overloaded { .. } | E::DeadlineUnreachable { .. } => {
            (Code::ResourceExhausted, 429, Outcome::Overloaded)
        }
        E::DeadlineExceeded { .. } => (Code::DeadlineExceeded, 504, Outcome::DeadlineExceeded),
        E::Cancelled => (Code::Cancelled, 499, Outcome::Cancelled),
        E::Refused { .. } => (Code::FailedPrecondition, 409, Outcome::Invalid),
        E::Unauthenticated { .. } => (Code::Unauthenticated, 401, Outcome::Invalid),
        E::NotPermitted { .. } => (Code::PermissionDenied, 403, Outcome::Invalid),
        E::NotFound { .. } => (Code::NotFound, 404, Outcome::Invalid),
        E::NoRoom { .. } | E::DeviceMemory { .. } => {
            (Code::ResourceExhausted, 507, Outcome::Overloaded)
        }
        E::Unimplemented { .. } => (Code::Unimplemented, 501, Outcome::Invalid),
        E::Internal { .. } => (Code::Internal, 500, Outcome::Internal),
    };
    Mapped {
        grpc,
        http,
        outcome,
    }
}

/// The gRPC status of an error, with `google.rpc` details: the field of a bad argument, and when to
/// retry (also as `grpc-retry-pushback-ms`, which gRPC clients with a retry policy obey).
pub fn status_of(error: &RequestError) -> Status {
    let mut details = ErrorDetails::new();
    if let RequestError::InvalidArgument {
        field,
        found,
        allowed,
    } = error
    {
        let description = format!("found {found}; allowed: {allowed}");
        details.add_bad_request_violation(field, description);
    }
    let retry_after = error.retry_after();
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    let mut status =
        Status::with_error_details(map(error).grpc, bounded(&error.to_string()), details);
    if let Some(retry_after) = retry_after {
        let milliseconds = retry_after.as_millis().clamp(1, 3_600_000) as u64;
        status
            .metadata_mut()
            .insert("grpc-retry-pushback-ms", MetadataValue::from(milliseconds));
    }
    status
}

/// An error's text travels in a header: it must not outgrow what clients take.
fn bounded(message: &str) -> String {
    const LIMIT: usize = 1024;
    match message.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_overload_tells_when_to_retry() {
        let status = status_of(&RequestError::Overloaded {
            what: "8 rows wait, 8 may".to_owned(),
            retry_after: Duration::from_millis(40),
        });
        assert_eq!(status.code(), Code::ResourceExhausted);
        let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
        assert_eq!(pushback, "40");
        let delay = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(delay, Some(Duration::from_millis(40)));
    }

    #[test]
    fn a_bad_argument_names_its_field() {
        let status = status_of(&RequestError::invalid("texts[3]", "9 bytes", "at most 8"));
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "texts[3]");
        assert_eq!(
            status.message(),
            "texts[3]: found 9 bytes; allowed: at most 8"
        );
    }

    #[test]
    fn a_giant_message_is_cut() {
        let error = RequestError::internal("ä".repeat(10_000));
        assert!(status_of(&error).message().chars().count() <= 1025);
    }
}
