//! The Prometheus metrics of jobs. Rows a second are `rate(ferry_job_rows_total[1m])`.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::series::Registrar;

/// The metrics of all jobs.
#[derive(Debug, Clone)]
pub struct JobsMetrics {
    jobs: IntGaugeVec,
    /// Rows that have no result yet.
    pub waiting_rows: IntGauge,
    /// Rows that were answered.
    pub done_rows: IntCounter,
    /// Rows whose answer is an error.
    pub failed_rows: IntCounter,
    /// Rows that were not run since their job ended before.
    pub unrun_rows: IntCounter,
    /// Bytes of rows, results and files that are kept.
    pub bytes: IntGauge,
    /// How many may be.
    pub max_bytes: IntGauge,
}

impl JobsMetrics {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let jobs = Opts::new("ferry_jobs", "Jobs that are kept, by state.");
        let jobs = IntGaugeVec::new(jobs, &["state"])?;
        registry.register(Box::new(jobs.clone()))?;
        let rows = Opts::new("ferry_job_rows_total", "Rows of jobs, by how they ended.");
        let rows = IntCounterVec::new(rows, &["outcome"])?;
        registry.register(Box::new(rows.clone()))?;
        Ok(Self {
            jobs,
            waiting_rows: gauge("ferry_job_waiting_rows", "Rows of jobs without a result.")?,
            done_rows: rows.with_label_values(&["done"]),
            failed_rows: rows.with_label_values(&["failed"]),
            unrun_rows: rows.with_label_values(&["not_run"]),
            bytes: gauge(
                "ferry_job_bytes",
                "Bytes of rows, results and files that are kept.",
            )?,
            max_bytes: gauge("ferry_job_max_bytes", "How many may be kept.")?,
        })
    }

    /// Tells how many jobs are in a state.
    pub fn set_jobs(&self, state: &str, count: i64) {
        self.jobs.with_label_values(&[state]).set(count);
    }
}
