//! An encoder's description from the metadata of a GGUF file: the keys of llama.cpp's `bert`
//! architecture, and a few of Ferry's own for what llama.cpp has no name for (see
//! `docs/quantize.md`). Files that llama.cpp's converter wrote have none of them, and mean what
//! BERT does.

use super::error::LoadError;
use super::gguf::{GgufFile, Keys};
use super::spec::{
    EncoderSpec, Family, HIDDEN, INTERMEDIATE, LAYERS, MAX_LABELS, POSITIONS, TYPES, VOCABULARY,
};
use crate::ops::{Activation, Pooling};

/// `model_type` of the config that the file was made from.
pub(super) const MODEL_TYPE: &str = "ferry.model_type";
/// `architectures`, likewise.
pub(super) const ARCHITECTURES: &str = "ferry.architectures";
/// Activation of the feed-forward block.
pub(super) const FEED_FORWARD_ACTIVATION: &str = "ferry.feed_forward.activation";
/// Activation between the two layers of a classification head.
pub(super) const HEAD_ACTIVATION: &str = "ferry.classifier.activation";
/// `problem_type` of the config.
pub(super) const PROBLEM_TYPE: &str = "ferry.classifier.problem_type";
/// Tokens that a row is cut to.
pub(super) const MAX_TOKENS: &str = "ferry.max_tokens";
/// llama.cpp's name for everything that is stored as BERT is.
pub(super) const BERT: &str = "bert";

const ACTIVATIONS: [(&str, Activation); 4] = [
    ("gelu", Activation::Gelu),
    ("gelu_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("tanh", Activation::Tanh),
];

/// How the file names an activation.
pub(super) fn activation_name(activation: Activation) -> Option<&'static str> {
    let mut known = ACTIVATIONS.into_iter();
    let (name, _) = known.find(|(_, known)| *known == activation)?;
    Some(name)
}

/// What an encoder in a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredTask {
    /// Vectors, pooled so.
    Embed(Pooling),
    /// Classes or a score of a row.
    SequenceClass,
    /// Classes of each token.
    TokenClass,
}

impl EncoderSpec {
    /// Whether a file holds an encoder.
    pub fn is_in(file: &GgufFile) -> bool {
        matches!(file.metadata().text("general.architecture"), Ok(Some(BERT)))
    }

    /// What a file's encoder is for, and the tokens that a row is cut to, as far as it says.
    ///
    /// # Errors
    /// If what it says is not supported.
    pub fn stored_task(file: &GgufFile) -> Result<(StoredTask, Option<usize>), LoadError> {
        let metadata = file.metadata();
        let keys = Keys::new(metadata, BERT);
        let spec = Self::from_gguf(file)?;
        let classifies_tokens = || {
            let mut names = spec.architectures.iter();
            names.any(|name| name.ends_with("ForTokenClassification"))
        };
        let task = match keys.count("pooling_type", 0..=4)? {
            Some(4) => StoredTask::SequenceClass,
            Some(2) => StoredTask::Embed(Pooling::Cls),
            Some(3) => StoredTask::Embed(Pooling::Last),
            Some(0) if classifies_tokens() => StoredTask::TokenClass,
            _ => StoredTask::Embed(Pooling::Mean),
        };
        let max_tokens = metadata.u32(MAX_TOKENS)?.map(|tokens| tokens as usize);
        Ok((task, max_tokens))
    }

    /// From a file's metadata.
    ///
    /// # Errors
    /// If it describes something that is not supported; the error names the key or the tensor.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let metadata = file.metadata();
        if metadata.text("general.architecture")? != Some(BERT) {
            return Err(metadata.unsupported("general.architecture", BERT));
        }
        let keys = Keys::new(metadata, BERT);
        if metadata.bool(&keys.key("attention.causal"))? == Some(true) {
            return Err(keys.unsupported("attention.causal", "false"));
        }
        let hidden = keys.required("embedding_length", HIDDEN)?;
        let heads = keys.required("attention.head_count", 1..=hidden)?;
        if hidden % heads != 0 {
            return Err(keys.unsupported("attention.head_count", &format!("a divisor of {hidden}")));
        }
        // What the forward pass relies on is the tables; the keys merely repeat it.
        let rows = |name: &str| file.tensors().get(name).map(|info| info.shape[0]);
        let required_rows = |name: &str, range: std::ops::RangeInclusive<usize>| {
            let found = rows(name).filter(|rows| range.contains(rows));
            found.ok_or_else(|| LoadError::MissingTensor {
                name: name.to_owned(),
                expected: Vec::new(),
                why: format!("its rows are from {} to {}", range.start(), range.end()),
            })
        };
        let text = |key| Ok::<_, LoadError>(metadata.text(key)?.map(str::to_owned));
        let model_type = text(MODEL_TYPE)?.unwrap_or_else(|| BERT.to_owned());
        let activation = |key, default| {
            let Some(name) = metadata.text(key)? else {
                return Ok(default);
            };
            let mut known = ACTIVATIONS.into_iter();
            let found = known.find(|(known, _)| *known == name);
            found
                .map(|(_, activation)| activation)
                .ok_or_else(|| metadata.unsupported(key, "gelu, gelu_tanh, relu, tanh"))
        };
        Ok(Self {
            family: match model_type.as_str() {
                "distilbert" => Family::DistilBert,
                "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
                _ => Family::Bert,
            },
            model_type,
            architectures: metadata
                .texts(ARCHITECTURES)?
                .unwrap_or_default()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            hidden,
            layers: keys.required("block_count", LAYERS)?,
            heads,
            intermediate: keys.required("feed_forward_length", INTERMEDIATE)?,
            vocabulary: required_rows("token_embd.weight", VOCABULARY)?,
            positions: required_rows("position_embd.weight", POSITIONS)?,
            // The converter leaves out the rows before a row's first token.
            position_offset: 0,
            type_vocabulary: match rows("token_types.weight") {
                Some(_) => required_rows("token_types.weight", TYPES)?,
                None => 0,
            },
            norm_epsilon: keys
                .number("attention.layer_norm_epsilon", 0.0..=1.0)?
                .map_or(1e-12, |epsilon| epsilon as f32),
            activation: activation(FEED_FORWARD_ACTIVATION, Activation::Gelu)?,
            head_activation: activation(HEAD_ACTIVATION, Activation::Tanh)?,
            labels: labels(&keys, rows("cls.output.weight"))?,
            problem_type: text(PROBLEM_TYPE)?,
        })
    }
}

/// The names of the labels, or made-up ones for the rows of the classifier.
fn labels(keys: &Keys<'_>, rows: Option<usize>) -> Result<Vec<String>, LoadError> {
    let key = "classifier.output_labels";
    let named = keys.metadata.texts(&keys.key(key))?;
    if named.as_ref().is_some_and(|named| named.len() > MAX_LABELS) {
        return Err(keys.unsupported(key, &format!("up to {MAX_LABELS} labels")));
    }
    Ok(match named {
        Some(named) => named.into_iter().map(str::to_owned).collect(),
        None => (0..rows.unwrap_or(0).min(MAX_LABELS))
            .map(|i| format!("LABEL_{i}"))
            .collect(),
    })
}
