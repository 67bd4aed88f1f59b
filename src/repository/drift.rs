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

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use super::Repository;
use crate::{
    config::{Activation, DriftConfig, Task},
    error::RequestError,
    models::RowOutput,
    quality::{
        self,
        drift::{Outputs, Profile, Reading, Row, Signal, State, Watch, Windowed},
    },
    telemetry::DriftMetrics,
};

/// Rows that wait to be looked at, at most.
const MAX_WAITING_ROWS: usize = 4096;

/// Bytes of a baseline's file, at most.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The file of a version's baseline.
const FILE: &str = "drift.json";

/// A copy of what a row was answered.
#[derive(Debug)]
enum Seen {
    Row {
        output: RowOutput,
        tokens: usize,
        unknown: u32,
    },
    Generated {
        prompt: usize,
        generated: usize,
        confidence: f32,
    },
}

/// Watches the drift of one loaded version. Dropping it ends its thread.
#[derive(Debug)]
pub struct DriftWatch {
    rows: Sender<Vec<Seen>>,
    waiting: Arc<AtomicUsize>,
    sample: f64,
    requests: AtomicU64,
    watch: Arc<Mutex<Watch>>,
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
        let watch = Arc::new(Mutex::new(Watch::new(watched.config.clone(), baseline)));
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
            watch,
            metrics: watched.metrics,
            file,
        })
    }

    /// Hands over what the rows of a request were answered: output, tokens, unknown tokens.
    pub fn observe<'a>(&self, rows: impl Iterator<Item = (&'a RowOutput, usize, u32)>) {
        if self.is_due() {
            let seen = rows.map(|(output, tokens, unknown)| Seen::Row {
                output: output.clone(),
                tokens,
                unknown,
            });
            self.hand_over(seen.collect());
        }
    }

    /// Hands over what was generated: tokens of the prompt and of the text, and how sure the model was.
    pub fn observe_generated(&self, prompt: usize, generated: u32, confidence: f32) {
        if self.is_due() {
            self.hand_over(vec![Seen::Generated {
                prompt,
                generated: generated as usize,
                confidence,
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
        self.metrics.worst.set(0);
        keep(self.file.as_deref(), &baseline);
        Some(baseline.rows)
    }

    /// The worst state of any signal.
    pub fn state(&self) -> State {
        lock(&self.watch).state()
    }

    fn is_due(&self) -> bool {
        if self.sample >= 1.0 {
            return true;
        }
        let seen = self.requests.fetch_add(1, Relaxed) as f64;
        let due = |requests: f64| (requests * self.sample).floor();
        due(seen + 1.0) > due(seen)
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
        let (output, tokens, unknown) = match seen {
            Seen::Generated {
                prompt,
                generated,
                confidence,
            } => {
                return Some(Row {
                    outputs: Outputs::Generated(*generated),
                    confidence: Some(*confidence),
                    tokens: *prompt,
                    unknown: 0,
                });
            }
            Seen::Row {
                output,
                tokens,
                unknown,
            } => (output, *tokens, *unknown),
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
