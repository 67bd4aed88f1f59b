//! A version's drift, off its requests' way: they hand copies of their answers to a thread, which
//! counts them and compares.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwapOption;
use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use super::Repository;
use crate::{
    config::{Activation, DriftConfig, Task},
    error::RequestError,
    models::RowOutput,
    quality::{
        self,
        drift::{
            Anomalies, Limits, Outputs, Profile, Reading, Row, Signal, State, Watch, Windowed,
            language_of,
        },
    },
    telemetry::DriftMetrics,
    text::RowInput,
};

/// Rows that wait to be looked at, at most.
const MAX_WAITING_ROWS: usize = 4096;

/// Bytes of a baseline's file, at most.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Bytes of a text that its language is told by.
const EXCERPT_BYTES: usize = 240;

/// The file of a version's baseline.
const FILE: &str = "drift.json";

/// A copy of what a row was answered.
#[derive(Debug)]
enum Seen {
    Row {
        output: RowOutput,
        tokens: usize,
        unknown: u32,
        excerpt: Option<Box<str>>,
    },
    Generated {
        prompt: usize,
        generated: usize,
        confidence: f32,
        excerpt: Option<Box<str>>,
    },
}

/// A row that was answered.
#[derive(Debug, Clone, Copy)]
pub struct SeenRow<'a> {
    /// What the model said.
    pub output: &'a RowOutput,
    /// Tokens that it saw.
    pub tokens: usize,
    /// Those of them that are unknown.
    pub unknown: u32,
    /// The beginning of its text, from [`DriftWatch::excerpt`].
    pub excerpt: Option<&'a str>,
}

/// Watches the drift of one loaded version. Dropping it ends its thread.
#[derive(Debug)]
pub struct DriftWatch {
    rows: Sender<Vec<Seen>>,
    waiting: Arc<AtomicUsize>,
    sample: f64,
    requests: AtomicU64,
    language_sample: f64,
    texts: AtomicU64,
    watch: Arc<Mutex<Watch>>,
    /// Of the baseline, once there is one.
    limits: Arc<ArcSwapOption<Limits>>,
    config: DriftConfig,
    metrics: DriftMetrics,
    /// Where the baseline is kept, if it is.
    file: Option<PathBuf>,
}

/// What is to be watched.
#[derive(Debug)]
pub(super) struct Watched<'a> {
    pub(super) model: &'a str,
    pub(super) task: Task,
    pub(super) activation: Activation,
    pub(super) labels: usize,
    /// The model's folder, and the version's.
    pub(super) folders: (&'a Path, &'a Path),
    pub(super) config: &'a DriftConfig,
    pub(super) metrics: DriftMetrics,
}

impl DriftWatch {
    /// Reads the baseline, if there is one, and starts the thread.
    ///
    /// # Errors
    /// When the baseline's file is no baseline, one that the manifest names isn't there, or there is
    /// no thread to be had.
    pub(super) fn start(watched: Watched<'_>) -> io::Result<Self> {
        let (model, version) = watched.folders;
        let named = watched
            .config
            .baseline
            .as_ref()
            .map(|file| model.join(file));
        let path = named.clone().unwrap_or_else(|| version.join(FILE));
        let baseline = if named.is_some() || path.exists() {
            Some(read_baseline(&path)?)
        } else {
            None
        };
        let file = watched.config.keep.then(|| version.join(FILE));
        let config = watched.config.clone();
        let limits = baseline
            .as_ref()
            .and_then(|baseline| Limits::of(baseline, &config));
        let limits = Arc::new(ArcSwapOption::from_pointee(limits));
        let watch = Arc::new(Mutex::new(Watch::new(config.clone(), baseline)));
        let (rows, inbox) = bounded(MAX_WAITING_ROWS);
        let waiting = Arc::<AtomicUsize>::default();
        let looker = Looker {
            model: watched.model.to_owned(),
            task: watched.task,
            activation: watched.activation,
            labels: watched.labels,
            inbox,
            waiting: Arc::clone(&waiting),
            watch: Arc::clone(&watch),
            limits: Arc::clone(&limits),
            config: config.clone(),
            metrics: watched.metrics.clone(),
            file: file.clone(),
        };
        std::thread::Builder::new()
            .name(format!("drift-{}", watched.model))
            .spawn(move || looker.run())?;
        Ok(Self {
            rows,
            waiting,
            sample: watched.config.sample,
            requests: AtomicU64::new(0),
            language_sample: config.language_sample,
            texts: AtomicU64::new(0),
            watch,
            limits,
            config,
            metrics: watched.metrics,
            file,
        })
    }

    /// The beginning of a row's text, if it is one of those whose language is told: taken before the text
    /// becomes tokens.
    pub fn excerpt(&self, row: &RowInput) -> Option<Box<str>> {
        match row {
            RowInput::Text(text) => self.excerpt_of(text),
            RowInput::Pair(query, document) if document.len() < query.len() => {
                self.excerpt_of(query)
            }
            RowInput::Pair(_, document) => self.excerpt_of(document),
            RowInput::Tokens(_) => None,
        }
    }

