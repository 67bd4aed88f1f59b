//! What `ferry calibrate` says: a table for people, JSON for machines.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::{
    quality::calibration::{Calibration, Measured, Method},
    repository::CalibrationRecord,
};

/// A calibration that was made, and how.
#[derive(Debug)]
pub struct Report<'a> {
    /// The calibration and its figures.
    pub record: &'a CalibrationRecord,
    /// Each method's mean −ln p on rows that its fit had not seen; none where the method was given.
    pub tried: &'a [(Method, f64)],
    /// Rows that the model did not answer.
    pub failed_rows: usize,
    /// The file of labels.
    pub source: String,
}

/// A figure before and after.
pub struct Line {
    /// Its name.
    pub name: &'static str,
    /// Without the calibration.
    pub before: f64,
    /// With it.
    pub after: f64,
}

impl Report<'_> {
    /// The figures side by side.
    pub fn lines(&self) -> Vec<Line> {
        let (before, after) = (&self.record.before, &self.record.after);
        let line = |name, of: fn(&Measured) -> f64| Line {
            name,
            before: of(before),
            after: of(after),
        };
        vec![
            line("ECE, bins of equal width", |found| found.ece),
            line("ECE, bins of equal count", |found| found.ece_equal_mass),
            line("largest gap of a bin", |found| found.mce),
            line("NLL, nats", |found| found.nll),
            line("Brier score", |found| found.brier),
            line("accuracy", |found| found.accuracy),
        ]
    }

    /// What was fitted, in words.
    pub fn fitted(&self) -> String {
        let mut text = match &self.record.calibration {
            Calibration::Temperature { temperature } => format!("temperature {temperature:.4}"),
            Calibration::Platt { curves } => {
                let curves: Vec<_> = curves
                    .iter()
                    .map(|curve| format!("{:.4} · logit {:+.4}", curve.slope, curve.intercept))
                    .collect();
                format!("platt: {}", curves.join("; "))
            }
            Calibration::Isotonic { curves } => {
                let points: Vec<_> = curves
                    .iter()
                    .map(|curve| curve.x.len().to_string())
                    .collect();
                format!("isotonic: curves of {} points", points.join(", "))
            }
        };
        for (at, (method, loss)) in self.tried.iter().enumerate() {
            let lead = if at == 0 {
                "; NLL on unseen rows: "
            } else {
                ", "
            };
            let _ = write!(text, "{lead}{method} {loss:.4}");
        }
        text
    }

    /// The report for a terminal.
    pub fn table(&self) -> String {
        let record = self.record;
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let heading = format!("{} held out", record.after.rows);
        table.set_header([heading.as_str(), "before", "after"]);
        for line in self.lines() {
            table.add_row([
                line.name.to_owned(),
                format!("{:.4}", line.before),
                format!("{:.4}", line.after),
            ]);
        }
        let mut text = format!(
            "{} version {}: {} rows to fit to, {} bins\n{}\n{table}\n",
            record.model,
            record.version,
            record.fitted_rows,
            record.after.bins.len(),
            self.fitted()
        );
        if self.failed_rows > 0 {
            let _ = writeln!(
                text,
                "{} rows were not answered and are left out",
                self.failed_rows
            );
        }
        text
    }

    /// The report for machines.
    pub fn json(&self) -> Value {
        let tried: serde_json::Map<_, _> = self
            .tried
            .iter()
            .map(|(method, loss)| (method.to_string(), json!(loss)))
            .collect();
        json!({
            "model": self.record.model,
            "version": self.record.version,
            "made_by": self.record.made_by,
            "labels_file": self.source,
            "labels": self.record.labels,
            "calibration": self.record.calibration,
            "fitted_rows": self.record.fitted_rows,
            "failed_rows": self.failed_rows,
            "nll_on_unseen_rows": tried,
            "before": self.record.before,
            "after": self.record.after,
        })
    }
}
