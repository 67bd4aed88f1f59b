//! Loads one version: manifest, weights, tokenizer, engine, warm-up.

mod calibration;
mod canary;
mod cascade;
mod decoder;
mod encoder;
mod gradients;
mod infer;
mod instances;
mod plan;
mod prepared;
mod sequences;
mod settings;
mod times;
mod vocabulary;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwapOption;
use candle_core::quantized::GgmlDType;

use super::{
    FoundModel, Runner, ServedModel,
    drift::{DriftWatch, Watched},
    lease::Lease,
};
use crate::{
    batching::PolicyError,
    config::{Activation, ConfigError, ModelManifest, Quantize, Task},
    device::{self, DeviceError, Place},
    engine::{continuous, panic_message},
    models::{self, ForwardError, PreparedWeights},
    quality::calibration::Calibration,
    telemetry::{InstanceCount, Metrics, ModelMemory, ModelMetrics, ModelStatistics, Traffic},
    text::{ChatError, TokenizerError, VocabularyError},
};

pub use calibration::{Calibrated, CalibrationRecord, digest_weights};
pub use canary::CanaryDone;
pub use encoder::{head_of, load_encoder, load_encoder_on};
pub use infer::infer_manifest;
pub use prepared::PreparedUse;
pub use settings::{CanaryUse, LoadSettings, PreparedPlace, Upkeep};
pub use times::{LoadTimes, Stage};
pub use vocabulary::{encoder_text, read_gguf_text};

