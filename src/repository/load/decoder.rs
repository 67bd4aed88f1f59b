//! Loads a model that generates.

use std::{path::PathBuf, sync::Arc};

use super::{
    LoadError, LoadStage, LoadTimes, Loaded, Loading, Stage, canary, ggml_type, plan, prepared,
    read_gguf_text, sequences::Sequences,
};
use crate::{
    cache::SequenceCache,
    config::{
        self, Activation, GenerateConfig,
        manifest::{WarmupShape, find_gguf},
    },
    device::Place,
    engine::{
        GenerationEngine, GenerationOptions, Reload, Supervision,
        continuous::{StepForward, StepOutput},
    },
    generation::{RowStatistics, SchedulerOptions},
    models::{
        self, DecoderBatch, DecoderModel, DecoderOptions, DecoderRow, ForwardError, KvCache,
        PreparedWeights, StepLogits,
    },
    ops,
    repository::{Runner, ServedDecoder},
    telemetry::ModelMemory,
    text::GenerationText,
};

/// Prompt tokens of one step whose logits are wanted, at most: with a vocabulary of 262 144 they
/// take 1 MiB each.
const MAX_PROMPT_LOGITS: usize = 64;

/// Loads weights and tokenizer, makes the cache, starts the engine.
pub(super) fn load(loading: &Loading<'_>) -> Result<Loaded, LoadError> {
    let Loading {
        model, manifest, ..
    } = *loading;
    let settings = &manifest.generate;
    let mut times = LoadTimes::default();
    let Parts {
        decoder,
        prepared,
        text,
        weights,
    } = read_parts(loading, &mut times)?;
    let table = decoder.spec().vocabulary;

    let context = usable_context(loading, &decoder)?;
    let (room, block_bytes) = cache_room(settings, &decoder, context)?;
    let blocks = room.blocks;
    let cache_tokens = blocks * settings.block_size;
    let max_sequence_tokens = context.min(cache_tokens);
    if cache_tokens < context {
        tracing::warn!(
            model = model.name,
            cache_tokens,
            context,
            "the cache holds less than one full context; longer requests are refused"
        );
    }
    let weight_bytes = decoder.memory_bytes();
    let memory_bytes = weight_bytes + blocks * block_bytes;
    let decoder = Arc::new(decoder);
    let supervision = supervision(loading, weights, room, &decoder);
    let mut forward = times.measure(Stage::Engine, || step_forward(decoder, room))?;
    let limits = StepLimits {
        block_size: settings.block_size,
        blocks,
        max_running: settings.max_running,
        max_step_tokens: settings.max_step_tokens,
        max_sequence_tokens,
    };
    (loading.tell)(LoadStage::WarmUp);
    times.measure(Stage::WarmUp, || warm_up(&mut forward, &limits, loading))?;

    let generation_metrics = loading.families.generation(&model.name, loading.version);
    let engine = GenerationEngine::start_over(
        GenerationOptions {
            name: model.name.clone(),
            scheduler: SchedulerOptions {
                block_size: settings.block_size,
                blocks,
                max_step_tokens: settings.max_step_tokens,
                max_running: settings.max_running,
                max_waiting: settings.max_waiting,
                max_sequence_tokens,
                max_prompt_logits: MAX_PROMPT_LOGITS,
                share_prefixes: settings.share_prefixes,
            },
            metrics: loading.metrics.clone(),
            generation_metrics: generation_metrics.clone(),
            statistics: Arc::clone(&loading.statistics),
        },
        forward,
        supervision,
    )?;
    let sequences = Sequences {
        text: &text,
        engine: &engine,
        max_sequence_tokens,
    };
    times.measure(Stage::WarmUp, || sequences.run_prompts(loading))?;
    let canary = times.measure(Stage::Canary, || {
        canary::check_or_record(loading, &mut |input| sequences.answer(input))
    })?;
    let cache = manifest.cache.max_bytes().map(|max_bytes| {
        let metrics = loading.families.cache(&model.name, loading.version);
        let time_to_live = manifest.cache.time_to_live();
        Arc::new(SequenceCache::new(max_bytes, time_to_live, metrics))
    });
    Ok(Loaded {
        runner: Runner::Decoder(Arc::new(ServedDecoder {
            text: Arc::new(text),
            engine,
            vocabulary: table,
            max_sequence_tokens,
            default_max_tokens: settings.default_max_tokens,
            cache,
            metrics: generation_metrics,
        })),
        places: vec![loading.places[0]],
        labels: Vec::new(),
        output_size: 0,
        activation: Activation::Softmax,
        calibration: None,
        memory: ModelMemory {
            weights: weight_bytes as u64,
            kv_cache: (memory_bytes - weight_bytes) as u64,
            answers: 0,
        },
        weight_bytes: weight_bytes as u64,
        times,
        prepared,
        canary,
    })
}

