//! The Prometheus metrics of models whose answers are kept, with the labels `model` and `version`.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::series::Registrar;

#[derive(Debug)]
pub(super) struct CacheFamilies {
    hits: IntCounterVec,
    misses: IntCounterVec,
    shared: IntCounterVec,
    evictions: IntCounterVec,
    bytes: IntGaugeVec,
}

/// The metrics of one model version.
#[derive(Debug, Clone)]
pub struct CacheMetrics {
    /// Rows, or sequences, whose answer was there.
    pub hits: IntCounter,
    /// Those that were run.
    pub misses: IntCounter,
    /// Those that were answered by the run of an equal one under way.
    pub shared: IntCounter,
    /// Answers forgotten for want of space.
    pub evicted: IntCounter,
    /// Answers forgotten for their age.
    pub expired: IntCounter,
    /// Bytes of the answers that are kept.
    pub bytes: IntGauge,
}

impl CacheFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let model = &["model", "version"];
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let bytes = IntGaugeVec::new(
            Opts::new("ferry_cache_bytes", "Bytes of the answers that are kept."),
            model,
        )?;
        registry.register(Box::new(bytes.clone()))?;
        Ok(Self {
            hits: counter(
                "ferry_cache_hits_total",
                "Rows or sequences whose answer was in the response cache.",
                model,
            )?,
            misses: counter(
                "ferry_cache_misses_total",
                "Rows or sequences looked up in the response cache and run.",
                model,
            )?,
            shared: counter(
                "ferry_cache_shared_total",
                "Rows answered by the run of an equal row that was under way.",
                model,
            )?,
            evictions: counter(
                "ferry_cache_evictions_total",
                "Answers that the response cache forgot, by why.",
                &["model", "version", "reason"],
            )?,
            bytes,
        })
    }

    pub(super) fn model(&self, model: &str, version: &str) -> CacheMetrics {
        let labels = &[model, version];
        let evictions = |reason| self.evictions.with_label_values(&[model, version, reason]);
        CacheMetrics {
            hits: self.hits.with_label_values(labels),
            misses: self.misses.with_label_values(labels),
            shared: self.shared.with_label_values(labels),
            evicted: evictions("space"),
            expired: evictions("age"),
            bytes: self.bytes.with_label_values(labels),
        }
    }
}
