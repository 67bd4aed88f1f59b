//! What became of the spans, and of the lines of the request log.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

use super::series::Registrar;

/// The metrics of traces: a record is a request or a batch.
#[derive(Debug, Clone)]
pub struct TraceMetrics {
    /// Records whose spans a collector has taken.
    pub exported: IntCounter,
    /// Records that found the queue full.
    pub dropped: IntCounter,
    /// Records whose spans no collector took.
    pub failed: IntCounter,
}

impl TraceMetrics {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let records = IntCounterVec::new(
            Opts::new(
                "ferry_trace_records_total",
                "Traced requests and batches, by what became of their spans.",
            ),
            &["result"],
        )?;
        registry.register(Box::new(records.clone()))?;
        Ok(Self {
            exported: records.with_label_values(&["exported"]),
            dropped: records.with_label_values(&["dropped"]),
            failed: records.with_label_values(&["failed"]),
        })
    }
}

/// The metrics of the request log.
#[derive(Debug, Clone)]
pub struct RequestLogMetrics {
    /// Lines that were written.
    pub written: IntCounter,
    /// Requests that found the queue full.
    pub dropped: IntCounter,
    /// Lines that the disk did not take.
    pub failed: IntCounter,
    /// 1 while lines can't be written.
    pub failing: IntGauge,
}

impl RequestLogMetrics {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let lines = IntCounterVec::new(
            Opts::new(
                "ferry_request_log_lines_total",
                "Lines of the request log, by what became of them.",
            ),
            &["result"],
        )?;
        registry.register(Box::new(lines.clone()))?;
        let failing = IntGauge::new(
            "ferry_request_log_failing",
            "1 while lines of the request log can't be written.",
        )?;
        registry.register(Box::new(failing.clone()))?;
        Ok(Self {
            written: lines.with_label_values(&["written"]),
            dropped: lines.with_label_values(&["dropped"]),
            failed: lines.with_label_values(&["failed"]),
            failing,
        })
    }
}
