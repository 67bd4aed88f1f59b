//! What is being taken in: a job's rows, a file's contents. Both are written in groups as they come;
//! one that is dropped before its end leaves nothing behind.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    file::FileRecord,
    handle::{Jobs, off_thread},
    id::{FileId, JobId, now_ms},
    lines::{SeenIds, check_id, duplicate_id},
    record::{Batch, JobRecord, JobState, Submitter},
    row::NewRow,
    store::Store,
    table::PARTS,
};
use crate::error::RequestError;

/// Rows that are written by one transaction, or as many as have [`GROUP_BYTES`].
pub(super) const GROUP_ROWS: usize = 1024;

/// Bytes that are gathered before they are written.
pub(super) const GROUP_BYTES: usize = 1 << 20;

/// Bytes of a part of a file.
const PART_BYTES: usize = 256 << 10;

/// Keys of a job's metadata at most, and bytes of one and its value; OpenAI's bounds.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);

/// Bytes of a job's label or a file's name at most.
const MAX_LABEL_BYTES: usize = 256;

/// What a job is asked to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobRequest {
    /// What its submitter calls it.
    pub label: String,
    /// Whose it is; fairness is between tenants.
    pub tenant: String,
    /// What of its submission holds for its rows.
    pub submitter: Submitter,
    /// What its submitter wants to know of it later.
    pub metadata: BTreeMap<String, String>,
    /// The time it has; `None` for `jobs.expiry_hours`.
    pub expires_in: Option<Duration>,
}

impl JobRequest {
    /// The record of a new job.
    pub(super) fn record(
        self,
        store: &Store,
        batch: Option<Batch>,
    ) -> Result<JobRecord, RequestError> {
        self.check()?;
        let created_ms = now_ms();
        let expires_in = self.expires_in.unwrap_or(store.config.expiry());
        Ok(JobRecord {
            // Given when it is written.
            id: JobId(0),
            label: self.label,
            tenant: self.tenant,
            submitter: self.submitter,
            metadata: self.metadata,
            batch,
            state: JobState::Validating,
            total: 0,
            done: 0,
            failed: 0,
            unrun: 0,
            faults: Vec::new(),
            bytes: 0,
            created_ms,
            queued_ms: None,
            started_ms: None,
            cancelling_ms: None,
            ended_ms: None,
            expires_ms: created_ms.saturating_add(expires_in.as_millis() as u64),
        })
    }

    fn check(&self) -> Result<(), RequestError> {
        if self.label.len() > MAX_LABEL_BYTES {
            let found = format!("{} bytes", self.label.len());
            let allowed = format!("at most {MAX_LABEL_BYTES} bytes");
            return Err(RequestError::invalid("label", found, allowed));
        }
        let (most, key_bytes, value_bytes) = MAX_METADATA;
        if self.metadata.len() > most {
            let found = format!("{} keys", self.metadata.len());
            let allowed = format!("at most {most} keys");
            return Err(RequestError::invalid("metadata", found, allowed));
        }
        let mut entries = self.metadata.iter();
        if entries.any(|(key, value)| key.len() > key_bytes || value.len() > value_bytes) {
            let allowed = format!("keys of {key_bytes} bytes, values of {value_bytes}");
            return Err(RequestError::invalid("metadata", "a longer entry", allowed));
        }
        if self.expires_in.is_some_and(|time| time.is_zero()) {
            return Err(RequestError::invalid("expires_in", 0, "1 second or more"));
        }
        Ok(())
    }
}

/// A job whose rows are coming in.
#[derive(Debug)]
pub struct Submission {
    jobs: Jobs,
    id: Option<JobId>,
    gathered: Vec<NewRow>,
    gathered_bytes: usize,
    rows: u32,
    ids: SeenIds,
}