/// How much the cache holds, and the bytes of a block of it.
fn cache_room(
    settings: &GenerateConfig,
    decoder: &DecoderModel,
    context: usize,
) -> Result<(CacheRoom, usize), LoadError> {
    let block_size = settings.block_size;
    let cache_type = type_of(settings.cache_type);
    let block_bytes = KvCache::bytes_per_block(decoder.spec(), block_size, cache_type);
    // More than all sequences can ever hold would lie idle.
    let most = settings.max_running * context.div_ceil(block_size);
    let blocks = ((settings.cache_mib << 20) / block_bytes).min(most);
    let blocks = match ops::free_memory(decoder.device()).map_err(ForwardError::from)? {
        // A tenth of what the weights have left is for what a step computes with.
        Some(free) => blocks.min(free / 10 * 9 / block_bytes),
        None => blocks,
    };
    let room = CacheRoom {
        blocks,
        block_size,
        cache_type,
    };
    Ok((room, block_bytes))
}

/// What the files of a version become.
struct Parts {
    decoder: DecoderModel,
    prepared: Arc<PreparedWeights>,
    text: GenerationText,
    weights: Weights,
}

/// Where a decoder's weights are, and where they go.
struct Weights {
    source: PathBuf,
    options: DecoderOptions,
    place: Place,
}

impl Weights {
    fn load(&self, prepared: &PreparedWeights) -> Result<DecoderModel, LoadError> {
        let device = self.place.open()?;
        let loaded = DecoderModel::load_with(&self.source, &self.options, &device, prepared);
        Ok(loaded?)
    }
}

/// How much a cache holds.
#[derive(Clone, Copy)]
struct CacheRoom {
    blocks: usize,
    block_size: usize,
    cache_type: ops::CacheType,
}

/// A loaded decoder with a cache of its own, as the engine sees it.
fn step_forward(decoder: Arc<DecoderModel>, room: CacheRoom) -> Result<StepForward, ForwardError> {
    let cache = decoder.new_cache(room.blocks, room.block_size, room.cache_type)?;
    Ok(Box::new(move |batch| step(&decoder, &cache, batch)))
}

/// What the engine does about a model that is lost: loads the weights anew where they were, with an
/// empty cache. On the CPU, where nothing is wrong with the weights, whoever takes the place of a
/// runner that hangs takes them, too.
fn supervision(
    loading: &Loading<'_>,
    weights: Weights,
    room: CacheRoom,
    decoder: &Arc<DecoderModel>,
) -> Supervision<StepForward> {
    let shared = Arc::downgrade(decoder);
    let load = move || -> Result<StepForward, LoadError> {
        let decoder = match (weights.place, shared.upgrade()) {
            (Place::Cpu, Some(same)) => same,
            _ => Arc::new(weights.load(&PreparedWeights::off())?),
        };
        Ok(step_forward(decoder, room)?)
    };
    let reload: Reload<StepForward> = Arc::new(move |_| load().map_err(|error| error.to_string()));
    let settings = loading.settings;
    settings
        .alarm
        .supervision(&loading.model.name, settings, reload)
}

fn type_of(cache_type: config::CacheType) -> ops::CacheType {
    match cache_type {
        config::CacheType::F32 => ops::CacheType::F32,
        config::CacheType::F16 => ops::CacheType::F16,
    }
}

/// Reads weights and tokenizer, side by side.
fn read_parts(loading: &Loading<'_>, times: &mut LoadTimes) -> Result<Parts, LoadError> {
    let Loading {
        model,
        dir,
        manifest,
        ..
    } = *loading;
    let gguf = find_gguf(dir);
    let weights = Weights {
        source: gguf.clone().unwrap_or_else(|| dir.to_owned()),
        options: DecoderOptions {
            quantize: manifest.quantize.map(ggml_type),
            max_context: Some(manifest.input.max_tokens).filter(|&tokens| tokens > 0),
        },
        place: loading.places[0],
    };
    let (loaded, text) = times.weights_and_tokenizer(
        || {
            let kind = weights.options.quantize;
            let kind = kind.map(|dtype| format!("quantize {dtype:?}"));
            let prepared = prepared::open(loading, &weights.source, kind.unwrap_or_default());
            let decoder = weights.load(&prepared)?;
            Ok::<_, LoadError>((decoder, prepared))
        },
        || match &gguf {
            Some(path) => read_gguf_text(path),
            None => Ok(GenerationText::load(dir)?),
        },
    )?;
    let ((decoder, prepared), text) = (loaded?, text?);
    let text = match &manifest.generate.chat_template {
        None => text,
        Some(file) => with_template(text, model.dir.join(file))?,
    };
    let table = decoder.spec().vocabulary;
    if text.vocabulary() > table {
        return Err(LoadError::VocabularySize {
            tokenizer: text.vocabulary(),
            weights: table,
        });
    }
    Ok(Parts {
        decoder,
        prepared,
        text,
        weights,
    })
}

