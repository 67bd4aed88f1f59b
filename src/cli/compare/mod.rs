//! `ferry compare`: asks two models the same and tells how far they agree, how fast each is and what
//! it weighs. With thresholds it is a gate: exit code 2 when one is broken.

pub(super) mod client;
mod html;
pub(super) mod inputs;
pub(super) mod judge;
mod measure;
mod plots;
mod report;
mod stage;
pub(super) mod subject;
mod table;
mod windows;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;

use self::{
    inputs::Inputs,
    measure::{Outcome, Work},
    report::{Report, SideReport, Verdict},
    stage::{Side, Stage},
};
use super::{Failure, io_runtime, page::Plot, reach::ClientKey};
use crate::{
    config::{Task, Thresholds},
    quality::comparison::Cost,
};

/// Exit code of a broken threshold.
const BROKEN: u8 = 2;

/// Compare two models on the same inputs.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 all thresholds hold, 2 one is broken, 1 something went wrong."
)]
pub struct Compare {
    /// What is compared with: NAME or NAME@VERSION, or without --server the path of a version's folder
    /// or of a GGUF file.
    #[arg(value_name = "A")]
    reference: String,
    /// What is judged, named the same way.
    #[arg(value_name = "B")]
    candidate: String,
    /// Inputs: JSON objects in a .jsonl file ("text"; "query" and "documents"; "prompt" or "messages"),
    /// else plain texts, one a line.
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// A text whose tokens both score, for perplexity; models that generate.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Inputs, and stretches of the text, at most.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = at_least_one)]
    limit: usize,
    /// Bytes of the stretches that the text is cut into; each must fit the models' contexts.
    #[arg(long, value_name = "BYTES", default_value_t = 4096, value_parser = at_least_one)]
    window: usize,
    /// Tokens generated for an input, at most.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Rows of a call; models that don't generate.
    #[arg(long, value_name = "ROWS", default_value_t = 32, value_parser = at_least_one)]
    batch: usize,
    /// Times that rows are run to take the time; models that don't generate.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    rounds: usize,
    /// The models folder.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "models",
        env = "FERRY_MODELS"
    )]
    models: PathBuf,
    /// Ask a running server's gRPC listener instead of loading the models here.
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    #[command(flatten)]
    key: ClientKey,
    /// Seconds that a call may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Thresholds, a TOML file of KEY = VALUE.
    #[arg(long, value_name = "FILE")]
    thresholds: Option<PathBuf>,
    /// A threshold, such as `min_agreement=0.98`; may be given more than once, and wins over the file.
    #[arg(long, value_name = "KEY=VALUE")]
    require: Vec<String>,
    /// Write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a report with pictures, one HTML file that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the thresholds as `JUnit`'s XML, for CI.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write the tables as Markdown, for CI.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

impl Compare {
    /// Compares; the exit code tells whether the thresholds hold.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let thresholds = self.read_thresholds()?;
        if self.inputs.is_none() && self.text.is_none() {
            return Err("nothing to compare on: give --inputs, or --text for perplexity".into());
        }
        let (report, plots) = io_runtime()?.block_on(self.compare(&thresholds))?;
        say_part!("{}", table::terminal(&report));
        if let Some(path) = &self.json {
            write(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
        }
        if let Some(path) = &self.html {
            write(path, &html::page(&report, &plots)?)?;
        }
        if let Some(path) = &self.junit {
            write(path, &table::junit(&report))?;
        }
        if let Some(path) = &self.markdown {
            write(path, &table::markdown(&report))?;
        }
        for breach in thresholds.check(&report.figures) {
            say_aside!("ferry: threshold broken: {breach}");
        }
        Ok(if report.holds {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(BROKEN)
        })
    }

    async fn compare(&self, thresholds: &Thresholds) -> Result<(Report, Vec<Plot>), Failure> {
        let names = [self.reference.as_str(), self.candidate.as_str()];
        let timeout = Duration::from_secs(self.timeout);
        let stage = match &self.server {
            Some(address) => Stage::live((address, self.key.token()?), names, timeout).await?,
            None => Stage::load(&self.models, names, timeout).await?,
        };
        let outcome = self.ask(&stage, thresholds).await;
        let made = outcome.map(|(outcome, sources)| make(&stage, outcome, sources, thresholds));
        stage.close().await;
        made
    }

