//! The manifest's `[drift]`: whether a version's rows are compared with what is usual for it.

use serde::{Deserialize, Serialize};

use super::{Violation, manifest::is_inside};

/// What is looked for, and from where on it is an alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DriftConfig {
    /// Whether drift is looked for.
    pub enabled: bool,
    /// Rows of a window.
    pub window_rows: u64,
    /// Requests of one that are looked at.
    pub sample: f64,
    /// A file with the baseline, beside the manifest; unset for `drift.json` in the version's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Rows from which the baseline is made where there is none yet: the first after the load.
    pub learn_rows: u64,
    /// Whether a baseline that was learnt is kept in the version's folder.
    pub keep: bool,
    /// Population stability index of a signal that is a warning.
    pub psi_warning: f64,
    /// The same for drift.
    pub psi_drifted: f64,
    /// How far the centroid of the embeddings has moved for a warning, as a multiple of what chance
    /// moves it (squared distances).
    pub centroid_warning: f64,
    /// The same for drift.
    pub centroid_drifted: f64,
    /// Rows of one whose language is told; 0 for none.
    pub language_sample: f64,
    /// Share of a baseline's rows within which a row is no anomaly; 1 looks for none.
    pub anomaly_quantile: f64,
    /// Confidence from which on a row that is far from the baseline is an anomaly.
    pub anomaly_confidence: f32,
    /// Windows in a row that must agree before a state changes.
    pub windows: u32,
    /// Part of a threshold below which a measure must fall before the state does.
    pub release: f64,
}

impl Default for DriftConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            window_rows: 1000,
            sample: 1.0,
            baseline: None,
            learn_rows: 4000,
            keep: true,
            psi_warning: 0.1,
            psi_drifted: 0.25,
            centroid_warning: 3.0,
            centroid_drifted: 8.0,
            language_sample: 0.25,
            anomaly_quantile: 0.999,
            anomaly_confidence: 0.9,
            windows: 2,
            release: 0.8,
        }
    }
}

impl DriftConfig {
    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            (50..=1_000_000).contains(&self.window_rows),
            "drift.window_rows",
            self.window_rows,
            "50 to 1000000",
        )?;
        Violation::unless(
            (0.0..=1.0).contains(&self.sample),
            "drift.sample",
            self.sample,
            "0 to 1",
        )?;
        Violation::unless(
            self.learn_rows >= self.window_rows,
            "drift.learn_rows",
            self.learn_rows,
            "at least drift.window_rows",
        )?;
        let outside = self.baseline.as_deref().filter(|file| !is_inside(file));
        Violation::unless(
            outside.is_none(),
            "drift.baseline",
            outside.unwrap_or_default(),
            "a file inside the model's folder",
        )?;
        let rising = |warning: f64, drifted: f64| warning > 0.0 && warning <= drifted;
        Violation::unless(
            rising(self.psi_warning, self.psi_drifted),
            "drift.psi_warning",
            self.psi_warning,
            "above 0, at most drift.psi_drifted",
        )?;
        Violation::unless(
            rising(self.centroid_warning, self.centroid_drifted),
            "drift.centroid_warning",
            self.centroid_warning,
            "above 0, at most drift.centroid_drifted",
        )?;
        Violation::unless(
            (0.0..=1.0).contains(&self.language_sample),
            "drift.language_sample",
            self.language_sample,
            "0 to 1",
        )?;
        Violation::unless(
            (0.5..=1.0).contains(&self.anomaly_quantile),
            "drift.anomaly_quantile",
            self.anomaly_quantile,
            "0.5 to 1",
        )?;
        Violation::unless(
            (0.0..=1.0).contains(&self.anomaly_confidence),
            "drift.anomaly_confidence",
            self.anomaly_confidence,
            "0 to 1",
        )?;
        Violation::unless(
            (1..=100).contains(&self.windows),
            "drift.windows",
            self.windows,
            "1 to 100",
        )?;
        Violation::unless(
            self.release > 0.0 && self.release <= 1.0,
            "drift.release",
            self.release,
            "above 0, at most 1",
        )
    }
}
