//! What an encoder's files say about it, read with suspicion: every number is bounded here (and in
//! `spec_gguf.rs`, for GGUF files), so that the rest of the loader may multiply them without thought.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::config_json::{Config, MAX_CONFIG_BYTES, read_json};
use super::error::LoadError;
use super::source::Source;
use crate::ops::Activation;

pub(super) const MAX_LABELS: usize = 100_000;
pub(super) const HIDDEN: RangeInclusive<usize> = 1..=16_384;
pub(super) const LAYERS: RangeInclusive<usize> = 1..=512;
pub(super) const INTERMEDIATE: RangeInclusive<usize> = 1..=262_144;
pub(super) const VOCABULARY: RangeInclusive<usize> = 1..=1 << 24;
pub(super) const POSITIONS: RangeInclusive<usize> = 1..=1 << 20;
pub(super) const TYPES: RangeInclusive<usize> = 0..=1024;

/// Who named the tensors and shaped the classification head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// BERT and what is stored like it.
    Bert,
    /// `RoBERTa`, `XLM-RoBERTa`, `CamemBERT`.
    Roberta,
    /// `DistilBERT`.
    DistilBert,
}

/// The shape of a post-norm encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    /// Tensor names and head shape.
    pub family: Family,
    /// `model_type`, as in the config.
    pub model_type: String,
    /// `architectures`, as in the config; may be empty.
    pub architectures: Vec<String>,
    /// Features of a token.
    pub hidden: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads; `hidden` is a multiple.
    pub heads: usize,
    /// Features inside the feed-forward block.
    pub intermediate: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Position of a row's first token: 0, or `padding_idx + 1` in the `RoBERTa` family.
    pub position_offset: usize,
    /// Token types are below this; 0 where the family has none.
    pub type_vocabulary: usize,
    /// `ε` of all layer norms.
    pub norm_epsilon: f32,
    /// Activation of the feed-forward block.
    pub activation: Activation,
    /// Between the two layers of a classification head.
    pub head_activation: Activation,
    /// Label names by index, from `id2label` or `num_labels`. transformers leaves both out when
    /// there are two labels without names, so that is what their absence means.
    pub labels: Vec<String>,
    /// `problem_type`, as in the config.
    pub problem_type: Option<String>,
}

impl EncoderSpec {
    /// From the files.
    pub(super) fn of(source: &Source) -> Result<Self, LoadError> {
        match source {
            Source::Gguf(file) => Self::from_gguf(file),
            Source::Safetensors(dir, _) => Self::read(dir),
        }
    }

    /// Reads a folder's `config.json`, or a GGUF file's metadata.
    ///
    /// # Errors
    /// As [`EncoderSpec::read`].
    pub fn read_source(source: &Path) -> Result<Self, LoadError> {
        if source.join("config.json").is_file() {
            // Before the weights are looked for: what the folder says it is tells more than what it
            // lacks.
            return Self::read(source);
        }
        Self::of(&Source::open(source)?)
    }

    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// If the file cannot be read or describes something that is not supported; the error names
    /// the key.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("config.json");
        let json = read_json(&path, MAX_CONFIG_BYTES)?;
        Self::from_json(&json)
    }

    /// From the parsed `config.json`.
    ///
    /// # Errors
    /// As [`EncoderSpec::read`].
    pub fn from_json(json: &Map<String, Value>) -> Result<Self, LoadError> {
        let config = Config::new(json);
        let model_type = config.text("model_type")?;
        let family = match model_type {
            "bert" => Family::Bert,
            "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
            "distilbert" => Family::DistilBert,
            _ => {
                return Err(config.unsupported(
                    "model_type",
                    "bert, roberta, xlm-roberta, camembert, distilbert",
                ));
            }
        };
        config.require("position_embedding_type", &Value::from("absolute"))?;
        config.require("is_decoder", &Value::from(false))?;
        config.require("add_cross_attention", &Value::from(false))?;

        let distil = family == Family::DistilBert;
        let key = |bert, distilbert| if distil { distilbert } else { bert };
        let hidden = config.count(key("hidden_size", "dim"), HIDDEN)?;
        let heads_key = key("num_attention_heads", "n_heads");
        let heads = config.count(heads_key, 1..=hidden)?;
        if hidden % heads != 0 {
            return Err(config.unsupported(heads_key, &format!("a divisor of {hidden}")));
        }
        let positions = config.count("max_position_embeddings", POSITIONS)?;
        let position_offset = match family {
            Family::Roberta => 1 + config.count_or("pad_token_id", 0..=positions, 1)?,
            Family::Bert | Family::DistilBert => 0,
        };
        if position_offset >= positions {
            return Err(config.unsupported(
                "max_position_embeddings",
                &format!("more than pad_token_id + 1, {position_offset}"),
            ));
        }
        Ok(Self {
            family,
            model_type: model_type.to_owned(),
            architectures: config.texts("architectures")?,
            hidden,
            layers: config.count(key("num_hidden_layers", "n_layers"), LAYERS)?,
            heads,
            intermediate: config.count(key("intermediate_size", "hidden_dim"), INTERMEDIATE)?,
            vocabulary: config.count("vocab_size", VOCABULARY)?,
            positions,
            position_offset,
            type_vocabulary: if distil {
                0
            } else {
                config.count_or("type_vocab_size", TYPES, 2)?
            },
            norm_epsilon: config
                .optional_number("layer_norm_eps", 0.0..=1.0)?
                .map_or(1e-12, |epsilon| epsilon as f32),
            activation: config.activation(key("hidden_act", "activation"))?,
            head_activation: if distil {
                Activation::Relu
            } else {
                Activation::Tanh
            },
            labels: config.labels()?,
            problem_type: config.optional_text("problem_type")?.map(str::to_owned),
        })
    }

    /// Tokens that a row may have, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.positions - self.position_offset
    }

    /// Dimension of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }
}