    async fn ask(
        &self,
        stage: &Stage,
        thresholds: &Thresholds,
    ) -> Result<(Outcome, Vec<String>), Failure> {
        let task = stage.task;
        if let [first, ..] = thresholds.foreign_to(task)[..] {
            return Err(format!("threshold {first} is none for models that do {task}").into());
        }
        if self.text.is_some() && task != Task::Generate {
            return Err(format!("--text is for models that generate; these do {task}").into());
        }
        let mut sources = Vec::new();
        let mut work = Work {
            inputs: Vec::new(),
            windows: Vec::new(),
            batch: self.batch,
            rounds: self.rounds,
            max_tokens: self.max_tokens,
        };
        if let Some(path) = &self.inputs {
            let Inputs { rows, has_more } = inputs::read(path, task, self.limit)?;
            let first = if has_more { "the first " } else { "" };
            sources.push(format!(
                "{first}{} inputs of {}",
                rows.len(),
                path.display()
            ));
            work.inputs = rows;
        }
        if let Some(path) = &self.text {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            work.windows = windows::cut(&text, self.window);
            let all = work.windows.len();
            work.windows.truncate(self.limit);
            if all == 0 {
                return Err(format!("{}: no text", path.display()).into());
            }
            let first = if all > self.limit { "the first " } else { "" };
            let bytes: usize = work.windows.iter().map(String::len).sum();
            sources.push(format!(
                "{first}{bytes} bytes of {} in stretches of at most {}",
                path.display(),
                self.window
            ));
        }
        Ok((measure::compare(stage, &work).await?, sources))
    }

    fn read_thresholds(&self) -> Result<Thresholds, Failure> {
        let mut all = match &self.thresholds {
            None => toml::Table::new(),
            Some(path) => toml::Table::try_from(Thresholds::read(path)?)?,
        };
        for given in &self.require {
            let wrong = || format!("--require {given}: found '{given}'; allowed: KEY=NUMBER");
            let (key, value) = given.split_once('=').ok_or_else(wrong)?;
            let value: f64 = value.trim().parse().map_err(|_| wrong())?;
            all.insert(key.trim().to_owned(), toml::Value::Float(value));
            let one = toml::Table::from_iter([(key.trim().to_owned(), toml::Value::Float(value))]);
            let one: Thresholds = one.try_into().map_err(|error: toml::de::Error| {
                format!("--require {given}: {}", error.message())
            })?;
            one.validate().map_err(|violation| {
                format!("--require {given}: allowed: {}", violation.allowed)
            })?;
        }
        Ok(all.try_into()?)
    }
}

/// The report, and its pictures.
fn make(
    stage: &Stage,
    outcome: Outcome,
    sources: Vec<String>,
    thresholds: &Thresholds,
) -> (Report, Vec<Plot>) {
    let mut figures = outcome.comparison.figures();
    let (ours, theirs) = (stage.reference.memory_bytes, stage.candidate.memory_bytes);
    figures.cost = Cost {
        time_ratio: outcome.time_ratio,
        memory_ratio: ours
            .zip(theirs)
            .filter(|(ours, _)| *ours > 0)
            .map(|(ours, theirs)| theirs as f64 / ours as f64),
    };
    let mut notes = Vec::new();
    if !outcome.same_tokens {
        notes.push(
            "The sides cut texts into different tokens: tokens are compared by their text, and of \
             perplexities only bits a byte are comparable."
                .to_owned(),
        );
    }
    if outcome.findings.failed_on_both > 0 {
        let count = outcome.findings.failed_on_both;
        notes.push(format!(
            "{count} rows failed on both sides and are not compared."
        ));
    }
    let failures = figures.failures;
    if failures.reference + failures.candidate > 0 {
        notes.push(format!(
            "{} rows failed on the reference alone, {} on the candidate alone.",
            failures.reference, failures.candidate
        ));
    }
    let plots = plots::all(&outcome.comparison, &figures, &outcome.labels);
    let thresholds = Verdict::all(thresholds, &figures);
    let side = |side: &Side, at: usize| SideReport {
        name: side.name.clone(),
        version: side.version.clone(),
        memory_bytes: side.memory_bytes,
        pace: outcome.paces[at],
    };
    let report = Report {
        ferry: env!("CARGO_PKG_VERSION"),
        task: stage.task,
        reference: side(&stage.reference, 0),
        candidate: side(&stage.candidate, 1),
        sources,
        holds: thresholds.iter().all(|verdict| verdict.holds),
        thresholds,
        figures,
        labels: outcome.labels,
        findings: outcome.findings,
        notes,
    };
    (report, plots)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}
