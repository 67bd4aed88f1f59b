//! The Prometheus metrics of explanations.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, exponential_buckets,
};

use super::series::Registrar;

#[derive(Debug)]
pub(super) struct ExplainFamilies {
    rows: IntCounterVec,
    seconds: HistogramVec,
}

/// The metrics of one model version's explanations by one method.
#[derive(Debug, Clone)]
pub struct ExplainMetrics {
    /// Rows that were run for them.
    pub rows: IntCounter,
    /// Seconds of each, from the request's arrival.
    pub seconds: Histogram,
}

impl ExplainFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let labels = &["model", "version", "method"];
        let rows = IntCounterVec::new(
            Opts::new(
                "ferry_explain_rows_total",
                "Rows with words left out that were run for explanations.",
            ),
            labels,
        )?;
        registry.register(Box::new(rows.clone()))?;
        // 1 ms to 131 s, doubling.
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "ferry_explain_seconds",
                "Time from a request's arrival to its explanation.",
            )
            .buckets(exponential_buckets(1e-3, 2.0, 18)?),
            labels,
        )?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self { rows, seconds })
    }

    pub(super) fn of(&self, model: &str, version: &str, method: &str) -> ExplainMetrics {
        let labels = &[model, version, method];
        ExplainMetrics {
            rows: self.rows.with_label_values(labels),
            seconds: self.seconds.with_label_values(labels),
        }
    }
}
