//! What an operator's status says beside the request's: that an action was refused or failed, as
//! opposed to a call that did not come so far.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{api::status::status_of, error::RequestError};

/// Domain of the reasons below.
pub const DOMAIN: &str = "ferry.v1.Admin";

/// The status of an action that did not work.
///
/// A model that did not load is `UNAVAILABLE` to those who send it requests, and they retry. An
/// operator's action is `FAILED_PRECONDITION`: to send it again is of no use before something else
/// is done.
pub fn action_status(error: &RequestError) -> Status {
    let Some(reason) = reason_of(error) else {
        return status_of(error);
    };
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, HashMap::new());
    let plain = status_of(error);
    Status::with_error_details(Code::FailedPrecondition, plain.message(), details)
}

fn reason_of(error: &RequestError) -> Option<&'static str> {
    match error {
        RequestError::ModelNotReady { state, .. } if state == "load failed" => Some("LOAD_FAILED"),
        RequestError::ModelNotReady { .. } => Some("NOT_READY"),
        RequestError::Refused { .. } => Some("REFUSED"),
        _ => None,
    }
}
