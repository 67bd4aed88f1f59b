//! Why a request, or one row of it, is not answered.
//!
//! One vocabulary for every room below the protocols; what each kind means in gRPC and HTTP stands
//! in one table, `api::status`. Messages say what was wrong, where, and what would be right.

use std::time::Duration;

/// A stage in the way of a request, for errors and traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before anything was done with it.
    Admission,
    /// While its text was being tokenized.
    Tokenize,
    /// While it waited to board a batch.
    Queue,
    /// While its batch was running.
    Execute,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Admission => "admission",
            Self::Tokenize => "tokenize",
            Self::Queue => "queue",
            Self::Execute => "execute",
        })
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// The input breaks a rule that the caller can see and mend.
    #[error("{field}: found {found}; allowed: {allowed}")]
    InvalidArgument {
        /// Path of the field, such as `texts[3]`.
        field: String,
        /// What was found there.
        found: String,
        /// What would have been right.
        allowed: String,
    },
    /// No model of that name.
    #[error("no model named '{name}'; models here: {known}")]
    ModelNotFound {
        /// The name asked for.
        name: String,
        /// The names there are, comma separated.
        known: String,
    },
    /// The model is there, the version is not.
    #[error("model '{name}' has no version '{version}'; ready: {known}")]
    VersionNotFound {
        /// The model's name.
        name: String,
        /// The version asked for.
        version: String,
        /// The versions that are ready.
        known: String,
    },
    /// The model is known but can't answer now.
    #[error("model '{name}' is not ready ({state}): {reason}")]
    ModelNotReady {
        /// The model's name.
        name: String,
        /// Its state.
        state: String,
        /// Why it is in that state.
        reason: String,
    },
    /// The model does something else than was asked of it.
    #[error("model '{model}' does '{task}', not '{asked}'")]
    WrongTask {
        /// The model's name.
        model: String,
        /// What it does.
        task: String,
        /// What was asked.
        asked: String,
    },
    /// A bound is reached; the same request may pass later.
    #[error("overloaded: {what}; retry in {} ms", retry_after.as_millis())]
    Overloaded {
        /// Which bound.
        what: String,
        /// When room is expected.
        retry_after: Duration,
    },
    /// The work ahead takes longer than the request's deadline leaves.
    #[error(
        "can't be answered in time: about {} ms needed, {} ms left; retry in {} ms",
        needed.as_millis(), left.as_millis(), retry_after.as_millis()
    )]
    DeadlineUnreachable {
        /// Predicted time to an answer.
        needed: Duration,
        /// Time to the deadline.
        left: Duration,
        /// When the backlog should be short enough.
        retry_after: Duration,
    },
    /// The deadline passed.
    #[error("deadline exceeded in stage '{stage}'")]
    DeadlineExceeded {
        /// Where the request was then.
        stage: Stage,
    },
    /// The caller went away.
    #[error("cancelled by the caller")]
    Cancelled,
    /// The server is going down; another replica can answer.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// What was asked for is not possible as things stand; an operator must change something first.
    #[error("refused: {what}")]
    Refused {
        /// Why, and what to do first.
        what: String,
    },
    /// The caller did not say who it is, or is not who it says.
    #[error("not authenticated: {reason}")]
    Unauthenticated {
        /// What is missing or wrong, and what to do.
        reason: String,
    },
    /// The server is told not to do this for anyone here.
    #[error("not permitted: {what}")]
    NotPermitted {
        /// What it is, and what to do instead.
        what: String,
    },
    /// A part of a protocol that Ferry does not do.
    #[error("not implemented: {what}")]
    Unimplemented {
        /// What it is, and what to do instead.
        what: String,
    },
    /// Something else than a model that isn't there: a job, a file.
    #[error("no {what} '{id}'")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// The name it was looked for by.
        id: String,
    },
    /// A bound on what is kept is reached, or the disk is full.
    #[error("no room: {what}")]
    NoRoom {
        /// Which bound, and what makes room.
        what: String,
    },
    /// The device has no room for this row, even alone.
    #[error("out of memory on the device: {what}; send less text, or fewer tokens, at a time")]
    DeviceMemory {
        /// What the device said.
        what: String,
    },
    /// The device under the model is lost, and no other instance is left.
    #[error("the device under the model failed: {reason}")]
    DeviceLost {
        /// What the device said.
        reason: String,
    },
    /// The model did not come back from what it was given; another instance takes its place.
    #[error(
        "the model did not answer within {} s; this instance of it is given up and replaced",
        lasted.as_secs()
    )]
    InstanceHung {
        /// How long it was waited for.
        lasted: Duration,
    },
    /// Ferry's own fault.
    #[error("internal error: {what}")]
    Internal {
        /// What happened.
        what: String,
    },
}

impl RequestError {
    /// An [`RequestError::InvalidArgument`] from anything printable.
    pub fn invalid(
        field: impl Into<String>,
        found: impl std::fmt::Display,
        allowed: impl std::fmt::Display,
    ) -> Self {
        Self::InvalidArgument {
            field: field.into(),
            found: found.to_string(),
            allowed: allowed.to_string(),
        }
    }

    /// A [`RequestError::Internal`] from anything printable.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        Self::Internal {
            what: what.to_string(),
        }
    }

    /// When to try again, where that may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. }
            | Self::DeadlineUnreachable { retry_after, .. } => Some(*retry_after),
            // It is being made anew, or the process is being replaced.
            Self::DeviceLost { .. } | Self::InstanceHung { .. } => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}