/// Why a version can't be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder has no version.
    #[error("no version in {}; fetch the weights (models/fetch.py or `ferry fetch`)", .0.display())]
    NoVersion(PathBuf),
    /// There is no manifest and nothing to infer one from.
    #[error("neither {} nor a config.json beside the weights says what this model is", .0.display())]
    NoManifest(PathBuf),
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ConfigError),
    /// What the manifest asks for does not go together.
    #[error("{}: {key} = {found}; allowed: {allowed}", manifest.display())]
    Unfit {
        /// The manifest.
        manifest: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        allowed: String,
    },
    /// The batching settings contradict each other.
    #[error("batching: {0}")]
    Policy(#[from] PolicyError),
    /// A task that an encoder doesn't do.
    #[error("task '{0}' is not an encoder's")]
    NoHead(Task),
    /// The weights don't load.
    #[error(transparent)]
    Weights(#[from] models::LoadError),
    /// The tokenizer doesn't load.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer inside a GGUF file doesn't load.
    #[error("{}: {source}", path.display())]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: VocabularyError,
    },
    /// The tokenizer and the weights don't belong together.
    #[error("the tokenizer has {tokenizer} tokens, the weights have {weights}")]
    VocabularySize {
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// Rows of the weights' table.
        weights: usize,
    },
    /// The chat template isn't one.
    #[error("the chat template: {0}")]
    ChatTemplate(#[from] ChatError),
    /// The system refused a thread.
    #[error("can't start the engine's threads: {0}")]
    Threads(#[from] std::io::Error),
    /// A generation engine can't start.
    #[error(transparent)]
    Generation(#[from] continuous::StartError),
    /// Something that reads the files is not up to them.
    #[error("its files make what reads them panic: {0}")]
    Panic(String),
    /// The model loaded and then failed on its first input.
    #[error("warm-up failed: {0}")]
    WarmUp(#[from] ForwardError),
    /// An entry of the warm-up plan can't run, or fails.
    #[error("{entry}: {reason}")]
    WarmUpEntry {
        /// Which one.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// The version answers otherwise than was recorded.
    #[error("{}, entry {index} ({input}): {figures}; if that is meant to be, record anew with `ferry warm --record`", path.display())]
    Canary {
        /// The record.
        path: PathBuf,
        /// Which of its entries.
        index: usize,
        /// The beginning of its text.
        input: String,
        /// How far the output is from the recorded one.
        figures: String,
    },
    /// The record of outputs can't be read or written.
    #[error("{}: {reason}", path.display())]
    CanaryFile {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The manifest asks for a record that isn't there.
    #[error("no {}, and warmup.canary.required is set; record it with `ferry warm --record`", path.display())]
    NoCanary {
        /// The record.
        path: PathBuf,
    },
    /// There is no such device here.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The manifest's cascade can't be run.
    #[error("{}: [cascade]: {reason}", manifest.display())]
    Cascade {
        /// The manifest.
        manifest: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The version's calibration can't be used.
    #[error("{}: {reason}", path.display())]
    Calibration {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Prepared weights can't be written.
    #[error("prepared weights: {0}")]
    Prepared(#[from] models::prepared::WriteError),
}

/// What the kinds of models have in common while they are loaded.
struct Loading<'a> {
    model: &'a FoundModel,
    /// The version's folder.
    dir: &'a Path,
    manifest: &'a ModelManifest,
    metrics: ModelMetrics,
    statistics: Arc<ModelStatistics>,
    /// For the metrics that only some models have.
    families: &'a Metrics,
    version: &'a str,
    /// Told how far the load has come.
    tell: &'a dyn Fn(LoadStage),
    /// The devices that it may use, at least one.
    places: &'a [Place],
    settings: &'a LoadSettings,
}

/// What is loaded of a model.
struct Loaded {
    runner: Runner,
    /// Each instance's.
    places: Vec<Place>,
    labels: Vec<String>,
    output_size: usize,
    activation: Activation,
    calibration: Option<Calibration>,
    /// But for answers that are kept.
    memory: ModelMemory,
    weight_bytes: u64,
    times: LoadTimes,
    prepared: Arc<PreparedWeights>,
    canary: CanaryDone,
}

/// How far a load has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStage {
    /// The weights are there; the warm-up runs.
    WarmUp,
}

/// Loads the newest version of `model` and warms it up. Takes seconds; call it off the I/O threads.
///
/// # Errors
/// [`LoadError`] says what is wrong with which file.
pub fn load_model(
    model: &FoundModel,
    metrics: &Metrics,
    settings: &LoadSettings,
) -> Result<ServedModel, LoadError> {
    let newest = *model
        .versions
        .last()
        .ok_or_else(|| LoadError::NoVersion(model.dir.clone()))?;
    load_version(model, newest, metrics, settings, &|_| {})
}

/// Loads a version of `model` and warms it up, telling how far it has come.
///
/// # Errors
/// [`LoadError`] says what is wrong with which file.
pub fn load_version(
    model: &FoundModel,
    version: u64,
    metrics: &Metrics,
    settings: &LoadSettings,
    tell: &dyn Fn(LoadStage),
) -> Result<ServedModel, LoadError> {
    // Other people's code reads tokenizers and tensors, too. A file that makes it panic is its own
    // model's failure: other models are still to be loaded by this thread.
    let loading = AssertUnwindSafe(|| load_unguarded(model, version, metrics, settings, tell));
    catch_unwind(loading)
        .unwrap_or_else(|panic| Err(LoadError::Panic(panic_message(&*panic).to_owned())))
}

fn load_unguarded(
    model: &FoundModel,
    version: u64,
    metrics: &Metrics,
    settings: &LoadSettings,
    tell: &dyn Fn(LoadStage),
) -> Result<ServedModel, LoadError> {
    let started = Instant::now();
    let dir = model.version_dir(version);
    let manifest = read_manifest(model, &dir)?;
    let choice = manifest.resources.device.as_ref();
    let places = device::resolve(choice.unwrap_or(&settings.device))?;
    let version = version.to_string();
    let most_rows = match manifest.task {
        Task::Generate => manifest.generate.max_running,
        _ => manifest.batching.max_rows,
    };
    let loading = Loading {
        model,
        dir: &dir,
        manifest: &manifest,
        metrics: metrics.model(&model.name, &version),
        statistics: Arc::new(ModelStatistics::new(most_rows)),
        families: metrics,
        version: &version,
        tell,
        places: &places,
        settings,
    };
    let loaded = match manifest.task {
        Task::Generate => decoder::load(&loading)?,
        _ => encoder::load(&loading)?,
    };
    let cascade = cascade::check(&loading, &loaded.labels)?;
    let prepared = prepared::keep(&loading, loaded.prepared)?;
    tracing::info!(model = model.name, version, times = %loaded.times, "loaded");
    let counted = count_instances(metrics, &model.name, &version, &loaded.places);
    let drift = if manifest.drift.enabled {
        Some(DriftWatch::start(Watched {
            model: &model.name,
            task: manifest.task,
            activation: loaded.activation,
            labels: loaded.labels.len(),
            folders: (&model.dir, &dir),
            config: &manifest.drift,
            metrics: metrics.drift(&model.name, &version),
        })?)
    } else {
        None
    };
    let memory = ModelMemory {
        answers: manifest.cache.max_bytes().unwrap_or(0) as u64,
        ..loaded.memory
    };
    metrics.set_memory(&model.name, &version, memory);
    let (metrics, statistics) = (loading.metrics.clone(), Arc::clone(&loading.statistics));
    Ok(ServedModel {
        name: model.name.clone(),
        version,
        labels: loaded.labels,
        output_size: loaded.output_size,
        activation: loaded.activation,
        calibration: loaded.calibration,
        cascade,
        memory_bytes: memory.weights + memory.kv_cache + memory.answers,
        weight_bytes: loaded.weight_bytes,
        manifest,
        runner: loaded.runner,
        places: loaded.places,
        _counted: counted,
        metrics,
        statistics,
        traffic: Traffic::default(),
        drift,
        mirror: ArcSwapOption::empty(),
        load_time: started.elapsed(),
        load_times: loaded.times,
        prepared,
        canary: loaded.canary,
        loaded_at: SystemTime::now(),
        lease: Lease::default(),
    })
}

/// Counts a copy's instances, by device, for as long as it is there.
fn count_instances(
    metrics: &Metrics,
    model: &str,
    version: &str,
    places: &[Place],
) -> Vec<InstanceCount> {
    let mut by_device: BTreeMap<String, usize> = BTreeMap::new();
    for place in places {
        *by_device.entry(place.to_string()).or_default() += 1;
    }
    by_device
        .iter()
        .map(|(device, instances)| metrics.count_instances(model, version, (device, *instances)))
        .collect()
}

/// The manifest of a model, from its file or inferred from the files beside the weights.
///
/// # Errors
/// [`LoadError`] when there is none or it is wrong.
pub fn read_manifest(model: &FoundModel, version_dir: &Path) -> Result<ModelManifest, LoadError> {
    let path = model.manifest_path();
    if path.is_file() {
        return Ok(ModelManifest::read(&path)?);
    }
    infer_manifest(version_dir)?.ok_or(LoadError::NoManifest(path))
}

/// The type of a manifest's word for it.
pub(super) fn ggml_type(quantize: Quantize) -> GgmlDType {
    match quantize {
        Quantize::Q4_0 => GgmlDType::Q4_0,
        Quantize::Q4_1 => GgmlDType::Q4_1,
        Quantize::Q5_0 => GgmlDType::Q5_0,
        Quantize::Q5_1 => GgmlDType::Q5_1,
        Quantize::Q8_0 => GgmlDType::Q8_0,
        Quantize::Q2K => GgmlDType::Q2K,
        Quantize::Q3K => GgmlDType::Q3K,
        Quantize::Q4K => GgmlDType::Q4K,
        Quantize::Q5K => GgmlDType::Q5K,
        Quantize::Q6K => GgmlDType::Q6K,
    }
}
