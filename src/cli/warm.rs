//! `ferry warm`: gets models ready for a fast start, in a container's build or before its start.
//! Loads each as the server would, brings its prepared weights up to date, runs its warm-up plan,
//! and checks or records its outputs.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::Failure;
use crate::{
    config::ServerConfig,
    models::prepared::Unusable,
    repository::{
        CanaryDone, CanaryUse, FoundModel, LoadSettings, PreparedPlace, PreparedUse, ServedModel,
        Stage, Upkeep, find_models, load_model,
    },
    telemetry::{Metrics, logs},
};

/// Get models ready for a fast start: prepare their weights, run their warm-up, check their
/// outputs. Exits with 1 when one of them fails.
#[derive(Debug, Args)]
pub struct Warm {
    /// Names in the models folder; none for all that have a version.
    names: Vec<String>,
    /// The server's configuration file, for its `[models]`.
    #[arg(long, value_name = "FILE", env = "FERRY_CONFIG")]
    config: Option<PathBuf>,
    /// The models folder.
    #[arg(long, value_name = "DIR", env = "FERRY_MODELS")]
    models: Option<PathBuf>,
    /// Record each model's outputs in canary.json beside its weights, to compare later loads with.
    #[arg(long)]
    record: bool,
    /// Write nothing, and fail where a model's prepared weights are missing or outdated.
    #[arg(long, conflicts_with = "record")]
    verify: bool,
    /// What to log: a level or tracing directives.
    #[arg(long, value_name = "FILTER", env = "FERRY_LOG", default_value = "warn")]
    log: String,
}

impl Warm {
    pub fn run(self) -> Result<(), Failure> {
        logs::start(&self.log, false)?;
        let mut config = match &self.config {
            Some(path) => ServerConfig::read(path)?,
            None => ServerConfig::default(),
        };
        if let Some(models) = &self.models {
            config.models.directory.clone_from(models);
        }
        let settings = LoadSettings {
            prepared: PreparedPlace::of(&config.models),
            upkeep: if self.verify {
                Upkeep::Never
            } else {
                Upkeep::AtOnce
            },
            canary: if self.record {
                CanaryUse::Record
            } else {
                CanaryUse::Check
            },
            ..LoadSettings::of(&config.models)
        };
        let models = self.find(&config)?;
        say!("{}", heading());
        let mut failures = 0;
        for model in &models {
            // Dropped before the next is loaded, so that one is in memory at a time.
            let warmed = load_model(model, &Metrics::new(), &settings);
            let failure = match &warmed {
                Ok(served) => {
                    say!("{}", line(served));
                    self.refuses(served)
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(failure) = failure {
                say_aside!("ferry: {}: {failure}", model.name);
                failures += 1;
            }
        }
        if failures > 0 {
            let of = models.len();
            return Err(format!("{failures} of {of} models are not ready").into());
        }
        Ok(())
    }

    fn find(&self, config: &ServerConfig) -> Result<Vec<FoundModel>, Failure> {
        let folder = &config.models.directory;
        let found = find_models(folder).map_err(|error| {
            format!("can't read the models folder {}: {error}", folder.display())
        })?;
        for name in &self.names {
            if !found.iter().any(|model| model.name == *name) {
                return Err(format!("no model '{name}' in {}", folder.display()).into());
            }
        }
        let asked_for = |model: &FoundModel| {
            if self.names.is_empty() {
                !model.versions.is_empty()
            } else {
                self.names.contains(&model.name)
            }
        };
        let models: Vec<FoundModel> = found.into_iter().filter(asked_for).collect();
        if models.is_empty() {
            return Err(format!("no model with a version in {}", folder.display()).into());
        }
        Ok(models)
    }

    /// Why a model that loads is not as `--verify` wants it.
    fn refuses(&self, served: &ServedModel) -> Option<String> {
        match &served.prepared {
            PreparedUse::Made { why } if self.verify => Some(format!(
                "prepared weights: {why}; bring them up to date with `ferry warm`"
            )),
            _ => None,
        }
    }
}

fn heading() -> String {
    format!(
        "{:<20} {:>7} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}  {:<28} canary",
        "model",
        "version",
        "weights",
        "tokenizer",
        "engine",
        "warm-up",
        "canary",
        "total",
        "prepared weights"
    )
}

fn line(served: &ServedModel) -> String {
    let of = |stage| milliseconds(served.load_times.of(stage));
    format!(
        "{:<20} {:>7} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}  {:<28} {}",
        served.name,
        served.version,
        of(Stage::Weights),
        of(Stage::Tokenizer),
        of(Stage::Engine),
        of(Stage::WarmUp),
        of(Stage::Canary),
        milliseconds(served.load_time),
        prepared(&served.prepared),
        canary(&served.canary),
    )
}

fn prepared(found: &PreparedUse) -> String {
    match found {
        PreparedUse::Off => "off".to_owned(),
        PreparedUse::Mapped => "up to date".to_owned(),
        PreparedUse::Made { .. } => "not written".to_owned(),
        PreparedUse::Written { why, bytes, took } => {
            let done = if *why == Unusable::Missing {
                "written"
            } else {
                "written anew"
            };
            let mib = bytes >> 20;
            format!("{done}: {mib} MiB in {}", milliseconds(*took))
        }
    }
}

fn canary(done: &CanaryDone) -> String {
    match done {
        CanaryDone::Nothing => "none recorded".to_owned(),
        CanaryDone::Checked(outputs) => format!("{outputs} as recorded"),
        CanaryDone::Recorded(outputs) => format!("{outputs} recorded"),
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
