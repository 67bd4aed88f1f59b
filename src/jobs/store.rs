//! What is kept of jobs and files: the records in memory and on disk, rows and results on disk.
//!
//! Everything here blocks on the disk; [`super::Jobs`] calls it off the I/O threads. Records are
//! changed under one lock, on disk first.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use redb::{ReadableTable as _, WriteTransaction};
use tokio::sync::watch;

use super::{
    database::{Database, StoreError},
    file::FileRecord,
    id::{FileId, JobId, next_number, now_ms},
    record::{JobRecord, JobState},
    table::{self, FILES, JOBS, PARTS, RESULTS, ROWS},
};
use crate::{config::JobsConfig, error::RequestError, telemetry::JobsMetrics};

/// What is known of a job that runs, for as long as the process lives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Live {
    /// Why its rows make no progress; empty when they do.
    pub waiting_for: String,
    /// Rows that ended, a second.
    pub rows_per_second: f64,
}

/// Jobs and files.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) config: JobsConfig,
    pub(super) metrics: JobsMetrics,
    pub(super) database: Database,
    jobs: RwLock<BTreeMap<JobId, Arc<JobRecord>>>,
    files: RwLock<BTreeMap<FileId, Arc<FileRecord>>>,
    /// Bytes of all rows, results and files.
    used: AtomicU64,
    live: Mutex<HashMap<JobId, Live>>,
    /// Held while something is changed.
    writing: Mutex<()>,
    changed: watch::Sender<()>,
}

impl Store {
    /// Opens what is in the directory. What was being taken in when the process ended is dropped:
    /// nobody was told its name.
    pub(super) fn open(config: JobsConfig, metrics: JobsMetrics) -> Result<Self, StoreError> {
        let path = config.directory.join("jobs.redb");
        let database = Database::open(path)?;
        database.write(table::create_all)?;
        metrics.max_bytes.set(config.max_bytes as i64);
        let store = Self {
            config,
            metrics,
            database,
            jobs: RwLock::default(),
            files: RwLock::default(),
            used: AtomicU64::new(0),
            live: Mutex::default(),
            writing: Mutex::default(),
            changed: watch::Sender::new(()),
        };
        store.read_records()?;
        for job in store.jobs() {
            if job.state == JobState::Validating && job.batch.is_none() {
                store.delete_job(job.id)?;
            }
        }
        for file in store.files() {
            if !file.complete {
                store.delete_file(file.id)?;
            }
        }
        Ok(store)
    }

    fn read_records(&self) -> Result<(), RequestError> {
        let (jobs, files) = self.database.read(|transaction| {
            let mut jobs = BTreeMap::new();
            for entry in transaction.open_table(JOBS)?.iter()? {
                let (id, json) = entry?;
                let record: JobRecord = table::read_record(JOBS, json.value())?;
                jobs.insert(JobId(id.value()), Arc::new(record));
            }
            let mut files = BTreeMap::new();
            for entry in transaction.open_table(FILES)?.iter()? {
                let (id, json) = entry?;
                let record: FileRecord = table::read_record(FILES, json.value())?;
                files.insert(FileId(id.value()), Arc::new(record));
            }
            Ok((jobs, files))
        })?;
        *self.jobs.write().unwrap_or_else(PoisonError::into_inner) = jobs;
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = files;
        self.tell_of_change();
        Ok(())
    }

    /// Tells of every change.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Every job, oldest first.
    pub(super) fn jobs(&self) -> Vec<Arc<JobRecord>> {
        let jobs = self.jobs.read().unwrap_or_else(PoisonError::into_inner);
        jobs.values().cloned().collect()
    }

    /// One job.
    pub(super) fn job(&self, id: JobId) -> Result<Arc<JobRecord>, RequestError> {
        let jobs = self.jobs.read().unwrap_or_else(PoisonError::into_inner);
        jobs.get(&id).cloned().ok_or_else(|| no_job(id.name()))
    }

