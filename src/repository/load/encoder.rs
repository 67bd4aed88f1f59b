//! Loads a model that answers a row in one forward pass.

use std::{path::Path, sync::Arc, time::Duration};

use candle_core::Device;

use super::{
    LoadError, LoadStage, LoadTimes, Loaded, Loading, Stage, calibration,
    canary::{self, CanaryOutput},
    encoder_text, ggml_type, gradients,
    instances::Instances,
    plan, prepared,
    times::timed,
};
use crate::{
    batching::BatchPolicy,
    cache::{CacheOptions, RowCache},
    config::{
        Activation, ModelManifest, Pooling, Precision, Task,
        manifest::{CanaryInput, WarmupShape, find_gguf},
    },
    engine::{Engine, EngineOptions, Forward, is_finite},
    models::{EncoderModel, EncoderSpec, Head, LoadOptions, PackedBatch},
    ops::{self, Compute},
    repository::{FoundModel, Runner, ServedEncoder},
    telemetry::ModelMemory,
    text::{EncodeOptions, RowInput, TextEncoder},
};

/// Loads weights and tokenizer, starts the engine, warms it up.
pub(super) fn load(loading: &Loading<'_>) -> Result<Loaded, LoadError> {
    let Loading {
        model,
        dir,
        manifest,
        ..
    } = *loading;
    let mut times = LoadTimes::default();
    let source = find_gguf(dir).unwrap_or_else(|| dir.to_owned());
    let spec = EncoderSpec::read_source(&source)?;
    let max_tokens = usable_tokens(model, manifest, &spec)?;
    let options = load_options(manifest)?;
    let (weights, text) = times.weights_and_tokenizer(
        || {
            let settings = match options.quantize {
                Some(dtype) => format!("quantize {dtype:?}"),
                None => format!("compute {}", options.compute.name()),
            };
            let prepared = prepared::open(loading, &source, settings);
            let device = loading.places[0].open()?;
            let encoder = EncoderModel::load_with(&source, &options, &device, &prepared)?;
            Ok::<_, LoadError>((encoder, prepared))
        },
        || encoder_text(dir, &spec, max_tokens, manifest.input.truncation),
    )?;
    let ((encoder, prepared), text) = (weights?, text?);
    let policy = policy_of(manifest);
    policy.validate()?;

    let told = Told::of(&encoder, manifest);
    let differentiable = (source.clone(), options.clone());
    let shape = (spec, encoder.is_f32(), encoder.parameters());
    let instances = Instances::new(loading, source, options);
    let forwards = times.measure(Stage::Weights, || instances.load_others(encoder))?;
    let forward = Arc::clone(&forwards[0]);
    let start = || {
        let options = EngineOptions {
            name: model.name.clone(),
            policy,
            instances: forwards.len(),
            metrics: loading.metrics.clone(),
            statistics: Arc::clone(&loading.statistics),
        };
        let supervision = instances.supervision(loading, &forwards);
        Engine::start_over(options, forwards.clone(), &supervision)
    };
    let engine = times.measure(Stage::Engine, start)?;
    (loading.tell)(LoadStage::WarmUp);
    times.measure(Stage::WarmUp, || {
        warm_up(&forward, &engine, max_tokens, loading)?;
        instances.warm_others(&forwards, max_tokens)
    })?;
    let canary = times.measure(Stage::Canary, || {
        canary::check_or_record(loading, &mut |input| answer(input, &text, &forward))
    })?;
    let engine = Arc::new(engine);
    let gradients = gradients::start(loading, differentiable, shape, &engine, max_tokens)?;
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
    let copies = instances.copies() as u64;
    Ok(Loaded {
        places: instances.places,
        calibration: calibration::read(loading, &told.labels, told.activation)?,
        labels: told.labels,
        output_size: told.output_size,
        activation: told.activation,
        memory: ModelMemory {
            weights: told.memory_bytes * copies,
            ..ModelMemory::default()
        },
        weight_bytes: told.memory_bytes,
        times,
        prepared,
        canary,
        runner: Runner::Encoder(ServedEncoder {
            text: Arc::new(text),
            engine,
            cache,
            gradients,
        }),
    })
}

/// What the model says of itself; the model proper goes to its executor.
struct Told {
    labels: Vec<String>,
    output_size: usize,
    activation: Activation,
    memory_bytes: u64,
}

impl Told {
    fn of(encoder: &EncoderModel, manifest: &ModelManifest) -> Self {
        Self {
            labels: encoder.labels().to_vec(),
            output_size: encoder.output_dim(),
            activation: activation_of(manifest, encoder.spec()),
            memory_bytes: encoder.memory_bytes() as u64,
        }
    }
}

/// How the logits of a model become probabilities. A score of a pair holds or not.
fn activation_of(manifest: &ModelManifest, spec: &EncoderSpec) -> Activation {
    if manifest.task == Task::Rerank {
        return Activation::Sigmoid;
    }
    manifest.classify.activation.unwrap_or_else(|| {
        if spec.problem_type.as_deref() == Some("multi_label_classification") {
            Activation::Sigmoid
        } else {
            Activation::Softmax
        }
    })
}

/// Loads the weights of a version on the CPU: those of its GGUF file if it has one, else its
/// checkpoint.
///
/// # Errors
/// As [`load_encoder_on`].
pub fn load_encoder(dir: &Path, manifest: &ModelManifest) -> Result<EncoderModel, LoadError> {
    load_encoder_on(dir, manifest, &Device::Cpu)
}

