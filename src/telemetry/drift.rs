//! The Prometheus metrics of drift: how far a version's latest window is from its baseline.

use std::sync::Arc;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::series::{Lease, Registrar};

#[derive(Debug)]
pub(super) struct DriftFamilies {
    distance: GaugeVec,
    state: IntGaugeVec,
    windows: IntCounterVec,
    dropped: IntCounterVec,
    anomalies: IntCounterVec,
}

/// The metrics of one model version.
#[derive(Debug, Clone)]
pub struct DriftMetrics {
    distance: GaugeVec,
    state: IntGaugeVec,
    anomalies: IntCounterVec,
    labels: [String; 2],
    /// Whoever looks at rows may do so for a little longer than the version is there.
    _lease: Arc<Lease>,
    /// The worst state of any signal: 0 ok, 1 warning, 2 drifted.
    pub worst: IntGauge,
    /// Windows that were compared.
    pub windows: IntCounter,
    /// Rows that were not looked at, since the observer was behind.
    pub dropped: IntCounter,
}

impl DriftFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let distance = GaugeVec::new(
            Opts::new(
                "ferry_drift_distance",
                "How far the latest window of rows is from the version's baseline.",
            ),
            &["model", "version", "signal", "measure"],
        )?;
        registry.register(Box::new(distance.clone()))?;
        let state = IntGaugeVec::new(
            Opts::new(
                "ferry_drift_state",
                "Whether a version's rows have drifted: 0 ok, 1 warning, 2 drifted.",
            ),
            &["model", "version", "signal"],
        )?;
        registry.register(Box::new(state.clone()))?;
        let counter = |name: &str, help: &str| {
            let family = IntCounterVec::new(Opts::new(name, help), &["model", "version"])?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let anomalies = IntCounterVec::new(
            Opts::new(
                "ferry_anomalous_rows_total",
                "Rows that a model was sure of and that are far from its baseline, by how.",
            ),
            &["model", "version", "kind"],
        )?;
        registry.register(Box::new(anomalies.clone()))?;
        Ok(Self {
            anomalies,
            distance,
            state,
            windows: counter(
                "ferry_drift_windows_total",
                "Windows of rows that were compared with the version's baseline.",
            )?,
            dropped: counter(
                "ferry_drift_dropped_rows_total",
                "Rows that drift did not look at, since it was behind.",
            )?,
        })
    }

    pub(super) fn model(&self, model: &str, version: &str, lease: Lease) -> DriftMetrics {
        let labels = &[model, version];
        DriftMetrics {
            distance: self.distance.clone(),
            state: self.state.clone(),
            anomalies: self.anomalies.clone(),
            labels: [model.to_owned(), version.to_owned()],
            _lease: Arc::new(lease),
            worst: self.state.with_label_values(&[model, version, "any"]),
            windows: self.windows.with_label_values(labels),
            dropped: self.dropped.with_label_values(labels),
        }
    }
}

impl DriftMetrics {
    /// Sets how far a signal is, by one measure.
    pub fn set_distance(&self, signal: &str, measure: &str, value: f64) {
        let [model, version] = &self.labels;
        self.distance
            .with_label_values(&[model.as_str(), version, signal, measure])
            .set(value);
    }

    /// Counts a row that is far from the baseline in one way.
    pub fn count_anomaly(&self, kind: &str) {
        let [model, version] = &self.labels;
        self.anomalies
            .with_label_values(&[model.as_str(), version, kind])
            .inc();
    }

    /// Sets a signal's state.
    pub fn set_state(&self, signal: &str, state: i64) {
        let [model, version] = &self.labels;
        self.state
            .with_label_values(&[model.as_str(), version, signal])
            .set(state);
    }
}