    /// Every file, oldest first.
    pub(super) fn files(&self) -> Vec<Arc<FileRecord>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.values().cloned().collect()
    }

    /// One file.
    pub(super) fn file(&self, id: FileId) -> Result<Arc<FileRecord>, RequestError> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&id).cloned().ok_or_else(|| no_file(id))
    }

    /// What is known of a job that runs.
    pub(super) fn live(&self, id: JobId) -> Live {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.get(&id).cloned().unwrap_or_default()
    }

    /// Notes how a job comes along, and tells of it.
    pub(super) fn set_live(&self, id: JobId, now: Live) {
        self.note_live(id, now);
        self.changed.send_replace(());
    }

    /// Notes how a job comes along.
    pub(super) fn note_live(&self, id: JobId, now: Live) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.insert(id, now);
    }

    /// Forgets how a job came along.
    pub(super) fn clear_live(&self, id: JobId) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.remove(&id);
    }

    /// Bytes that are kept.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Checks that so many bytes more may be kept.
    pub(super) fn check_room(&self, added: u64) -> Result<(), RequestError> {
        let (used, most) = (self.used(), self.config.max_bytes);
        if used.saturating_add(added) <= most {
            return Ok(());
        }
        Err(RequestError::NoRoom {
            what: format!(
                "{used} bytes of jobs and files are kept and {added} more don't fit into \
                 {most} (jobs.max_bytes); delete ended jobs and files, or wait until they are \
                 older than jobs.retention_hours"
            ),
        })
    }

    /// Adds a job whose rows are still to come.
    pub(super) fn create_job(&self, mut record: JobRecord) -> Result<Arc<JobRecord>, RequestError> {
        let _writing = self.write_lock()?;
        let last = {
            let jobs = self.jobs.read().unwrap_or_else(PoisonError::into_inner);
            let most = self.config.max_jobs;
            if jobs.len() >= most {
                let what = format!("{most} jobs are kept, as many as may (jobs.max_jobs)");
                let what = format!("{what}; delete ended ones");
                return Err(RequestError::NoRoom { what });
            }
            jobs.keys().next_back().map(|id| id.0)
        };
        record.id = JobId(next_number(last));
        self.database
            .write(|transaction| table::put_record(transaction, JOBS, record.id.0, &record))?;
        Ok(self.publish_job(record))
    }

    /// Changes a job's record and what belongs to it, in one transaction.
    pub(super) fn change_job<T>(
        &self,
        id: JobId,
        change: impl FnOnce(&WriteTransaction, &mut JobRecord) -> Result<T, StoreError>,
    ) -> Result<T, RequestError> {
        let _writing = self.write_lock()?;
        let mut record = JobRecord::clone(&*self.job(id)?);
        let value = self.database.write(|transaction| {
            let value = change(transaction, &mut record)?;
            table::put_record(transaction, JOBS, id.0, &record)?;
            Ok(value)
        })?;
        self.publish_job(record);
        Ok(value)
    }

    /// Deletes a job with all it has.
    pub(super) fn delete_job(&self, id: JobId) -> Result<(), RequestError> {
        let _writing = self.write_lock()?;
        self.job(id)?;
        self.database.write(|transaction| {
            transaction.open_table(JOBS)?.remove(id.0)?;
            let all = table::all_of(id.0);
            transaction
                .open_table(ROWS)?
                .retain_in(all.clone(), |_, _| false)?;
            transaction
                .open_table(RESULTS)?
                .retain_in(all, |_, _| false)?;
            Ok(())
        })?;
        let mut jobs = self.jobs.write().unwrap_or_else(PoisonError::into_inner);
        jobs.remove(&id);
        drop(jobs);
        self.tell_of_change();
        Ok(())
    }

    /// Adds a file whose contents are still to come.
    pub(super) fn create_file(&self, filename: String) -> Result<Arc<FileRecord>, RequestError> {
        let _writing = self.write_lock()?;
        let last = {
            let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
            let most = self.config.max_jobs;
            if files.len() >= most {
                let what = format!("{most} files are kept, as many as may (jobs.max_jobs)");
                let what = format!("{what}; delete some");
                return Err(RequestError::NoRoom { what });
            }
            files.keys().next_back().map(|id| id.0)
        };
        let now = now_ms();
        let record = FileRecord {
            id: FileId(next_number(last)),
            filename,
            bytes: 0,
            parts: 0,
            complete: false,
            created_ms: now,
            expires_ms: now + self.config.retention().as_millis() as u64,
        };
        self.database
            .write(|transaction| table::put_record(transaction, FILES, record.id.0, &record))?;
        Ok(self.publish_file(record))
    }

    /// Changes a file's record and contents, in one transaction.
    pub(super) fn change_file<T>(
        &self,
        id: FileId,
        change: impl FnOnce(&WriteTransaction, &mut FileRecord) -> Result<T, StoreError>,
    ) -> Result<T, RequestError> {
        let _writing = self.write_lock()?;
        let mut record = FileRecord::clone(&*self.file(id)?);
        let value = self.database.write(|transaction| {
            let value = change(transaction, &mut record)?;
            table::put_record(transaction, FILES, id.0, &record)?;
            Ok(value)
        })?;
        self.publish_file(record);
        Ok(value)
    }

    /// Deletes a file.
    pub(super) fn delete_file(&self, id: FileId) -> Result<(), RequestError> {
        let _writing = self.write_lock()?;
        self.file(id)?;
        self.database.write(|transaction| {
            transaction.open_table(FILES)?.remove(id.0)?;
            transaction
                .open_table(PARTS)?
                .retain_in(table::all_of(id.0), |_, _| false)?;
            Ok(())
        })?;
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.remove(&id);
        drop(files);
        self.tell_of_change();
        Ok(())
    }

    /// Lets one thread write, on a database that is open. One that the disk has failed is opened
    /// again, and what is in memory is read anew: the last change may have reached the disk or not.
    fn write_lock(&self) -> Result<MutexGuard<'_, ()>, RequestError> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.database.is_lost() {
            self.database.reopen()?;
            self.read_records()?;
            tracing::info!("the jobs database is open again");
        }
        Ok(writing)
    }

    /// Opens the database again where the disk has failed it.
    pub(super) fn reopen_if_lost(&self) -> Result<(), RequestError> {
        if self.database.is_lost() {
            drop(self.write_lock()?);
        }
        Ok(())
    }

    fn publish_job(&self, record: JobRecord) -> Arc<JobRecord> {
        let record = Arc::new(record);
        let mut jobs = self.jobs.write().unwrap_or_else(PoisonError::into_inner);
        jobs.insert(record.id, Arc::clone(&record));
        drop(jobs);
        self.tell_of_change();
        record
    }

    fn publish_file(&self, record: FileRecord) -> Arc<FileRecord> {
        let record = Arc::new(record);
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.insert(record.id, Arc::clone(&record));
        drop(files);
        self.tell_of_change();
        record
    }

    fn tell_of_change(&self) {
        let mut used = 0;
        let mut waiting = 0;
        let mut by_state: HashMap<JobState, i64> = HashMap::new();
        for job in self.jobs() {
            used += job.bytes;
            waiting += i64::from(job.waiting_rows());
            *by_state.entry(job.state).or_default() += 1;
        }
        used += self.files().iter().map(|file| file.bytes).sum::<u64>();
        self.used.store(used, Relaxed);
        self.metrics.bytes.set(used as i64);
        self.metrics.waiting_rows.set(waiting);
        for state in JobState::ALL {
            let count = by_state.get(&state).copied().unwrap_or(0);
            self.metrics.set_jobs(state.name(), count);
        }
        self.changed.send_replace(());
    }
}

/// No job of that name.
pub(super) fn no_job(name: impl Into<String>) -> RequestError {
    RequestError::NotFound {
        what: "job",
        id: name.into().chars().take(64).collect(),
    }
}

/// No file of that name.
pub(super) fn no_file(name: impl std::fmt::Display) -> RequestError {
    RequestError::NotFound {
        what: "file",
        id: name.to_string().chars().take(64).collect(),
    }
}
