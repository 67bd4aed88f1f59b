//! Loads one version: manifest, weights, tokenizer, engine, warm-up.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::Device;

use super::{FoundModel, ServedModel};
use crate::{
    batching::{BatchPolicy, PolicyError},
    config::{Activation, ConfigError, ModelManifest, Pooling, Task},
    engine::{Engine, EngineOptions, Forward, is_finite},
    models::{self, EncoderModel, ForwardError, Head, LoadOptions, PackedBatch},
    ops,
    telemetry::{Metrics, ModelStatistics},
    text::{TextEncoder, TokenizerError},
};

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
    /// Ferry does not do this task.
    #[error("task '{0}' is not served by this version of Ferry")]
    Task(Task),
    /// The weights don't load.
    #[error(transparent)]
    Weights(#[from] models::LoadError),
    /// The tokenizer doesn't load.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The system refused a thread.
    #[error("can't start the engine's threads: {0}")]
    Threads(#[from] std::io::Error),
    /// The model loaded and then failed on its first input.
    #[error("warm-up failed: {0}")]
    WarmUp(#[from] ForwardError),
    /// The model loaded and its output is not a number.
    #[error("warm-up failed: the output is not finite (NaN or infinity)")]
    NotFinite,
}

/// Loads the newest version of `model` and warms it up. Takes seconds; call it off the I/O threads.
///
/// # Errors
/// [`LoadError`] says what is wrong with which file.
pub fn load_model(model: &FoundModel, metrics: &Metrics) -> Result<ServedModel, LoadError> {
    let started = Instant::now();
    let version = *model
        .versions
        .last()
        .ok_or_else(|| LoadError::NoVersion(model.dir.clone()))?;
    let dir = model.version_dir(version);
    let manifest = read_manifest(model, &dir)?;
    let encoder = EncoderModel::load(
        &dir,
        &LoadOptions {
            head: head_of(&manifest)?,
        },
        &Device::Cpu,
    )?;
    let max_tokens = usable_tokens(model, &manifest, &encoder)?;
    let text = TextEncoder::load(
        &dir,
        encoder.spec().vocabulary,
        encoder.spec().type_vocabulary > 1,
        max_tokens,
        manifest.input.truncation,
    )?;
    let policy = policy_of(&manifest);
    policy.validate()?;

    let name = &model.name;
    let version = version.to_string();
    let metrics = metrics.model(name, &version);
    let statistics = Arc::new(ModelStatistics::new(policy.max_rows));
    let encoder = Arc::new(encoder);
    let runner = Arc::clone(&encoder);
    let forward: Forward = Arc::new(move |batch| runner.forward(batch));
    let engine = Engine::start(
        EngineOptions {
            name: name.clone(),
            policy,
            instances: manifest.resources.instances,
            metrics: metrics.clone(),
            statistics: Arc::clone(&statistics),
        },
        &forward,
    )?;
    warm_up(&forward, &engine, max_tokens, &manifest)?;

    Ok(ServedModel {
        name: name.clone(),
        version,
        labels: encoder.labels().to_vec(),
        output_size: encoder.output_dim(),
        activation: manifest.classify.activation.unwrap_or_else(|| {
            if encoder.spec().problem_type.as_deref() == Some("multi_label_classification") {
                Activation::Sigmoid
            } else {
                Activation::Softmax
            }
        }),
        memory_bytes: encoder.memory_bytes() as u64,
        manifest,
        text: Arc::new(text),
        engine,
        metrics,
        statistics,
        load_time: started.elapsed(),
    })
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
    ModelManifest::infer(version_dir).ok_or(LoadError::NoManifest(path))
}

/// The head that a manifest asks for.
///
/// # Errors
/// [`LoadError::Task`] when no encoder does the task.
pub fn head_of(manifest: &ModelManifest) -> Result<Head, LoadError> {
    Ok(match manifest.task {
        Task::Embed => Head::Embed {
            pooling: match manifest.embed.pooling {
                Pooling::Mean => ops::Pooling::Mean,
                Pooling::Cls => ops::Pooling::Cls,
                Pooling::Last => ops::Pooling::Last,
            },
            normalize: manifest.embed.normalize,
            dimension: Some(manifest.embed.dimensions).filter(|&dimensions| dimensions > 0),
        },
        Task::Classify => Head::SequenceClass,
        Task::Rerank => Head::PairScore,
        Task::Tokens => Head::TokenClass,
        Task::Generate => return Err(LoadError::Task(manifest.task)),
    })
}

fn usable_tokens(
    model: &FoundModel,
    manifest: &ModelManifest,
    encoder: &EncoderModel,
) -> Result<usize, LoadError> {
    let positions = encoder.spec().max_tokens();
    let asked = manifest.input.max_tokens;
    let unfit = |key, found: usize, allowed| LoadError::Unfit {
        manifest: model.manifest_path(),
        key,
        found: found.to_string(),
        allowed,
    };
    if asked > positions {
        let allowed = format!("at most the model's {positions} positions");
        return Err(unfit("input.max_tokens", asked, allowed));
    }
    let usable = if asked == 0 { positions } else { asked };
    let budget = manifest.batching.max_tokens;
    if budget < usable {
        let allowed = format!("at least a row's {usable} tokens");
        return Err(unfit("batching.max_tokens", budget, allowed));
    }
    Ok(usable)
}

fn policy_of(manifest: &ModelManifest) -> BatchPolicy {
    let batching = &manifest.batching;
    BatchPolicy {
        max_rows: batching.max_rows,
        max_tokens: batching.max_tokens,
        max_queue_delay: batching.max_queue_delay(),
        max_waiting_rows: batching.max_waiting_rows,
        eager: batching.eager,
    }
}

/// Runs the shapes that will be served, so that the first request finds warm memory and the run
/// time model knows what a batch costs.
fn warm_up(
    forward: &Forward,
    engine: &Engine,
    max_tokens: usize,
    manifest: &ModelManifest,
) -> Result<(), LoadError> {
    const SHAPES: [(usize, usize); 6] = [(1, 8), (1, 16), (1, 64), (4, 32), (8, 64), (16, 32)];
    for round in 0..2 {
        for (rows, tokens) in SHAPES {
            let tokens = tokens.min(max_tokens);
            let rows = rows
                .min(manifest.batching.max_rows)
                .min(manifest.batching.max_tokens / tokens);
            let mut batch = PackedBatch::with_capacity(rows, rows * tokens);
            for _ in 0..rows {
                batch.push_row(&vec![0; tokens], None);
            }
            let began = Instant::now();
            let outputs = forward(&batch)?;
            let took = began.elapsed();
            if !outputs.iter().all(is_finite) {
                return Err(LoadError::NotFinite);
            }
            // The first round pays for page faults and thread starts; it would mislead the model.
            if round > 0 && took > Duration::ZERO {
                engine.teach(batch.tokens().len(), batch.sum_len_squared(), took);
            }
        }
    }
    Ok(())
}