/// Puts the manifest's chat template in place of the model's own.
fn with_template(text: GenerationText, path: PathBuf) -> Result<GenerationText, LoadError> {
    let source =
        std::fs::read_to_string(&path).map_err(|source| models::LoadError::Io { path, source })?;
    Ok(text.with_chat_template(&source)?)
}

/// Runs one step, with one pass over each row of its logits.
fn step(
    decoder: &DecoderModel,
    cache: &KvCache,
    batch: &DecoderBatch,
) -> Result<StepOutput, ForwardError> {
    let run = || {
        let logits = StepLogits::new(decoder.forward(batch, cache)?);
        let statistics = ops::logit_statistics(logits.tensor())?
            .into_iter()
            .map(|row| RowStatistics {
                argmax: row.argmax,
                max: row.max,
                log_sum_exp: row.log_sum_exp,
            })
            .collect();
        Ok(StepOutput { logits, statistics })
    };
    if decoder.device().is_cpu() {
        // Inside the pool, so that an op does not cross threads to get there.
        rayon::scope(|_| run())
    } else {
        run()
    }
}

/// The tokens a sequence may have: what the model was made for, or less where the manifest says so.
fn usable_context(loading: &Loading<'_>, decoder: &DecoderModel) -> Result<usize, LoadError> {
    let context = decoder.spec().context_length;
    let asked = loading.manifest.input.max_tokens;
    if asked > context {
        return Err(LoadError::Unfit {
            manifest: loading.model.manifest_path(),
            key: "input.max_tokens",
            found: asked.to_string(),
            allowed: format!("at most the model's context of {context} tokens"),
        });
    }
    Ok(if asked == 0 { context } else { asked })
}

/// What a step may hold.
struct StepLimits {
    block_size: usize,
    blocks: usize,
    max_running: usize,
    max_step_tokens: usize,
    max_sequence_tokens: usize,
}

/// Runs the shapes that will be served, by default a prompt and a step, so that the first request
/// finds warm memory.
fn warm_up(
    forward: &mut StepForward,
    limits: &StepLimits,
    loading: &Loading<'_>,
) -> Result<(), LoadError> {
    let plan = &loading.manifest.warmup;
    let shapes = if plan.shapes.is_empty() {
        let tokens = limits.block_size.min(limits.max_sequence_tokens);
        let tokens = tokens.min(limits.max_step_tokens);
        [tokens, 1]
            .map(|tokens| WarmupShape { rows: 1, tokens })
            .to_vec()
    } else {
        plan.shapes.clone()
    };
    plan::run_rounds(plan, &loading.model.name, &shapes, |_, index, shape| {
        let failed = |reason: String| plan::failed(plan::name_of_shape(index, *shape), reason);
        let batch = limits.step_of(*shape).map_err(failed)?;
        let output = forward(&batch).map_err(|error| failed(error.to_string()))?;
        let rows = output.statistics.iter();
        if rows.into_iter().all(|row| row.log_sum_exp.is_finite()) {
            return Ok(());
        }
        Err(failed(
            "the output is not finite (NaN or infinity)".to_owned(),
        ))
    })
}

impl StepLimits {
    /// A step of so many sequences with blocks of their own; the logits of each one's last token
    /// are wanted.
    fn step_of(&self, shape: WarmupShape) -> Result<DecoderBatch, String> {
        let WarmupShape { rows, tokens } = shape;
        let blocks = tokens.div_ceil(self.block_size);
        for (found, most, what) in [
            (rows, self.max_running, "rows (generate.max_running)"),
            (tokens, self.max_sequence_tokens, "tokens in a row"),
            (
                rows.saturating_mul(tokens),
                self.max_step_tokens,
                "tokens in a step (generate.max_step_tokens)",
            ),
            (
                rows.saturating_mul(blocks),
                self.blocks,
                "blocks (generate.cache_mib)",
            ),
        ] {
            if found > most {
                return Err(format!("at most {most} {what} are allowed"));
            }
        }
        let (rows, tokens, blocks) = (rows as u32, tokens as u32, blocks as u32);
        Ok(DecoderBatch {
            tokens: vec![0; (rows * tokens) as usize],
            rows: (0..rows)
                .map(|row| DecoderRow {
                    first_position: 0,
                    tokens,
                    blocks: (row * blocks..(row + 1) * blocks).collect(),
                })
                .collect(),
            logit_tokens: (1..=rows).map(|row| row * tokens - 1).collect(),
        })
    }
}
