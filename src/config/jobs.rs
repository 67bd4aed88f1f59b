//! Jobs, requests that can wait: where they are kept and what they may take.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::Violation;

/// Requests that can wait. They are off until a directory is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobsConfig {
    /// Where jobs, their rows and their results are kept; empty for no jobs.
    pub directory: PathBuf,
    /// Whether jobs are taken and run, where a directory is given.
    pub enabled: bool,
    /// Bytes of rows, results and files that are kept.
    pub max_bytes: u64,
    /// Bytes of one uploaded file.
    pub max_file_bytes: u64,
    /// Rows of one job.
    pub max_rows: u32,
    /// Bytes of one row.
    pub max_row_bytes: usize,
    /// Jobs that are kept, ended ones included; and as many uploaded files.
    pub max_jobs: usize,
    /// Jobs that run side by side; the others wait in line.
    pub max_running: usize,
    /// Texts of all jobs that are at one model at a time. Twice the rows of a batch keep a batch
    /// waiting behind the running one.
    pub window: u32,
    /// The same for a model that generates, in sequences.
    pub generate_window: u32,
    /// Time a job has to be run in, in hours, where its submitter doesn't say.
    pub expiry_hours: u64,
    /// Time for which an ended job and an uploaded file are kept, in hours.
    pub retention_hours: u64,
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::new(),
            enabled: true,
            max_bytes: 4 << 30,
            max_file_bytes: 200 << 20,
            max_rows: 100_000,
            max_row_bytes: 1 << 20,
            max_jobs: 1000,
            max_running: 4,
            window: 128,
            generate_window: 8,
            expiry_hours: 24,
            retention_hours: 168,
        }
    }
}

impl JobsConfig {
    /// Whether jobs are taken and run.
    pub fn is_on(&self) -> bool {
        self.enabled && !self.directory.as_os_str().is_empty()
    }

    /// [`JobsConfig::expiry_hours`] as a duration.
    pub fn expiry(&self) -> Duration {
        Duration::from_secs(self.expiry_hours * 3600)
    }

    /// [`JobsConfig::retention_hours`] as a duration.
    pub fn retention(&self) -> Duration {
        Duration::from_secs(self.retention_hours * 3600)
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        let at_least = |key, found: u64, least, allowed| {
            Violation::unless(found >= least, key, found, allowed)
        };
        at_least("jobs.max_bytes", self.max_bytes, 1 << 16, "65536 or more")?;
        at_least("jobs.max_file_bytes", self.max_file_bytes, 1, "1 or more")?;
        at_least("jobs.max_rows", self.max_rows.into(), 1, "1 or more")?;
        Violation::unless(
            (1..=64 << 20).contains(&self.max_row_bytes),
            "jobs.max_row_bytes",
            self.max_row_bytes,
            "1 to 67108864",
        )?;
        at_least("jobs.max_jobs", self.max_jobs as u64, 1, "1 or more")?;
        at_least("jobs.max_running", self.max_running as u64, 1, "1 or more")?;
        at_least("jobs.window", self.window.into(), 1, "1 or more")?;
        let window = self.generate_window.into();
        at_least("jobs.generate_window", window, 1, "1 or more")?;
        let hours = 1..=24 * 366;
        Violation::unless(
            hours.contains(&self.expiry_hours),
            "jobs.expiry_hours",
            self.expiry_hours,
            "1 to 8784",
        )?;
        Violation::unless(
            hours.contains(&self.retention_hours),
            "jobs.retention_hours",
            self.retention_hours,
            "1 to 8784",
        )
    }
}