    /// As [`DriftWatch::excerpt`], of a text.
    pub fn excerpt_of(&self, text: &str) -> Option<Box<str>> {
        if !is_due(&self.texts, self.language_sample) {
            return None;
        }
        let mut end = text.len().min(EXCERPT_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Some(text[..end].into())
    }

    /// In which ways a row is far from the baseline although the model is sure of it, which counts it;
    /// `confidence` is asked for where the row is far.
    pub fn anomalies(
        &self,
        (tokens, unknown): (usize, u32),
        vector: Option<&[f32]>,
        confidence: impl FnOnce() -> Option<f32>,
    ) -> Anomalies {
        let limits = self.limits.load();
        let Some(limits) = limits.as_ref() else {
            return Anomalies::default();
        };
        let far = limits.far(tokens, unknown, vector);
        if far.is_empty() || !limits.is_sure(confidence()) {
            return Anomalies::default();
        }
        for anomaly in far.iter() {
            self.metrics.count_anomaly(anomaly.name());
        }
        far
    }

    /// Hands over what the rows of a request were answered.
    pub fn observe<'a>(&self, rows: impl Iterator<Item = SeenRow<'a>>) {
        if self.is_due() {
            let seen = rows.map(|row| Seen::Row {
                output: row.output.clone(),
                tokens: row.tokens,
                unknown: row.unknown,
                excerpt: row.excerpt.map(Into::into),
            });
            self.hand_over(seen.collect());
        }
    }

    /// Hands over what was generated: tokens of the prompt and of the text, and how sure the model was.
    pub fn observe_generated(
        &self,
        (prompt, generated): (usize, u32),
        confidence: f32,
        excerpt: Option<&str>,
    ) {
        if self.is_due() {
            self.hand_over(vec![Seen::Generated {
                prompt,
                generated: generated as usize,
                confidence,
                excerpt: excerpt.map(Into::into),
            }]);
        }
    }

    /// Makes what was seen since the load, or since the last time, the baseline, and keeps it. `None`
    /// where that is less than a window.
    pub fn rebase(&self) -> Option<u64> {
        let baseline = {
            let mut watch = lock(&self.watch);
            if !watch.rebase() {
                return None;
            }
            watch.baseline().cloned()?
        };
        let limits = Limits::of(&baseline, &self.config);
        self.limits.store(limits.map(Arc::new));
        self.metrics.worst.set(0);
        keep(self.file.as_deref(), &baseline);
        Some(baseline.rows)
    }

    /// The worst state of any signal, and what the latest window said of each.
    pub fn state(&self) -> (State, Vec<Reading>) {
        let watch = lock(&self.watch);
        (watch.state(), watch.readings().to_vec())
    }

    fn is_due(&self) -> bool {
        is_due(&self.requests, self.sample)
    }

    fn hand_over(&self, rows: Vec<Seen>) {
        let count = rows.len();
        let before = self.waiting.fetch_add(count, Relaxed);
        let sent = before + count <= MAX_WAITING_ROWS
            && match self.rows.try_send(rows) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            };
        if !sent {
            self.waiting.fetch_sub(count, Relaxed);
            self.metrics.dropped.inc_by(count as u64);
        }
    }
}

impl Repository {
    /// Makes what a version (`None`: the stable one) was asked and has said what is usual for it;
    /// returns the version and the rows of it.
    ///
    /// # Errors
    /// [`RequestError::Refused`] where no drift is looked for, or too little was seen; or that there is
    /// no such version.
    pub fn record_baseline(
        &self,
        name: &str,
        version: Option<u64>,
    ) -> Result<(u64, u64), RequestError> {
        let version = version.map_or_else(String::new, |version| version.to_string());
        let model = self.find(name, &version, None)?;
        let refused = |what: String| RequestError::Refused { what };
        let drift = model.drift.as_ref().ok_or_else(|| {
            refused(format!(
                "no drift is looked for in model '{name}'; set drift.enabled in its manifest"
            ))
        })?;
        let rows = drift.rebase().ok_or_else(|| {
            let needed = model.manifest.drift.window_rows;
            refused(format!(
                "too little was seen of version {} of model '{name}' for a baseline: {needed} rows \
                 are needed",
                model.version
            ))
        })?;
        Ok((model.number(), rows))
    }
}

struct Looker {
    model: String,
    task: Task,
    activation: Activation,
    labels: usize,
    inbox: Receiver<Vec<Seen>>,
    waiting: Arc<AtomicUsize>,
    watch: Arc<Mutex<Watch>>,
    limits: Arc<ArcSwapOption<Limits>>,
    config: DriftConfig,
    metrics: DriftMetrics,
    file: Option<PathBuf>,
}

impl Looker {
    fn run(self) {
        for rows in &self.inbox {
            self.waiting.fetch_sub(rows.len(), Relaxed);
            for row in &rows {
                self.look(row);
            }
        }
    }

