//! A row on its way: as it is submitted, as it is run, as it has ended.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    id::JobId,
    record::{Submitter, Unrun},
};

/// One of the HTTP routes that a row may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/embeddings`.
    Embeddings,
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    ChatCompletions,
    /// `/v1/rerank`.
    Rerank,
}

impl Endpoint {
    /// Every one of them.
    pub const ALL: [Self; 4] = [
        Self::Embeddings,
        Self::Completions,
        Self::ChatCompletions,
        Self::Rerank,
    ];

    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Embeddings => "/v1/embeddings",
            Self::Completions => "/v1/completions",
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Rerank => "/v1/rerank",
        }
    }

    /// The route of a path.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.path() == path)
    }

    /// Whether it generates text.
    pub fn generates(self) -> bool {
        matches!(self, Self::Completions | Self::ChatCompletions)
    }
}

/// What the bytes of a row are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowForm {
    /// A `ferry.v1.JobRow`; its result is a `ferry.v1.JobResult`.
    Typed,
    /// The body of an HTTP request; its result is the body of the answer.
    Http(Endpoint),
}

impl RowForm {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Typed => 0,
            Self::Http(Endpoint::Embeddings) => 1,
            Self::Http(Endpoint::Completions) => 2,
            Self::Http(Endpoint::ChatCompletions) => 3,
            Self::Http(Endpoint::Rerank) => 4,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Typed,
            1 => Self::Http(Endpoint::Embeddings),
            2 => Self::Http(Endpoint::Completions),
            3 => Self::Http(Endpoint::ChatCompletions),
            4 => Self::Http(Endpoint::Rerank),
            _ => return None,
        })
    }
}

/// A row as it is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRow {
    /// Chosen by the caller; comes back with the result. May be empty.
    pub id: String,
    /// The model that it is for, as the row names it.
    pub model: String,
    /// Whether that model generates.
    pub generates: bool,
    /// Texts or sequences in it.
    pub weight: u32,
    /// What `body` is.
    pub form: RowForm,
    /// What is to be run.
    pub body: Vec<u8>,
}

/// A row that is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowWork {
    /// The job it is of.
    pub job: JobId,
    /// Its place in the job, from 0.
    pub index: u32,
    /// The caller's name for it.
    pub id: String,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// What of its job's submission holds for it.
    pub submitter: Arc<Submitter>,
    /// What `body` is.
    pub form: RowForm,
    /// What is to be run.
    pub body: Bytes,
    pub(super) model: String,
    pub(super) generates: bool,
    pub(super) weight: u32,
}

/// What became of an attempt to run a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// It has its answer.
    Answered {
        /// Whether the answer is an error.
        failed: bool,
        /// The HTTP status; 0 for a typed row.
        status: u16,
        /// The answer.
        body: Bytes,
    },
    /// It can't be run now, through no fault of its own.
    Later {
        /// Why.
        reason: String,
        /// When to try again, where that is known.
        after: Option<Duration>,
    },
}

/// Runs a row at the lowest priority. A future that is dropped cancels what it began.
pub type RunRow =
    Arc<dyn Fn(RowWork) -> Pin<Box<dyn Future<Output = RunEnd> + Send>> + Send + Sync>;

/// How a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Failed,
    Unrun,
}

impl Outcome {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Done, Self::Failed, Self::Unrun]
            .into_iter()
            .find(|outcome| *outcome as u8 == byte)
    }
}

/// A row that has ended.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredResult {
    /// Its place in the job, from 0.
    pub index: u32,
    /// The caller's name for it.
    pub id: String,
    /// What the row was, and with it what `body` is.
    pub form: RowForm,
    /// Whether it has no answer, or an error for one.
    pub failed: bool,
    /// Why it was never run; `body` is empty then.
    pub unrun: Option<Unrun>,
    /// The HTTP status; 0 for a typed row.
    pub status: u16,
    /// The answer.
    pub body: Bytes,
}

impl fmt::Debug for StoredResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredResult")
            .field("index", &self.index)
            .field("id", &self.id)
            .field("failed", &self.failed)
            .field("unrun", &self.unrun)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}
