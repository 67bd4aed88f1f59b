//! Loads a model that answers a row in one forward pass.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::Device;

use super::{LoadError, LoadStage, Loaded, Loading, encoder_text, ggml_type};
use crate::{
    batching::BatchPolicy,
    cache::{CacheOptions, RowCache},
    config::{Activation, ModelManifest, Pooling, Task, manifest::find_gguf},
    engine::{Engine, EngineOptions, Forward, is_finite},
    models::{EncoderModel, Head, LoadOptions, PackedBatch},
    ops,
    repository::{FoundModel, Runner, ServedEncoder},
};

/// Loads weights and tokenizer, starts the engine, warms it up.
pub(super) fn load(loading: &Loading<'_>) -> Result<Loaded, LoadError> {
    let Loading {
        model,
        dir,
        manifest,
        ..
    } = *loading;
    let encoder = load_encoder(dir, manifest)?;
    let max_tokens = usable_tokens(model, manifest, &encoder)?;
    let text = encoder_text(dir, encoder.spec(), max_tokens, manifest.input.truncation)?;
    let policy = policy_of(manifest);
    policy.validate()?;

    let encoder = Arc::new(encoder);
    let runner = Arc::clone(&encoder);
    let forward: Forward = Arc::new(move |batch| runner.forward(batch));
    let engine = Engine::start(
        EngineOptions {
            name: model.name.clone(),
            policy,
            instances: manifest.resources.instances,
            metrics: loading.metrics.clone(),
            statistics: Arc::clone(&loading.statistics),
        },
        &forward,
    )?;
    (loading.tell)(LoadStage::WarmUp);
    warm_up(&forward, &engine, max_tokens, manifest)?;
    let engine = Arc::new(engine);
    let cache = manifest.cache.max_bytes().map(|max_bytes| {
        let options = CacheOptions {
            max_bytes,
            time_to_live: manifest.cache.time_to_live(),
            max_followers: manifest.batching.max_waiting_rows,
            metrics: loading.families.cache(&model.name, loading.version),
            statistics: Arc::clone(&loading.statistics),
        };
        Arc::new(RowCache::new(Arc::clone(&engine), options))
    });
    Ok(Loaded {
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
        weight_bytes: encoder.memory_bytes() as u64,
        runner: Runner::Encoder(ServedEncoder {
            text: Arc::new(text),
            engine,
            cache,
        }),
    })
}

/// Loads the weights of a version: those of its GGUF file if it has one, else its checkpoint.
///
/// # Errors
/// [`LoadError`] when they don't load, or the manifest asks for a head that they lack.
pub fn load_encoder(dir: &Path, manifest: &ModelManifest) -> Result<EncoderModel, LoadError> {
    let source = find_gguf(dir).unwrap_or_else(|| dir.to_owned());
    let options = LoadOptions {
        head: head_of(manifest)?,
        quantize: manifest.quantize.map(ggml_type),
    };
    Ok(EncoderModel::load(&source, &options, &Device::Cpu)?)
}

/// The head that a manifest asks for.
///
/// # Errors
/// [`LoadError::NoHead`] when no encoder does the task.
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
        Task::Generate => return Err(LoadError::NoHead(manifest.task)),
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