impl Submission {
    pub(super) fn new(jobs: Jobs, id: JobId) -> Self {
        Self {
            jobs,
            id: Some(id),
            gathered: Vec::new(),
            gathered_bytes: 0,
            rows: 0,
            ids: SeenIds::default(),
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Adds a row; `line` is where it stands in its input, 0 when it doesn't come from a file.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when it is too large or its id was given before,
    /// [`RequestError::NoRoom`] when a bound is reached.
    pub async fn add(&mut self, line: u32, row: NewRow) -> Result<(), RequestError> {
        let at = || match line {
            0 => format!("rows[{}]", self.rows),
            line => format!("line {line}"),
        };
        let most = self.jobs.config().max_row_bytes;
        if row.body.len() > most {
            let found = format!("{} bytes", row.body.len());
            let allowed = format!("at most {most} bytes (jobs.max_row_bytes)");
            return Err(RequestError::invalid(at(), found, allowed));
        }
        let most = self.jobs.config().max_rows;
        if self.rows >= most {
            let allowed = format!("at most {most} rows (jobs.max_rows)");
            return Err(RequestError::invalid(at(), "one more row", allowed));
        }
        if !row.id.is_empty() {
            check_id(&row.id)
                .map_err(|found| RequestError::invalid(at(), found, "an id that fits"))?;
            if !self.ids.insert(&row.id) {
                let found = duplicate_id(line, &row.id).message;
                return Err(RequestError::invalid(at(), found, "an id of its own"));
            }
        }
        self.rows += 1;
        self.gathered_bytes += row.body.len();
        self.gathered.push(row);
        if self.gathered.len() >= GROUP_ROWS || self.gathered_bytes >= GROUP_BYTES {
            self.write().await?;
        }
        Ok(())
    }

    /// Puts the job in line and returns it.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when it has no rows, and those of the store.
    pub async fn finish(mut self) -> Result<Arc<JobRecord>, RequestError> {
        if self.rows == 0 {
            return Err(RequestError::invalid("rows", "none", "1 or more"));
        }
        self.write().await?;
        let id = self
            .id
            .ok_or_else(|| RequestError::internal("a job ended twice"))?;
        let store = Arc::clone(&self.jobs.store);
        let job = off_thread(move || store.queue_job(id)).await?;
        self.id = None;
        Ok(job)
    }

    async fn write(&mut self) -> Result<(), RequestError> {
        let rows = std::mem::take(&mut self.gathered);
        self.gathered_bytes = 0;
        let Some(id) = self.id.filter(|_| !rows.is_empty()) else {
            return Ok(());
        };
        let store = Arc::clone(&self.jobs.store);
        off_thread(move || store.add_rows(id, &rows)).await
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let store = Arc::clone(&self.jobs.store);
            spawn_cleaning(move || store.delete_job(id));
        }
    }
}

/// A file whose contents are coming in.
#[derive(Debug)]
pub struct FileUpload {
    jobs: Jobs,
    id: Option<FileId>,
    gathered: Vec<u8>,
    bytes: u64,
}

impl FileUpload {
    pub(super) fn new(jobs: Jobs, id: FileId) -> Self {
        Self {
            jobs,
            id: Some(id),
            gathered: Vec::new(),
            bytes: 0,
        }
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when the file is too large, [`RequestError::NoRoom`] when a
    /// bound is reached.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        let config = self.jobs.config();
        let most = config.max_file_bytes.min(config.max_bytes);
        self.bytes += bytes.len() as u64;
        if self.bytes > most {
            let allowed = format!("at most {most} bytes (jobs.max_file_bytes)");
            return Err(RequestError::invalid("file", "more bytes", allowed));
        }
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GROUP_BYTES {
            self.write().await?;
        }
        Ok(())
    }

    /// Ends the file, which is kept for `keep` or, without, for `jobs.retention_hours`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn finish(
        mut self,
        filename: String,
        keep: Option<Duration>,
    ) -> Result<Arc<FileRecord>, RequestError> {
        self.write().await?;
        let id = self
            .id
            .ok_or_else(|| RequestError::internal("a file ended twice"))?;
        let store = Arc::clone(&self.jobs.store);
        let file = off_thread(move || {
            store.change_file(id, |_, record| {
                record.complete = true;
                record.filename = filename.chars().take(MAX_LABEL_BYTES).collect();
                if let Some(keep) = keep {
                    let keep = keep.as_millis() as u64;
                    record.expires_ms = record.created_ms.saturating_add(keep);
                }
                Ok(())
            })?;
            store.file(id)
        });
        let file = file.await?;
        self.id = None;
        Ok(file)
    }

    async fn write(&mut self) -> Result<(), RequestError> {
        let bytes = std::mem::take(&mut self.gathered);
        let Some(id) = self.id.filter(|_| !bytes.is_empty()) else {
            return Ok(());
        };
        let store = Arc::clone(&self.jobs.store);
        off_thread(move || {
            store.check_room(bytes.len() as u64)?;
            store.change_file(id, |transaction, record| {
                let mut table = transaction.open_table(PARTS)?;
                for part in bytes.chunks(PART_BYTES) {
                    table.insert((id.0, record.parts), part)?;
                    record.parts += 1;
                    record.bytes += part.len() as u64;
                }
                Ok(())
            })
        })
        .await
    }
}

impl Drop for FileUpload {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let store = Arc::clone(&self.jobs.store);
            spawn_cleaning(move || store.delete_file(id));
        }
    }
}

/// Takes back, off the I/O threads, what did not come to its end. Where that can't be done, the next
/// start does it.
fn spawn_cleaning(clean: impl FnOnce() -> Result<(), RequestError> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || {
            if let Err(error) = clean() {
                tracing::debug!(%error, "what was not submitted to its end is left to the next start");
            }
        });
    }
}
