//! What is known of a job beside its rows and results.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::id::{AnyFileId, FileId, JobId};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Its rows are coming in or are being read.
    Validating,
    /// In line.
    Queued,
    /// Rows are run.
    Running,
    /// No more rows are run; those that were not are marked so.
    Cancelling,
    /// Every row was run.
    Completed,
    /// Its input was refused; nothing was run.
    Failed,
    /// Ended by a caller.
    Cancelled,
    /// Ended by its time.
    Expired,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Validating,
        Self::Queued,
        Self::Running,
        Self::Cancelling,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Whether nothing more happens to the job.
    pub fn has_ended(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired
        )
    }

    /// Its name, in labels and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// Why a row of an ended job was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unrun {
    /// The job was cancelled.
    Cancelled,
    /// The job's time was over.
    Expired,
}

impl Unrun {
    /// How it is kept: in the place of a status.
    pub(super) fn to_number(self) -> u16 {
        match self {
            Self::Cancelled => 0,
            Self::Expired => 1,
        }
    }

    pub(super) fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Cancelled,
            _ => Self::Expired,
        }
    }

    /// The state the job ends in.
    pub(super) fn state(self) -> JobState {
        match self {
            Self::Cancelled => JobState::Cancelled,
            Self::Expired => JobState::Expired,
        }
    }
}

/// A line of an input that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineFault {
    /// The line, from 1; 0 for the input as a whole.
    pub line: u32,
    /// What kind of fault, for programs.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
}

/// A job that was made of a file, as OpenAI's batches are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The path that every line must name.
    pub endpoint: String,
    /// The file.
    pub input: FileId,
    /// How the time it has was written, such as `24h`.
    pub window: String,
    /// Bytes of its output file; 0 for none.
    pub output_bytes: u64,
    /// Bytes of its error file; 0 for none.
    pub error_bytes: u64,
}

/// What of the call that submitted a job holds for its rows, whenever they are run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Submitter {
    /// The name of its API key; empty without one.
    pub key: String,
    /// The models that the key opens; `None` for all.
    pub models: Option<Vec<String>>,
    /// The caller's span, as W3C's `traceparent` writes it; empty without one.
    pub traceparent: String,
    /// W3C's `tracestate` beside it.
    pub tracestate: String,
}

/// What is known of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its name.
    pub id: JobId,
    /// What its submitter calls it.
    pub label: String,
    /// Whose it is.
    pub tenant: String,
    /// What of its submission holds for its rows.
    #[serde(default)]
    pub submitter: Submitter,
    /// What its submitter wants to know of it later.
    pub metadata: BTreeMap<String, String>,
    /// The file it was made of.
    pub batch: Option<Batch>,
    /// Where it stands.
    pub state: JobState,
    /// Rows in all.
    pub total: u32,
    /// Rows that were answered.
    pub done: u32,
    /// Rows whose answer is an error.
    pub failed: u32,
    /// Rows that were not run, because the job was cancelled or expired.
    pub unrun: u32,
    /// Lines of its input that were refused.
    pub faults: Vec<LineFault>,
    /// Bytes of its rows and results.
    pub bytes: u64,
    /// When it was created, in milliseconds since 1970; so are the others.
    pub created_ms: u64,
    /// When its last row was in.
    pub queued_ms: Option<u64>,
    /// When its first row was run.
    pub started_ms: Option<u64>,
    /// When it was told to end.
    pub cancelling_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// When its time is over.
    pub expires_ms: u64,
}

impl JobRecord {
    /// Rows that have a result.
    pub fn ended_rows(&self) -> u32 {
        self.done + self.failed + self.unrun
    }

    /// Rows that are still to be run.
    pub fn waiting_rows(&self) -> u32 {
        if self.state == JobState::Failed {
            return 0;
        }
        self.total - self.ended_rows()
    }

    /// The file of its answers, when there is one.
    pub fn output_file(&self) -> Option<AnyFileId> {
        let batch = self.batch.as_ref()?;
        (batch.output_bytes > 0).then_some(AnyFileId::Output(self.id))
    }

    /// The file of its errors, when there is one.
    pub fn error_file(&self) -> Option<AnyFileId> {
        let batch = self.batch.as_ref()?;
        (batch.error_bytes > 0).then_some(AnyFileId::Errors(self.id))
    }
}