    fn look(&self, seen: &Seen) {
        let mut labels = Vec::new();
        let (mut watch, windowed);
        match self.row_of(seen, &mut labels) {
            Some(row) => {
                watch = lock(&self.watch);
                windowed = watch.observe(&row);
            }
            None => return,
        }
        match windowed {
            Windowed::Counted => {}
            Windowed::Learnt => {
                let baseline = watch.baseline().cloned().unwrap_or_default();
                drop(watch);
                tracing::info!(
                    model = self.model,
                    rows = baseline.rows,
                    "drift: baseline learnt"
                );
                let limits = Limits::of(&baseline, &self.config);
                self.limits.store(limits.map(Arc::new));
                keep(self.file.as_deref(), &baseline);
            }
            Windowed::Full(readings) => {
                let worst = watch.state();
                drop(watch);
                self.publish(&readings, worst);
            }
        }
    }

    fn row_of<'a>(&self, seen: &'a Seen, labels: &'a mut Vec<usize>) -> Option<Row<'a>> {
        let (output, tokens, unknown, language) = match seen {
            Seen::Generated {
                prompt,
                generated,
                confidence,
                excerpt,
            } => {
                return Some(Row {
                    outputs: Outputs::Generated(*generated),
                    confidence: Some(*confidence),
                    tokens: *prompt,
                    unknown: 0,
                    language: excerpt.as_deref().map(language_of),
                });
            }
            Seen::Row {
                output,
                tokens,
                unknown,
                excerpt,
            } => {
                let language = excerpt.as_deref().map(language_of);
                (output, *tokens, *unknown, language)
            }
        };
        let (outputs, confidence) = match output {
            RowOutput::Embedding(values) => (Outputs::Vector(values), None),
            RowOutput::Logits(logits) if self.task == Task::Rerank => {
                (Outputs::Score(quality::sigmoid(*logits.first()?)), None)
            }
            RowOutput::Logits(logits) => {
                let classified = quality::classify(logits, self.activation);
                let best = *classified.ranking.first()?;
                (Outputs::Class(best), Some(classified.confidence))
            }
            RowOutput::TokenLogits { values, .. } => {
                let mut sum = 0.0;
                for logits in values.chunks_exact(self.labels.max(1)) {
                    let (label, probability) = quality::top_probability(logits);
                    labels.push(label);
                    sum += probability;
                }
                let confidence = sum / labels.len().max(1) as f32;
                (Outputs::Labels(labels), Some(confidence))
            }
        };
        Some(Row {
            outputs,
            confidence,
            tokens,
            unknown,
            language,
        })
    }

    fn publish(&self, readings: &[Reading], worst: State) {
        let metrics = &self.metrics;
        metrics.windows.inc();
        for reading in readings {
            let signal = reading.signal.name();
            let (value, divergence) = if reading.signal == Signal::Embedding {
                ("centroid_shift", "centroid_cosine_distance")
            } else {
                ("psi", "jensen_shannon")
            };
            metrics.set_distance(signal, value, reading.value);
            metrics.set_distance(signal, divergence, reading.divergence);
            metrics.set_state(signal, reading.state as i64);
        }
        let before = metrics.worst.get();
        metrics.worst.set(worst as i64);
        if worst as i64 > before {
            let far = readings
                .iter()
                .filter(|reading| reading.state > State::Ok)
                .map(|reading| format!("{} {:.3}", reading.signal.name(), reading.value));
            let far: Vec<String> = far.collect();
            tracing::warn!(model = self.model, state = ?worst, signals = far.join(", "), "drift");
        } else if before > worst as i64 {
            tracing::info!(model = self.model, state = ?worst, "drift is less");
        }
    }
}

/// Whether the next of a count is one of a share of it, spread evenly.
fn is_due(seen: &AtomicU64, share: f64) -> bool {
    if share <= 0.0 || share >= 1.0 {
        return share > 0.0;
    }
    let seen = seen.fetch_add(1, Relaxed) as f64;
    let due = |count: f64| (count * share).floor();
    due(seen + 1.0) > due(seen)
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_baseline(path: &Path) -> io::Result<Profile> {
    let wrong = |reason: &dyn std::fmt::Display| {
        let what = format!("drift: the baseline {}: {reason}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    };
    let bytes = fs::metadata(path).map_err(|error| wrong(&error))?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(wrong(&format_args!(
            "{bytes} bytes; at most {MAX_FILE_BYTES}"
        )));
    }
    let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
    serde_json::from_str(&text).map_err(|error| wrong(&error))
}

/// Writes a baseline beside its version. Where it can't be written it counts until the next start.
fn keep(file: Option<&Path>, baseline: &Profile) {
    let Some(file) = file else {
        return;
    };
    let written = serde_json::to_vec(baseline)
        .map_err(io::Error::other)
        .and_then(|json| {
            let new = file.with_extension("json.new");
            fs::write(&new, json)?;
            fs::rename(new, file)
        });
    if let Err(error) = written {
        let file = file.display();
        tracing::warn!(%file, %error, "drift: the baseline can't be kept; it counts until the next start");
    }
}
