//! The Prometheus metrics of cascades: how many rows a model hands on, and what that saves. Labels are
//! the model that was asked, its version, and the model that it hands on to.

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, Opts};

use super::series::Registrar;

#[derive(Debug)]
pub(super) struct CascadeFamilies {
    rows: IntCounterVec,
    saved: GaugeVec,
}

/// The metrics of one step of a cascade.
#[derive(Debug, Clone)]
pub struct CascadeMetrics {
    /// Rows that the model was sure of, and answered.
    pub kept: IntCounter,
    /// Rows that the further model answered.
    pub escalated: IntCounter,
    /// Rows that the further model should have answered and could not.
    pub failed: IntCounter,
    /// Seconds of run time saved: what the further model would have needed for the rows it was spared,
    /// less what the model itself needed for all of them, by the predictions of both.
    pub saved: Gauge,
}

impl CascadeFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let rows = IntCounterVec::new(
            Opts::new(
                "ferry_cascade_rows_total",
                "Rows of a model that hands on what it is not sure of: kept, escalated, or failed to be.",
            ),
            &["model", "version", "to", "result"],
        )?;
        registry.register(Box::new(rows.clone()))?;
        let saved = GaugeVec::new(
            Opts::new(
                "ferry_cascade_saved_seconds",
                "Predicted run time that the further model was spared, less what the model itself took.",
            ),
            &["model", "version", "to"],
        )?;
        registry.register(Box::new(saved.clone()))?;
        Ok(Self { rows, saved })
    }

    pub(super) fn step(&self, model: &str, version: &str, to: &str) -> CascadeMetrics {
        let rows = |result| self.rows.with_label_values(&[model, version, to, result]);
        CascadeMetrics {
            kept: rows("kept"),
            escalated: rows("escalated"),
            failed: rows("failed"),
            saved: self.saved.with_label_values(&[model, version, to]),
        }
    }
}