/// What only encoders have in their config.
impl Config<'_> {
    fn activation(&self, key: &str) -> Result<Activation, LoadError> {
        Ok(match self.optional_text(key)?.unwrap_or("gelu") {
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "tanh" => Activation::Tanh,
            _ => {
                return Err(self.unsupported(
                    key,
                    "gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, tanh",
                ));
            }
        })
    }

    /// `id2label` with the keys "0" to "n − 1", or `num_labels` made-up names.
    fn labels(&self) -> Result<Vec<String>, LoadError> {
        let count = self
            .get("num_labels")
            .map(|_| self.count("num_labels", 1..=MAX_LABELS))
            .transpose()?;
        let Some(names) = self.get("id2label") else {
            return Ok((0..count.unwrap_or(2))
                .map(|i| format!("LABEL_{i}"))
                .collect());
        };
        let expected = match count {
            Some(count) => format!("an object with the keys \"0\" to \"{}\"", count - 1),
            None => "an object from \"0\", \"1\", … to names".to_owned(),
        };
        let error = || self.unsupported("id2label", &expected);
        let names = names.as_object().ok_or_else(error)?;
        if names.is_empty() || names.len() > MAX_LABELS {
            return Err(error());
        }
        if count.is_some_and(|count| count != names.len()) {
            return Err(error());
        }
        (0..names.len())
            .map(|i| match names.get(&i.to_string()) {
                Some(Value::String(name)) => Ok(name.clone()),
                Some(Value::Number(number)) => Ok(number.to_string()),
                _ => Err(error()),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bert() -> Value {
        json!({
            "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100,
            "max_position_embeddings": 16, "hidden_act": "gelu"
        })
    }

    /// Reads `base` with one key replaced, or removed where the value is null.
    fn read(mut base: Value, key: &str, value: Value) -> Result<EncoderSpec, LoadError> {
        base[key] = value;
        EncoderSpec::from_json(base.as_object().expect("an object"))
    }

    #[test]
    fn a_bert_config_is_read() -> Result<(), LoadError> {
        let spec = read(bert(), "id2label", json!({"1": "yes", "0": "no"}))?;
        assert_eq!(
            (spec.hidden, spec.head_dim(), spec.max_tokens()),
            (32, 8, 16)
        );
        assert_eq!(spec.labels, ["no", "yes"]);
        assert_eq!(spec.type_vocabulary, 2);
        Ok(())
    }

    #[test]
    fn roberta_positions_begin_after_the_padding_index() -> Result<(), LoadError> {
        let mut config = bert();
        config["pad_token_id"] = json!(1);
        let spec = read(config, "model_type", json!("xlm-roberta"))?;
        assert_eq!((spec.position_offset, spec.max_tokens()), (2, 14));
        Ok(())
    }

    #[test]
    fn hostile_values_are_refused_with_their_key() {
        let cases = [
            ("model_type", json!("gpt2")),
            ("model_type", json!(null)),
            ("hidden_size", json!(0)),
            ("hidden_size", json!(-1)),
            ("hidden_size", json!(1e300)),
            ("hidden_size", json!("32")),
            ("hidden_size", json!(18_446_744_073_709_551_615_u64)),
            ("num_attention_heads", json!(0)),
            ("num_attention_heads", json!(5)),
            ("num_attention_heads", json!(33)),
            ("num_hidden_layers", json!(4_000_000_000_u64)),
            ("intermediate_size", json!(0)),
            ("vocab_size", json!(1_u64 << 40)),
            ("max_position_embeddings", json!(0)),
            ("type_vocab_size", json!(1_000_000)),
            ("layer_norm_eps", json!(-1.0)),
            ("layer_norm_eps", json!("small")),
            ("hidden_act", json!("swiglu")),
            ("hidden_act", json!(["gelu"])),
            ("position_embedding_type", json!("relative_key")),
            ("is_decoder", json!(true)),
            ("is_decoder", json!("yes")),
            ("architectures", json!("BertModel")),
            ("id2label", json!({"0": "a", "2": "b"})),
            ("id2label", json!({})),
            ("num_labels", json!(0)),
            ("num_labels", json!(1_000_000_000)),
        ];
        for (key, value) in cases {
            let error = read(bert(), key, value.clone()).expect_err(key);
            let LoadError::Config { key: named, .. } = &error else {
                panic!("{key}: {error}");
            };
            assert_eq!(named, key, "{value}");
        }
    }

    #[test]
    fn a_padding_index_beyond_the_positions_is_refused() {
        for pad in [json!(15), json!(16), json!(u64::MAX)] {
            let mut config = bert();
            config["pad_token_id"] = pad;
            assert!(read(config, "model_type", json!("roberta")).is_err());
        }
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_stack_overflow() -> std::io::Result<()> {
        let dir = super::super::testing::TempDir::new()?;
        std::fs::write(dir.path().join("config.json"), "[".repeat(1 << 20))?;
        let error = EncoderSpec::read(dir.path()).expect_err("nested");
        assert!(matches!(error, LoadError::Syntax { .. }), "{error}");
        Ok(())
    }
}
