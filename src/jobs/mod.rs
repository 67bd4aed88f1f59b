//! Requests that can wait: rows are taken in, kept on disk, run in the space that other requests
//! leave, and their answers kept until they are fetched.
//!
//! A row is one request. Every row of a job is in exactly one of two tables: `rows`, where it waits,
//! or `results`. One transaction moves it from one to the other, so that a row ends exactly once
//! whenever the process ends: what was not committed is run again, what was committed never is.
//!
//! This room knows nothing of models or protocols: how a row is run comes as a [`RunRow`], and what
//! rows and answers hold are bytes to it.

#[cfg(test)]
mod clock_tests;
mod database;
mod file;
mod handle;
mod id;
mod job;
mod lanes;
mod lines;
mod record;
mod row;
mod runner;
mod store;
mod submission;
mod table;
mod validate;

pub use file::{FilePart, FileRecord};
pub use handle::{Jobs, StartError};
pub use id::{AnyFileId, FileId, JobId};
pub use lines::{LineSplitter, http_row, read_http_row, write_http_result};
pub use record::{Batch, JobRecord, JobState, LineFault, Submitter, Unrun};
pub use row::{Endpoint, NewRow, RowForm, RowWork, RunEnd, RunRow, StoredResult};
pub use runner::Runner;
pub use store::Live;
pub use submission::{FileUpload, JobRequest, Submission};
