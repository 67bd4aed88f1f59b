//! An encoder's safetensors checkpoint as llama.cpp's `bert`.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::super::config_json::{MAX_CONFIG_BYTES, read_json};
use super::super::gguf::MetadataValue;
use super::super::heads::Head;
use super::super::plan::{EncoderPlan, Naming};
use super::super::source::Source;
use super::super::spec::EncoderSpec;
use super::super::spec_gguf::{
    ARCHITECTURES, BERT, FEED_FORWARD_ACTIVATION, HEAD_ACTIVATION, MAX_TOKENS, MODEL_TYPE,
    PROBLEM_TYPE, activation_name,
};
use super::conversion::{Change, Conversion, Converted};
use super::error::QuantizeError;
use super::vocabulary;
use crate::ops::{Activation, Pooling};

/// The pooling of llama.cpp's file format.
#[derive(Debug, Clone, Copy)]
enum PoolingType {
    None = 0,
    Mean = 1,
    Cls = 2,
    Last = 3,
    /// By a classification head.
    Rank = 4,
}

pub(super) fn convert(
    dir: &Path,
    source: &Source,
    config: &Map<String, Json>,
) -> Result<Conversion, QuantizeError> {
    let spec = EncoderSpec::from_json(config)?;
    let head = head_of(&spec);
    let from = EncoderPlan::of(source, &spec, &head);
    source.check(from.tensors())?;
    // In the file, positions begin with a row's first token.
    let written = EncoderSpec {
        positions: spec.max_tokens(),
        position_offset: 0,
        ..spec.clone()
    };
    let to = EncoderPlan::new(&written, &head, Naming::Gguf);
    let tensors = from.tensors().zip(to.tensors()).map(|(from, to)| {
        let change = if from.shape == to.shape {
            Change::None
        } else {
            Change::Skip {
                rows: spec.position_offset,
            }
        };
        Converted::of(source, from, to, change)
    });
    let tensors = tensors.collect();

    let mut notes = Vec::new();
    let left_out = source.unused(from.tensors());
    if !left_out.is_empty() {
        notes.push(format!(
            "left out, as the task has no use for it: {}",
            left_out.join(", ")
        ));
    }
    let classifies = matches!(head, Head::SequenceClass);
    if spec.activation != Activation::Gelu && spec.activation != Activation::GeluTanh {
        notes.push("llama.cpp runs it with GELU, which is not its activation".to_owned());
    }
    if classifies && spec.head_activation != Activation::Tanh {
        notes.push("llama.cpp runs its head with tanh, which is not its activation".to_owned());
    }
    let mut metadata = metadata(&spec, pooling(dir, &head)?, max_tokens(dir)?);
    match vocabulary::read(dir, config, spec.vocabulary, true)? {
        Some(vocabulary) => metadata.extend(vocabulary),
        None => metadata.push(vocabulary::none(&mut notes)),
    }
    Ok(Conversion {
        metadata,
        tensors,
        layers: spec.layers,
        heads_per_kv: 1,
        notes,
    })
}

/// What the checkpoint is for, by its architecture.
fn head_of(spec: &EncoderSpec) -> Head {
    let has = |task: &str| spec.architectures.iter().any(|name| name.ends_with(task));
    if has("ForSequenceClassification") {
        Head::SequenceClass
    } else if has("ForTokenClassification") {
        Head::TokenClass
    } else {
        Head::Embed {
            pooling: Pooling::Mean,
            normalize: true,
            dimension: None,
        }
    }
}

fn metadata(
    spec: &EncoderSpec,
    pooling: PoolingType,
    max_tokens: Option<u32>,
) -> Vec<(String, MetadataValue)> {
    let mut out: Vec<(String, MetadataValue)> = Vec::new();
    let mut set = |key: &str, value| out.push((key.to_owned(), value));
    let count = |count: usize| MetadataValue::U32(count as u32);
    let texts = |texts: &[String]| MetadataValue::Texts(texts.to_vec());
    set("general.architecture", BERT.into());
    set("general.type", "model".into());
    set("bert.vocab_size", count(spec.vocabulary));
    set("bert.context_length", count(spec.max_tokens()));
    set("bert.embedding_length", count(spec.hidden));
    set("bert.block_count", count(spec.layers));
    set("bert.feed_forward_length", count(spec.intermediate));
    set("bert.attention.head_count", count(spec.heads));
    set(
        "bert.attention.layer_norm_epsilon",
        MetadataValue::F32(spec.norm_epsilon),
    );
    set("bert.attention.causal", MetadataValue::Bool(false));
    set("bert.pooling_type", MetadataValue::U32(pooling as u32));
    if !matches!(
        pooling,
        PoolingType::Mean | PoolingType::Cls | PoolingType::Last
    ) {
        set("bert.classifier.output_labels", texts(&spec.labels));
    }
    // llama.cpp wants one at least, though DistilBERT has no table of types.
    set(
        "tokenizer.ggml.token_type_count",
        count(spec.type_vocabulary.max(1)),
    );
    set(MODEL_TYPE, MetadataValue::Text(spec.model_type.clone()));
    set(ARCHITECTURES, texts(&spec.architectures));
    for (key, activation) in [
        (FEED_FORWARD_ACTIVATION, spec.activation),
        (HEAD_ACTIVATION, spec.head_activation),
    ] {
        if let Some(name) = activation_name(activation) {
            set(key, name.into());
        }
    }
    if let Some(problem) = &spec.problem_type {
        set(PROBLEM_TYPE, MetadataValue::Text(problem.clone()));
    }
    if let Some(tokens) = max_tokens {
        set(MAX_TOKENS, MetadataValue::U32(tokens));
    }
    out
}

/// How the vectors of an embedding model are pooled, as sentence-transformers say it.
fn pooling(dir: &Path, head: &Head) -> Result<PoolingType, QuantizeError> {
    match head {
        Head::SequenceClass | Head::PairScore => return Ok(PoolingType::Rank),
        Head::TokenClass => return Ok(PoolingType::None),
        Head::Embed { .. } => {}
    }
    let path = dir.join("1_Pooling/config.json");
    if !path.is_file() {
        return Ok(PoolingType::Mean);
    }
    let pooling = read_json(&path, MAX_CONFIG_BYTES)?;
    let set = |key: &str| pooling.get(key).and_then(Json::as_bool).unwrap_or(false);
    Ok(if set("pooling_mode_cls_token") {
        PoolingType::Cls
    } else if set("pooling_mode_lasttoken") {
        PoolingType::Last
    } else {
        PoolingType::Mean
    })
}

/// Tokens that a row is cut to, as sentence-transformers say it.
fn max_tokens(dir: &Path) -> Result<Option<u32>, QuantizeError> {
    let path = dir.join("sentence_bert_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let settings = read_json(&path, MAX_CONFIG_BYTES)?;
    let tokens = settings.get("max_seq_length").and_then(Json::as_u64);
    Ok(tokens.and_then(|tokens| u32::try_from(tokens).ok()))
}
