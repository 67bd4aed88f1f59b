//! `ferry calibrate`: makes a model's confidences probabilities, from rows whose answers are known.
//!
//! The model is loaded as the server would load it, runs the rows once, and the fit and the figures
//! are made of their logits. What it finds goes into `calibration.json` beside the weights.

mod labels;
mod page;
mod plot;
mod report;
mod run;

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::{
    config::{ServerConfig, Task},
    quality::calibration::{Method, choose, fit, measure, methods_of, split},
    repository::{
        Calibrated, CalibrationRecord, FoundModel, LoadSettings, PreparedPlace, ServedModel,
        Upkeep, find_models, load_version,
    },
    telemetry::{Metrics, logs},
};
use report::Report;

/// Rows that must be held out for their figures to say anything.
const LEAST_HELD_OUT: usize = 20;

/// What the file of labels holds, for `--help`.
const LABELS: &str = r#"Labels: JSON objects, one a line; other keys are passed over.
  {"text": "...", "label": "benign"}               a classifier's, one label a text
  {"text": "...", "labels": ["toxic", "threat"]}   labels that each hold or not
  {"query": "...", "document": "...", "label": 1}  a reranker's; 1 or true where the pair fits
The labels are the model's own (id2label in its config.json)."#;

/// Make a classifier's or reranker's confidences probabilities, from labelled rows that it was not
/// trained on.
///
/// Part of the rows is held out, to measure accuracy, expected calibration error (ECE) and mean -ln p
/// (NLL) before and after. The calibration is written into the version's folder, and used from the
/// version's next load on.
#[derive(Debug, Args)]
#[command(after_help = LABELS)]
pub struct Calibrate {
    /// The model's name in the models folder, or NAME@VERSION; the newest version by default.
    model: String,
    /// Labelled rows, as below.
    #[arg(long, value_name = "FILE")]
    labels: PathBuf,
    /// The models folder.
    #[arg(long, value_name = "DIR", env = "FERRY_MODELS")]
    models: Option<PathBuf>,
    /// How: temperature, isotonic, or platt (for labels that each hold or not); by default the one
    /// under which rows that its fit has not seen are most likely.
    #[arg(long)]
    method: Option<Method>,
    /// Share of the rows to hold out.
    #[arg(long, value_name = "SHARE", default_value_t = 0.3)]
    held_out: f64,
    /// Which rows are held out is drawn with it.
    #[arg(long, default_value_t = 17)]
    seed: u64,
    /// Bins of the ECE and of the plot, over confidences from 0 to 1.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(2..=100))]
    bins: u16,
    /// Rows to read at most.
    #[arg(long, value_name = "ROWS", default_value_t = 100_000)]
    limit: usize,
    /// Write a page with the reliability plot here.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the figures as JSON here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only measure: write no calibration.json.
    #[arg(long)]
    dry_run: bool,
    /// What to log: a level or tracing directives.
    #[arg(long, value_name = "FILTER", env = "FERRY_LOG", default_value = "warn")]
    log: String,
}

impl Calibrate {
    pub fn run(self) -> Result<(), Failure> {
        logs::start(&self.log, false)?;
        if !(0.05..=0.95).contains(&self.held_out) {
            return Err(format!("--held-out {}: use 0.05 to 0.95", self.held_out).into());
        }
        let (found, version) = self.find()?;
        let served = load(&found, version)?;
        if !matches!(served.task(), Task::Classify | Task::Rerank) {
            let (name, task) = (&served.name, served.task());
            return Err(format!(
                "model '{name}' does '{task}'; classify and rerank have confidences to calibrate"
            )
            .into());
        }
        let labels = labels::read(&self.labels, &served, self.limit)?;
        let rows = run::logits(&served, &labels)?;
        let split = split(rows.labelled, self.held_out, self.seed);
        if split.held_out.len() < LEAST_HELD_OUT {
            return Err(format!(
                "{} rows held out of {}; {LEAST_HELD_OUT} or more are needed",
                split.held_out.len(),
                split.held_out.len() + split.fit.len()
            )
            .into());
        }
        let (activation, bins) = (served.activation, usize::from(self.bins));
        let (calibration, tried) = if let Some(method) = self.method {
            (fit(&split.fit, activation, method)?, Vec::new())
        } else {
            let choice = choose(&split.fit, activation, methods_of(activation))?;
            (choice.calibration, choice.tried)
        };
        let before = measure(&split.held_out, activation, None, bins);
        let after = measure(&split.held_out, activation, Some(&calibration), bins);
        let dir = found.version_dir(version);
        let of = Calibrated {
            model: &served.name,
            version: &served.version,
            dir: &dir,
            manifest: &served.manifest,
            labels: &served.labels,
            activation,
        };
        let record = CalibrationRecord::new(&of, calibration, split.fit.len(), before, after)?;
        let report = Report {
            record: &record,
            tried: &tried,
            failed_rows: rows.failed,
            source: self.labels.display().to_string(),
        };
        if let Some(path) = &self.html {
            let page = page::page(&report)?;
            std::fs::write(path, page).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        if let Some(path) = &self.json {
            let json = serde_json::to_vec_pretty(&report.json())?;
            std::fs::write(path, json).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        say_part!("{}", report.table());
        if self.dry_run {
            say!("nothing written (--dry-run)");
        } else {
            let path = record.write(&dir)?;
            say!(
                "wrote {}; used from the version's next load on",
                path.display()
            );
        }
        Ok(())
    }

    fn find(&self) -> Result<(FoundModel, u64), Failure> {
        let folder = match &self.models {
            Some(folder) => folder.clone(),
            None => ServerConfig::default().models.directory,
        };
        let (name, version) = self.model.rsplit_once('@').unwrap_or((&self.model, ""));
        let models = find_models(&folder).map_err(|error| {
            format!("can't read the models folder {}: {error}", folder.display())
        })?;
        let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
        let found = models.into_iter().find(|model| model.name == name);
        let found = found.ok_or_else(|| {
            let (folder, there) = (folder.display(), names.join(", "));
            format!("no model '{name}' in {folder}; there are: {there}")
        })?;
        let there = || {
            let versions: Vec<_> = found.versions.iter().map(u64::to_string).collect();
            versions.join(", ")
        };
        let wanted = if version.is_empty() {
            found.versions.last().copied()
        } else {
            let parsed = version.parse().ok();
            parsed.filter(|version| found.versions.contains(version))
        };
        match wanted {
            Some(version) => Ok((found, version)),
            None => {
                Err(format!("no version '{version}' of '{name}'; there are: {}", there()).into())
            }
        }
    }
}

/// Loads the version without the calibration it may have, which is to be made anew.
fn load(found: &FoundModel, version: u64) -> Result<ServedModel, Failure> {
    let settings = LoadSettings {
        prepared: PreparedPlace::Off,
        upkeep: Upkeep::Never,
        without_calibration: true,
        ..LoadSettings::default()
    };
    Ok(load_version(
        found,
        version,
        &Metrics::new(),
        &settings,
        &|_| {},
    )?)
}
