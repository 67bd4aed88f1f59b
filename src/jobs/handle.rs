//! The async world's way to jobs and files.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    database::StoreError,
    file::{FilePart, FileRecord},
    id::{FileId, JobId},
    record::{Batch, JobRecord, JobState},
    row::{Endpoint, StoredResult},
    store::{Live, Store, no_file},
    submission::{FileUpload, JobRequest, Submission},
    table::{self, PARTS, RESULTS},
};
use crate::{config::JobsConfig, error::RequestError, telemetry::JobsMetrics};

/// Why jobs can't be served.
#[derive(Debug, thiserror::Error)]
#[error("can't open the jobs in {}: {message}; another ferry may have them open (jobs.directory)", directory.display())]
pub struct StartError {
    /// The directory.
    pub directory: PathBuf,
    /// What the system or the database said.
    pub message: String,
}

/// Jobs and files; clones are the same.
#[derive(Debug, Clone)]
pub struct Jobs {
    pub(super) store: Arc<Store>,
}

impl Jobs {
    /// Opens what is in `config.directory`. Blocks: after a crash the database is checked first.
    ///
    /// # Errors
    /// [`StartError`] when the directory can't be written to or is in use.
    pub fn open(config: JobsConfig, metrics: JobsMetrics) -> Result<Self, StartError> {
        let directory = config.directory.clone();
        let failed = |message: String| StartError {
            directory: directory.clone(),
            message,
        };
        std::fs::create_dir_all(&directory).map_err(|error| failed(error.to_string()))?;
        match Store::open(config, metrics) {
            Ok(store) => Ok(Self {
                store: Arc::new(store),
            }),
            Err(StoreError::Refused(error)) => Err(failed(error.to_string())),
            Err(StoreError::Database(error)) => Err(failed(error.to_string())),
        }
    }

    /// What is answered where jobs are off.
    pub fn off() -> RequestError {
        RequestError::Refused {
            what: "jobs are off; set jobs.directory in ferry.toml, or start with --jobs DIR"
                .to_owned(),
        }
    }

    /// The bounds in force.
    pub fn config(&self) -> &JobsConfig {
        &self.store.config
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.store.watch()
    }

    /// Every job that was submitted to its end, oldest first.
    pub fn jobs(&self) -> Vec<Arc<JobRecord>> {
        let mut jobs = self.store.jobs();
        jobs.retain(|job| !is_coming_in(job));
        jobs
    }

    /// One job.
    ///
    /// # Errors
    /// [`RequestError::NotFound`].
    pub fn job(&self, id: JobId) -> Result<Arc<JobRecord>, RequestError> {
        self.store.job(id)
    }

    /// How a job that runs comes along.
    pub fn live(&self, id: JobId) -> Live {
        self.store.live(id)
    }

    /// Every file that is here whole, oldest first.
    pub fn files(&self) -> Vec<Arc<FileRecord>> {
        let mut files = self.store.files();
        files.retain(|file| file.complete);
        files
    }

    /// One file that is here whole.
    ///
    /// # Errors
    /// [`RequestError::NotFound`].
    pub fn file(&self, id: FileId) -> Result<Arc<FileRecord>, RequestError> {
        self.store.file(id).and_then(|file| {
            if file.complete {
                Ok(file)
            } else {
                Err(no_file(id))
            }
        })
    }

    /// Begins a job, whose rows are then added.
    ///
    /// # Errors
    /// [`RequestError`] when the request is wrong or a bound is reached.
    pub async fn submit(&self, request: JobRequest) -> Result<Submission, RequestError> {
        let store = Arc::clone(&self.store);
        let job = off_thread(move || {
            store.check_room(1)?;
            store.create_job(request.record(&store, None)?)
        });
        Ok(Submission::new(self.clone(), job.await?.id))
    }

    /// Makes a job of a file, which is read in the background.
    ///
    /// # Errors
    /// [`RequestError`] when the request is wrong, there is no such file or a bound is reached.
    pub async fn submit_batch(
        &self,
        request: JobRequest,
        endpoint: Endpoint,
        input: FileId,
        window: String,
    ) -> Result<Arc<JobRecord>, RequestError> {
        self.file(input)?;
        let store = Arc::clone(&self.store);
        off_thread(move || {
            store.check_room(1)?;
            let batch = Batch {
                endpoint: endpoint.path().to_owned(),
                input,
                window,
                output_bytes: 0,
                error_bytes: 0,
            };
            store.create_job(request.record(&store, Some(batch))?)
        })
        .await
    }

    /// Has a job run no more rows; one that has ended stays as it is.
    ///
    /// # Errors
    /// [`RequestError::NotFound`], and those of the store.
    pub async fn cancel(&self, id: JobId) -> Result<Arc<JobRecord>, RequestError> {
        let store = Arc::clone(&self.store);
        off_thread(move || store.cancel_job(id)).await
    }

    /// Deletes a job that has ended, with its results.
    ///
    /// # Errors
    /// [`RequestError::Refused`] while it has not ended.
    pub async fn delete(&self, id: JobId) -> Result<(), RequestError> {
        let job = self.job(id)?;
        if !job.state.has_ended() {
            let state = job.state.name();
            return Err(RequestError::Refused {
                what: format!("{id} is {state}; cancel it first"),
            });
        }
        let store = Arc::clone(&self.store);
        off_thread(move || store.delete_job(id)).await
    }

