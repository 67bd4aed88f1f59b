//! The Prometheus metrics of how well a model's work goes: how full batches are, how well their time is
//! predicted, what is left to do after them, and with what codes requests fail.

use std::sync::Arc;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, exponential_buckets,
    linear_buckets,
};

use super::series::Registrar;

#[derive(Debug)]
pub(super) struct WorkFamilies {
    errors: IntCounterVec,
    postprocess: HistogramVec,
    batch_fill: HistogramVec,
    padding_avoided: IntCounterVec,
    run_time_ratio: HistogramVec,
}

/// The metrics of one model version.
#[derive(Debug, Clone)]
pub struct WorkMetrics {
    /// Seconds from a request's last output to its answer as a message.
    pub postprocess: Histogram,
    /// Time a batch ran, over what was predicted.
    pub run_time_ratio: Histogram,
    /// How full a batch is: its rows, or its tokens, as a share of what it may have, whichever is more.
    batch_fill: Histogram,
    /// Tokens that batches padded to their longest row would have had beside.
    padding_avoided: IntCounter,
    /// Requests that failed, by code. Failures are rare enough to look their counter up.
    errors: IntCounterVec,
    model: Arc<str>,
    version: Arc<str>,
}

impl WorkFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let model = &["model", "version"];
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            let family = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), model)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        Ok(Self {
            errors: counter(
                "ferry_errors_total",
                "Requests that failed, by the gRPC code that they failed with.",
                &["model", "version", "code"],
            )?,
            postprocess: histogram(
                "ferry_postprocess_seconds",
                "Time from a request's last output to its answer as a message.",
                exponential_buckets(1e-5, 2.0, 20)?,
            )?,
            batch_fill: histogram(
                "ferry_batch_fill_ratio",
                "How full a batch is: its rows, or its tokens, as a share of what it may have.",
                linear_buckets(0.1, 0.1, 10)?,
            )?,
            padding_avoided: counter(
                "ferry_padding_avoided_tokens_total",
                "Tokens that batches padded to their longest row would have had beside.",
                model,
            )?,
            run_time_ratio: histogram(
                "ferry_run_time_ratio",
                "Time a batch ran, over what was predicted.",
                vec![
                    0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0,
                ],
            )?,
        })
    }

    pub(super) fn model(&self, model: &str, version: &str) -> WorkMetrics {
        let labels = &[model, version];
        WorkMetrics {
            postprocess: self.postprocess.with_label_values(labels),
            run_time_ratio: self.run_time_ratio.with_label_values(labels),
            batch_fill: self.batch_fill.with_label_values(labels),
            padding_avoided: self.padding_avoided.with_label_values(labels),
            errors: self.errors.clone(),
            model: Arc::from(model),
            version: Arc::from(version),
        }
    }
}

impl WorkMetrics {
    /// Counts a request that failed with the gRPC code of this name.
    pub fn count_error(&self, code: &str) {
        let labels = [&*self.model, &*self.version, code];
        self.errors.with_label_values(&labels).inc();
    }

    /// Notes how well a batch of `rows` rows, the longest of `longest` tokens, fills its `room`: rows
    /// and tokens at most.
    pub fn observe_fill(&self, rows: usize, tokens: usize, longest: usize, room: (usize, usize)) {
        let share = |found: usize, most: usize| found as f64 / most.max(1) as f64;
        let fill = share(rows, room.0).max(share(tokens, room.1));
        self.batch_fill.observe(fill);
        let padded = rows * longest;
        self.padding_avoided
            .inc_by(padded.saturating_sub(tokens) as u64);
    }
}
