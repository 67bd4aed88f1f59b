//! Why a command did not work, what to do about it, and the exit code for it.

use std::{process::ExitCode, time::Duration};

use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Domain of the server's reasons for refusing an action.
const DOMAIN: &str = "ferry.v1.Admin";

/// Why a command did not work.
#[derive(Debug, thiserror::Error)]
pub enum AdminFailure {
    /// What was typed can't be right.
    #[error("{0}")]
    Usage(String),
    /// No server there.
    #[error(
        "can't reach {url}: {reason}; is `ferry serve` running there? Its log names the admin listener \
         (admin=…); name another with --server or FERRY_ADMIN_SERVER"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// The server did not answer for so long.
    #[error(
        "no end within {} s; what is under way in the server goes on, `ferry admin status` shows it",
        limit.as_secs()
    )]
    TimedOut {
        /// How long was waited.
        limit: Duration,
    },
    /// The stream ended without a last word.
    #[error(
        "the server ended the call without saying how it went; see `ferry admin status` and its log"
    )]
    CutShort,
    /// The server's answer.
    #[error("{}{}", status.message(), advice(status))]
    Answer {
        /// As it came.
        status: Box<Status>,
    },
    /// The system refused something.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

impl From<Status> for AdminFailure {
    fn from(status: Status) -> Self {
        Self::Answer {
            status: Box::new(status),
        }
    }
}

impl AdminFailure {
    /// 3 when the server understood and refused or failed, else 1.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.reason().is_some() { 3 } else { 1 })
    }

    /// The server's reason for refusing an action, such as `LOAD_FAILED`.
    fn reason(&self) -> Option<String> {
        let Self::Answer { status } = self else {
            return None;
        };
        status
            .get_details_error_info()
            .filter(|info| info.domain == DOMAIN)
            .map(|info| info.reason)
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let code = match self {
            Self::Answer { status } => format!("{:?}", status.code()),
            Self::Usage(_) => "Usage".to_owned(),
            Self::Unreachable { .. } => "Unreachable".to_owned(),
            Self::TimedOut { .. } => "TimedOut".to_owned(),
            Self::CutShort => "CutShort".to_owned(),
            Self::System(_) => "System".to_owned(),
        };
        json!({"error": {"code": code, "reason": self.reason(), "message": self.to_string()}})
    }
}

/// What to do, where the server's own text doesn't say.
fn advice(status: &Status) -> &'static str {
    let message = status.message();
    match status.code() {
        Code::NotFound if message.contains("no model named") => {
            "; `ferry admin status` lists what is there"
        }
        Code::FailedPrecondition if message.contains("force it") => " (--force)",
        Code::FailedPrecondition => "; what was served before is served still",
        Code::Unimplemented if message.is_empty() => {
            "there is no ferry.v1.Admin at this address; is it the admin listener (admin=… in the \
             server's log), and a server of this version?"
        }
        Code::Unavailable if !message.contains("shutting down") => {
            "; the connection was lost, and what was begun in the server may go on: `ferry admin \
             status` shows it"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_refusal_exits_with_3_and_all_else_with_1() {
        let details = ErrorDetails::with_error_info("LOAD_FAILED", DOMAIN, HashMap::new());
        let status = Status::with_error_details(Code::FailedPrecondition, "cut", details);
        let refused = AdminFailure::from(status);
        assert_eq!(refused.exit_code(), ExitCode::from(3));
        assert_eq!(refused.to_json()["error"]["reason"], "LOAD_FAILED");
        assert!(refused.to_string().starts_with("cut; what was served"));
        let unknown = AdminFailure::from(Status::not_found("no model named 'x'"));
        assert_eq!(unknown.exit_code(), ExitCode::FAILURE);
        assert_eq!(unknown.to_json()["error"]["code"], "NotFound");
    }
}