    /// Results in the order of the rows, from row `from` on: at most `most`, and one or as many as
    /// have `most_bytes` together.
    ///
    /// # Errors
    /// [`RequestError::NotFound`], and those of the store.
    pub async fn results(
        &self,
        id: JobId,
        from: u32,
        most: usize,
        most_bytes: usize,
    ) -> Result<Vec<StoredResult>, RequestError> {
        self.job(id)?;
        let store = Arc::clone(&self.store);
        off_thread(move || store.results(id, from, most, most_bytes)).await
    }

    /// Deletes the answers of a batch that has ended, or its errors.
    ///
    /// # Errors
    /// [`RequestError`] of the store.
    pub async fn delete_results(&self, id: JobId, failed: bool) -> Result<(), RequestError> {
        let store = Arc::clone(&self.store);
        off_thread(move || {
            store.change_job(id, |transaction, record| {
                let mut freed = 0;
                let mut results = transaction.open_table(RESULTS)?;
                results.retain_in(table::all_of(id.0), |_, value| {
                    let (_, outcome, _, row_id, body) = value;
                    let drop = (outcome != 0) == failed;
                    if drop {
                        freed += table::result_bytes(row_id, body);
                    }
                    !drop
                })?;
                record.bytes = record.bytes.saturating_sub(freed);
                if let Some(batch) = &mut record.batch {
                    *if failed {
                        &mut batch.error_bytes
                    } else {
                        &mut batch.output_bytes
                    } = 0;
                }
                Ok(())
            })
        })
        .await
    }

    /// Begins a file, whose contents are then added.
    ///
    /// # Errors
    /// [`RequestError::NoRoom`] when a bound is reached.
    pub async fn upload(&self) -> Result<FileUpload, RequestError> {
        let store = Arc::clone(&self.store);
        let file = off_thread(move || {
            store.check_room(1)?;
            store.create_file(String::new())
        });
        Ok(FileUpload::new(self.clone(), file.await?.id))
    }

    /// A stretch of a file; `part` is 0 or what the one before told.
    ///
    /// # Errors
    /// [`RequestError::NotFound`], and those of the store.
    pub async fn file_part(&self, id: FileId, part: u32) -> Result<FilePart, RequestError> {
        let store = Arc::clone(&self.store);
        off_thread(move || store.file_part(id, part)).await
    }

    /// Deletes a file that no batch is being read from.
    ///
    /// # Errors
    /// [`RequestError::Refused`] while one is.
    pub async fn delete_file(&self, id: FileId) -> Result<(), RequestError> {
        self.file(id)?;
        if let Some(job) = self.store.reader_of(id) {
            let job = job.batch_name();
            return Err(RequestError::Refused {
                what: format!("{id} is being read for {job}; wait, or cancel that first"),
            });
        }
        let store = Arc::clone(&self.store);
        off_thread(move || store.delete_file(id)).await
    }
}

impl Store {
    /// The batch that a file is being read for.
    pub(super) fn reader_of(&self, id: FileId) -> Option<JobId> {
        let jobs = self.jobs();
        let mut reading = jobs.iter().filter(|job| job.state == JobState::Validating);
        let reader = reading.find(|job| job.batch.as_ref().is_some_and(|batch| batch.input == id));
        reader.map(|job| job.id)
    }

    /// A stretch of a file.
    pub(super) fn file_part(&self, id: FileId, part: u32) -> Result<FilePart, RequestError> {
        self.reopen_if_lost()?;
        let parts = self.file(id)?.parts;
        self.database.read(|transaction| {
            let table = transaction.open_table(PARTS)?;
            let bytes = table.get((id.0, part))?;
            Ok(FilePart {
                bytes: bytes.map_or_else(Vec::new, |bytes| bytes.value().to_vec()),
                next: Some(part + 1).filter(|&next| next < parts),
            })
        })
    }

    /// Deletes what ended or came so long before this time that it need not be kept.
    pub(super) fn delete_old(&self, now: u64) -> Result<(), RequestError> {
        let keep = self.config.retention().as_millis() as u64;
        for job in self.jobs() {
            let ended = job.ended_ms.filter(|_| job.state.has_ended());
            if ended.is_some_and(|ended| ended.saturating_add(keep) <= now) {
                tracing::info!(job = %job.id, "deleted: jobs.retention_hours are over");
                self.delete_job(job.id)?;
            }
        }
        for file in self.files() {
            let is_old = file.complete && file.expires_ms <= now;
            if is_old && self.reader_of(file.id).is_none() {
                tracing::info!(file = %file.id, "deleted: its time is over");
                self.delete_file(file.id)?;
            }
        }
        Ok(())
    }
}

fn is_coming_in(job: &JobRecord) -> bool {
    job.state == JobState::Validating && job.batch.is_none()
}

/// Runs what blocks on the disk away from the I/O threads.
pub(super) async fn off_thread<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    tokio::task::spawn_blocking(act)
        .await
        .map_err(|_| RequestError::internal("the jobs store panicked"))?
}

/// The time from `now_ms` until `at_ms`.
pub(super) fn until(at_ms: u64, now_ms: u64) -> Duration {
    Duration::from_millis(at_ms.saturating_sub(now_ms))
}