/// Loads the weights of a version: those of its GGUF file if it has one, else its checkpoint.
///
/// # Errors
/// [`LoadError`] when they don't load, or the manifest asks for a head that they lack.
pub fn load_encoder_on(
    dir: &Path,
    manifest: &ModelManifest,
    device: &Device,
) -> Result<EncoderModel, LoadError> {
    let source = find_gguf(dir).unwrap_or_else(|| dir.to_owned());
    let options = load_options(manifest)?;
    Ok(EncoderModel::load(&source, &options, device)?)
}

fn load_options(manifest: &ModelManifest) -> Result<LoadOptions, LoadError> {
    Ok(LoadOptions {
        head: head_of(manifest)?,
        quantize: manifest.quantize.map(ggml_type),
        compute: compute_of(manifest),
    })
}

/// The precision of products, by the manifest and what this machine is fast in.
pub fn compute_of(manifest: &ModelManifest) -> Compute {
    match manifest.compute(Compute::Bf16.is_native()) {
        Precision::F32 => Compute::F32,
        Precision::Bf16 => Compute::Bf16,
        Precision::Int8 => Compute::Int8,
    }
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
    spec: &EncoderSpec,
) -> Result<usize, LoadError> {
    let positions = spec.max_tokens();
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

/// Rows by tokens: enough sizes to tell what a token costs from what a batch does, and few tokens
/// in all, since nobody is answered meanwhile.
const SHAPES: [(usize, usize); 4] = [(1, 8), (1, 16), (1, 64), (4, 32)];

/// Runs the shapes that will be served, so that the first request finds warm memory and the run
/// time model knows what a batch costs.
fn warm_up(
    forward: &Forward,
    engine: &Engine,
    max_tokens: usize,
    loading: &Loading<'_>,
) -> Result<(), LoadError> {
    let plan = &loading.manifest.warmup;
    let shapes = shapes(loading, max_tokens)?;
    if let Some(first) = shapes.first().filter(|_| plan.rounds > 0) {
        // This one pays for page faults and thread starts; its time would mislead the model.
        run_shape(forward, 0, *first)?;
    }
    plan::run_rounds(plan, &loading.model.name, &shapes, |_, index, shape| {
        let (batch, took) = run_shape(forward, index, *shape)?;
        if took > Duration::ZERO {
            engine.teach(batch.tokens().len(), batch.sum_len_squared(), took);
        }
        Ok(())
    })
}

/// The manifest's shapes, if they can be batches, or those of [`SHAPES`] that can.
fn shapes(loading: &Loading<'_>, max_tokens: usize) -> Result<Vec<WarmupShape>, LoadError> {
    let (batching, plan) = (&loading.manifest.batching, &loading.manifest.warmup);
    if plan.shapes.is_empty() {
        let shape = |(rows, tokens): (usize, usize)| {
            let tokens = tokens.min(max_tokens);
            let most = batching.max_rows.min(batching.max_tokens / tokens);
            WarmupShape {
                rows: rows.min(most),
                tokens,
            }
        };
        return Ok(SHAPES.map(shape).to_vec());
    }
    for (index, &shape) in plan.shapes.iter().enumerate() {
        let WarmupShape { rows, tokens } = shape;
        let allowed = [
            (tokens, max_tokens, "tokens in a row"),
            (rows, batching.max_rows, "rows (batching.max_rows)"),
            (
                rows.saturating_mul(tokens),
                batching.max_tokens,
                "tokens (batching.max_tokens)",
            ),
        ];
        for (found, most, what) in allowed {
            if found > most {
                let reason = format!("at most {most} {what} are allowed");
                return Err(plan::failed(plan::name_of_shape(index, shape), reason));
            }
        }
    }
    Ok(plan.shapes.clone())
}

pub(super) fn run_shape(
    forward: &Forward,
    index: usize,
    shape: WarmupShape,
) -> Result<(PackedBatch, Duration), LoadError> {
    let WarmupShape { rows, tokens } = shape;
    let mut batch = PackedBatch::with_capacity(rows, rows * tokens);
    for _ in 0..rows {
        batch.push_row(&vec![0; tokens], None);
    }
    let (outputs, took) = timed(|| forward(&batch));
    let name = || plan::name_of_shape(index, shape);
    let outputs = outputs.map_err(|error| plan::failed(name(), error))?;
    if !outputs.iter().all(is_finite) {
        return Err(plan::failed(
            name(),
            "the output is not finite (NaN or infinity)",
        ));
    }
    Ok((batch, took))
}

/// What the model says of a canary's input.
fn answer(
    input: &CanaryInput,
    text: &TextEncoder,
    forward: &Forward,
) -> Result<CanaryOutput, String> {
    let row = match &input.query {
        Some(query) => RowInput::Pair(query.clone(), input.text.clone()),
        None => RowInput::Text(input.text.clone()),
    };
    let row = text.encode(&row, EncodeOptions::default());
    let row = row.map_err(|error| error.to_string())?;
    let mut batch = PackedBatch::with_capacity(1, row.ids.len());
    batch.push_row(&row.ids, Some(&row.type_ids));
    let outputs = forward(&batch).map_err(|error| error.to_string())?;
    let output = outputs.into_iter().next();
    output
        .map(Into::into)
        .ok_or_else(|| "there is no output".to_owned())
}
