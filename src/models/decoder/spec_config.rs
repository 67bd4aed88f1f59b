//! A decoder's description from `config.json`, by the names that transformers gives its keys; with
//! its defaults, where published files leave keys out.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::config_json::{Config, MAX_CONFIG_BYTES, read_json};
use super::super::error::LoadError;
use super::rope::{RopeScaling, RopeSpec, long_rope_magnitude, yarn_magnitude};
use super::spec::{
    Architecture, DecoderSpec, EPSILON, HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, LAYERS, POSITIONS,
    POSITIVE, VOCABULARY,
};
use crate::ops::{Activation, RopeStyle};

const SUPPORTED: &str = "llama, mistral, qwen2, qwen3, gemma2, gemma3_text, gemma3, phi3";
const MAX_EOS_TOKENS: usize = 64;

impl DecoderSpec {
    /// Reads `config.json` in `dir`, and `generation_config.json` for the tokens that end an
    /// answer, if it is there. The context is cut to `max_context`.
    ///
    /// # Errors
    /// If a file cannot be read or describes something that is not supported; the error names the
    /// key.
    pub fn read_config(dir: &Path, max_context: Option<usize>) -> Result<Self, LoadError> {
        let json = read_json(&dir.join("config.json"), MAX_CONFIG_BYTES)?;
        let mut spec = Self::from_json(&json, max_context)?;
        let generation = dir.join("generation_config.json");
        if generation.is_file() {
            let json = read_json(&generation, MAX_CONFIG_BYTES)?;
            for token in token_ids(&Config::new(&json), "eos_token_id")? {
                if !spec.eos_tokens.contains(&token) {
                    spec.eos_tokens.push(token);
                }
            }
        }
        Ok(spec)
    }

    /// Positions of the first training, where `config.json` in `dir` names them.
    pub(in crate::models) fn original_context(dir: &Path) -> Result<Option<usize>, LoadError> {
        let json = read_json(&dir.join("config.json"), MAX_CONFIG_BYTES)?;
        let outer = Config::new(&json);
        let text = outer.object("text_config")?;
        let config = text.as_ref().unwrap_or(&outer);
        let key = "original_max_position_embeddings";
        for object in ["rope_parameters", "rope_scaling"] {
            if let Some(object) = config.object(object)?
                && object.get(key).is_some()
            {
                return Ok(Some(object.count(key, POSITIONS)?));
            }
        }
        let found = config.get(key).map(|_| config.count(key, POSITIONS));
        found.transpose()
    }

    /// From the parsed `config.json`.
    ///
    /// # Errors
    /// As [`DecoderSpec::read_config`].
    pub fn from_json(
        json: &Map<String, Value>,
        max_context: Option<usize>,
    ) -> Result<Self, LoadError> {
        let outer = Config::new(json);
        let architecture = match outer.text("model_type")? {
            "llama" => Architecture::Llama,
            "mistral" => Architecture::Mistral,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            "gemma2" => Architecture::Gemma2,
            "gemma3" | "gemma3_text" => Architecture::Gemma3,
            "phi3" => Architecture::Phi3,
            _ => return Err(outer.unsupported("model_type", SUPPORTED)),
        };
        // A model that sees images too: its text model is an object of its own.
        let text = outer.object("text_config")?;
        let reader = Reader {
            architecture,
            config: text.as_ref().unwrap_or(&outer),
        };
        let mut spec = reader.spec(max_context)?;
        spec.eos_tokens = token_ids(&outer, "eos_token_id")?;
        spec.bos_token = token_ids(&outer, "bos_token_id")?.first().copied();
        Ok(spec)
    }
}

struct Reader<'a> {
    architecture: Architecture,
    config: &'a Config<'a>,
}

impl Reader<'_> {
    fn spec(&self, max_context: Option<usize>) -> Result<DecoderSpec, LoadError> {
        let (config, architecture) = (self.config, self.architecture);
        let gemma = architecture.is_gemma();
        if config.get("quantization_config").is_some() {
            return Err(config.unsupported(
                "quantization_config",
                "none; use the f32, f16 or bf16 \
                 weights and let them be quantized at load, or a GGUF file",
            ));
        }
        config.require("mlp_bias", &Value::from(false))?;
        config.require("use_bidirectional_attention", &Value::from(false))?;

        let hidden = config.count("hidden_size", HIDDEN)?;
        let layers = config.count("num_hidden_layers", LAYERS)?;
        // The text part of Gemma 3's config leaves out what is as in its smallest model.
        let heads = match architecture {
            Architecture::Gemma3 => config.count_or("num_attention_heads", HEADS, 8)?,
            _ => config.count("num_attention_heads", HEADS)?,
        };
        let kv_heads = match architecture {
            Architecture::Gemma3 => config.count_or("num_key_value_heads", HEADS, 4)?,
            _ => config.count_or("num_key_value_heads", HEADS, heads)?,
        };
        if heads % kv_heads != 0 {
            let supported = format!("a divisor of num_attention_heads, {heads}");
            return Err(config.unsupported("num_key_value_heads", &supported));
        }
        let head_dim = self.head_dim(hidden, heads)?;
        let positions = match architecture {
            Architecture::Gemma3 => {
                config.count_or("max_position_embeddings", POSITIONS, 131_072)?
            }
            _ => config.count("max_position_embeddings", POSITIONS)?,
        };
        let context_length = max_context.map_or(positions, |most| most.min(positions));
        let (rope, local_rope) = self.ropes(head_dim, positions, context_length)?;
        let attention_bias = config.flag_or("attention_bias", false)?;
        let default_cap = |cap| (architecture == Architecture::Gemma2).then_some(cap);
        let cap = |key, default| {
            // Absent is the default, null is none.
            if config.is_null(key) {
                return Ok(None);
            }
            let cap = config
                .optional_number(key, POSITIVE)?
                .or(default_cap(default));
            Ok::<_, LoadError>(cap.map(|cap| cap as f32))
        };
        let scale = if gemma {
            let scalar = config.optional_number("query_pre_attn_scalar", POSITIVE)?;
            scalar.unwrap_or(256.0)
        } else {
            head_dim as f64
        };
        Ok(DecoderSpec {
            architecture,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate: config.count("intermediate_size", INTERMEDIATE)?,
            vocabulary: match architecture {
                Architecture::Gemma3 => config.count_or("vocab_size", VOCABULARY, 262_208)?,
                _ => config.count("vocab_size", VOCABULARY)?,
            },
            context_length,
            norm_epsilon: config.optional_number("rms_norm_eps", EPSILON)?.unwrap_or(
                if architecture == Architecture::Phi3 {
                    1e-5
                } else {
                    1e-6
                },
            ) as f32,
            norm_offset: if gemma { 1.0 } else { 0.0 },
            activation: self.activation()?,
            rope,
            local_rope,
            windows: self.windows(layers, context_length)?,
            head_norms: architecture.has_head_norms(),
            qkv_bias: attention_bias || architecture == Architecture::Qwen2,
            attention_out_bias: attention_bias && architecture != Architecture::Qwen2,
            post_norms: gemma,
            attention_scale: scale.sqrt().recip() as f32,
            attention_softcap: cap("attn_logit_softcapping", 50.0)?,
            logit_softcap: cap("final_logit_softcapping", 30.0)?,
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
            tied_embeddings: config.flag_or("tie_word_embeddings", gemma)?,
            bos_token: None,
            eos_tokens: Vec::new(),
        })
    }

    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, LoadError> {
        let config = self.config;
        let default = match self.architecture {
            Architecture::Gemma2 | Architecture::Gemma3 => Some(256),
            Architecture::Qwen3 => Some(128),
            _ => hidden.is_multiple_of(heads).then_some(hidden / heads),
        };
        match default {
            Some(default) if config.get("head_dim").is_none() => Ok(default),
            _ => config.count("head_dim", HEAD_DIM),
        }
    }

    fn activation(&self) -> Result<Activation, LoadError> {
        let config = self.config;
        let (key, default) = if self.architecture.is_gemma() {
            ("hidden_activation", "gelu_pytorch_tanh")
        } else {
            ("hidden_act", "silu")
        };
        Ok(match config.optional_text(key)?.unwrap_or(default) {
            "silu" | "swish" => Activation::Silu,
            "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
            "gelu" => Activation::Gelu,
            _ => return Err(config.unsupported(key, "silu, gelu, gelu_pytorch_tanh")),
        })
    }

    fn windows(&self, layers: usize, context: usize) -> Result<Vec<Option<usize>>, LoadError> {
        let config = self.config;
        let size = match self.architecture {
            Architecture::Llama => None,
            Architecture::Qwen2 | Architecture::Qwen3
                if !config.flag_or("use_sliding_window", false)? =>
            {
                None
            }
            _ if config.is_null("sliding_window") => None,
            Architecture::Gemma2 | Architecture::Gemma3 | Architecture::Qwen2 => {
                Some(config.count_or("sliding_window", POSITIONS, 4096)?)
            }
            _ => config
                .get("sliding_window")
                .map(|_| config.count("sliding_window", POSITIONS))
                .transpose()?,
        };
        // Sequences never outgrow such a window.
        let size = size.filter(|&size| size < context);
        let types = config.texts("layer_types")?;
        if !types.is_empty() {
            let known = |kind: &String| kind == "sliding_attention" || kind == "full_attention";
            if types.len() != layers || !types.iter().all(known) {
                let supported = format!("{layers} of sliding_attention and full_attention");
                return Err(config.unsupported("layer_types", &supported));
            }
            return Ok(DecoderSpec::windows(layers, size, |i| {
                types[i] == "sliding_attention"
            }));
        }
        let first = config.count_or("max_window_layers", 0..=1 << 20, 28)?;
        let pattern = ["sliding_window_pattern", "_sliding_window_pattern"];
        let pattern = pattern.into_iter().find(|key| config.get(key).is_some());
        let pattern = pattern.map_or(Ok(6), |key| config.count(key, 1..=1024))?;
        let architecture = self.architecture;
        Ok(DecoderSpec::windows(layers, size, |i| match architecture {
            Architecture::Qwen2 | Architecture::Qwen3 => i >= first,
            Architecture::Gemma2 => i % 2 == 0,
            Architecture::Gemma3 => (i + 1) % pattern != 0,
            _ => true,
        }))
    }

    /// The positions of all layers, or of those that see everything and of those that do not.
    fn ropes(
        &self,
        head_dim: usize,
        positions: usize,
        context: usize,
    ) -> Result<(RopeSpec, Option<RopeSpec>), LoadError> {
        let config = self.config;
        let fraction = config.optional_number("partial_rotary_factor", 0.0..=1.0)?;
        let parameters = config.object("rope_parameters")?;
        let nested = |key| {
            parameters
                .as_ref()
                .map_or(Ok(None), |object| object.object(key))
        };
        let (full, sliding) = (nested("full_attention")?, nested("sliding_attention")?);
        let scaling = config.object("rope_scaling")?;
        let scaling = full.as_ref().or(parameters.as_ref()).or(scaling.as_ref());
        let base = |object: Option<&Config<'_>>, key, default| {
            let nested = object.map_or(Ok(None), |o| o.optional_number("rope_theta", POSITIVE))?;
            Ok::<_, LoadError>(match nested {
                Some(base) => base,
                None => config.optional_number(key, POSITIVE)?.unwrap_or(default),
            })
        };
        let gemma3 = self.architecture == Architecture::Gemma3;
        let rope = |base, scaling: Option<&Config<'_>>| {
            let nested = scaling.map_or(Ok(None), |object| {
                object.optional_number("partial_rotary_factor", 0.0..=1.0)
            })?;
            let fraction = nested.or(fraction).unwrap_or(1.0);
            let dimensions = (head_dim as f64 * fraction) as usize;
            if dimensions == 0 || !dimensions.is_multiple_of(2) {
                let supported = format!("a fraction of head_dim, {head_dim}, that is even");
                return Err(config.unsupported("partial_rotary_factor", &supported));
            }
            let mut spec = RopeSpec {
                base,
                dimensions,
                style: RopeStyle::HalfSplit,
                scaling: RopeScaling::None,
                magnitude: 1.0,
            };
            if let Some(scaling) = scaling {
                self.scale(&mut spec, scaling, positions, context)?;
            }
            Ok(spec)
        };
        let default = if gemma3 { 1e6 } else { 1e4 };
        let global = rope(base(scaling, "rope_theta", default)?, scaling)?;
        let local = if gemma3 {
            let sliding = sliding.as_ref();
            Some(rope(base(sliding, "rope_local_base_freq", 1e4)?, sliding)?)
        } else {
            None
        };
        Ok((global, local))
    }

    /// Adds what `scaling` says to `spec`.
    fn scale(
        &self,
        spec: &mut RopeSpec,
        scaling: &Config<'_>,
        positions: usize,
        context: usize,
    ) -> Result<(), LoadError> {
        let key = if scaling.get("rope_type").is_some() {
            "rope_type"
        } else {
            "type"
        };
        let required = |key| {
            let number = scaling.optional_number(key, POSITIVE)?;
            number.ok_or_else(|| scaling.unsupported(key, "a number above 0"))
        };
        // Where the first training's context is not beside the factors, it is beside the context.
        let original = || {
            let key = "original_max_position_embeddings";
            let inner = scaling.optional_number(key, 1.0..=1e9)?;
            Ok::<_, LoadError>(match inner {
                Some(original) => original,
                None => self
                    .config
                    .optional_number(key, 1.0..=1e9)?
                    .unwrap_or(positions as f64),
            })
        };
        let magnitude = scaling.optional_number("attention_factor", POSITIVE)?;
        let magnitude = magnitude.map(|value| value as f32);
        match scaling.optional_text(key)?.unwrap_or("default") {
            "default" => {}
            "linear" => {
                spec.scaling = RopeScaling::Linear {
                    factor: required("factor")?,
                };
            }
            "llama3" => {
                let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
                if high <= low {
                    let supported = format!("more than low_freq_factor, {low}");
                    return Err(scaling.unsupported("high_freq_factor", &supported));
                }
                spec.scaling = RopeScaling::Llama3 {
                    factor: required("factor")?,
                    low,
                    high,
                    original: original()?,
                };
            }
            "yarn" => {
                for key in ["mscale", "mscale_all_dim"] {
                    if scaling.get(key).is_some() {
                        return Err(scaling.unsupported(key, "none"));
                    }
                }
                scaling.require("truncate", &Value::from(true))?;
                let factor = required("factor")?;
                let beta = |key, default| {
                    let beta = scaling.optional_number(key, POSITIVE)?;
                    Ok::<_, LoadError>(beta.unwrap_or(default))
                };
                spec.scaling = RopeScaling::Yarn {
                    factor,
                    beta_fast: beta("beta_fast", 32.0)?,
                    beta_slow: beta("beta_slow", 1.0)?,
                    original: original()?,
                };
                spec.magnitude = magnitude.unwrap_or_else(|| yarn_magnitude(factor));
            }
            "longrope" | "su" => {
                let original = original()?;
                // The factors are chosen once, by the context that is served: the keys of a
                // sequence that outgrew the original context would be rotated by both lists.
                let key = if context as f64 > original {
                    "long_factor"
                } else {
                    "short_factor"
                };
                spec.scaling = RopeScaling::Factors(factors(scaling, key, spec.dimensions / 2)?);
                let stretch = scaling.optional_number("factor", POSITIVE)?;
                let stretch = stretch.unwrap_or(positions as f64 / original);
                spec.magnitude =
                    magnitude.unwrap_or_else(|| long_rope_magnitude(stretch, original));
            }
            _ => {
                let supported = "default, linear, llama3, yarn, longrope";
                return Err(scaling.unsupported(key, supported));
            }
        }
        Ok(())
    }
}

fn factors(config: &Config<'_>, key: &str, pairs: usize) -> Result<Vec<f32>, LoadError> {
    let list = config.get(key).and_then(Value::as_array);
    let numbers: Option<Vec<f32>> = list.and_then(|list| {
        let positive = |value: &Value| {
            let factor = value.as_f64().filter(|factor| POSITIVE.contains(factor))?;
            Some(factor as f32)
        };
        list.iter().map(positive).collect()
    });
    numbers
        .filter(|factors| factors.len() == pairs)
        .ok_or_else(|| config.unsupported(key, &format!("a list of {pairs} positive numbers")))
}

/// One token id or a list of them; none where there is no such key.
fn token_ids(config: &Config<'_>, key: &str) -> Result<Vec<u32>, LoadError> {
    let error = || config.unsupported(key, "a token id or a short list of them");
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MAX_EOS_TOKENS => list
            .iter()
            .map(|value| id(value).ok_or_else(error))
            .collect(),
        Some(value) => Ok(vec![id(value).ok_or_else(error)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(model_type: &str) -> Value {
        json!({
            "model_type": model_type, "hidden_size": 64, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
            "vocab_size": 100, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "head_dim": 16, "eos_token_id": [1, 2], "bos_token_id": 0
        })
    }

    fn read(mut config: Value, changes: &Value) -> Result<DecoderSpec, LoadError> {
        for (key, value) in changes.as_object().expect("an object") {
            config[key] = value.clone();
        }
        DecoderSpec::from_json(config.as_object().expect("an object"), None)
    }

    #[test]
    fn each_family_has_its_switches() -> Result<(), LoadError> {
        let none = json!({});
        let llama = read(config("llama"), &none)?;
        assert_eq!((llama.qkv_features(), llama.head_dim), (128, 16));
        assert_eq!(
            (llama.bos_token, &llama.eos_tokens[..]),
            (Some(0), &[1, 2][..])
        );
        assert!(!llama.qkv_bias && !llama.head_norms && !llama.tied_embeddings);
        assert!((llama.attention_scale - 0.25).abs() < 1e-9);
        assert_eq!(llama.windows, [None; 6]);
        let biased = read(config("llama"), &json!({"attention_bias": true}))?;
        assert!(biased.qkv_bias && biased.attention_out_bias);

        let mistral = read(config("mistral"), &json!({"sliding_window": 8}))?;
        assert_eq!(mistral.windows, [Some(8); 6]);
        let mistral = read(config("mistral"), &json!({"sliding_window": null}))?;
        assert_eq!(mistral.windows, [None; 6]);

        let qwen2 = json!({"sliding_window": 8, "max_window_layers": 4});
        let qwen2 = read(config("qwen2"), &qwen2)?;
        assert!(qwen2.qkv_bias && !qwen2.attention_out_bias);
        assert_eq!(qwen2.windows, [None; 6]);
        let used = json!({
            "sliding_window": 8, "max_window_layers": 4, "use_sliding_window": true
        });
        let used = read(config("qwen2"), &used)?;
        assert_eq!(used.windows, [None, None, None, None, Some(8), Some(8)]);
        assert!(read(config("qwen3"), &none)?.head_norms);

        let gemma2 = read(config("gemma2"), &json!({"query_pre_attn_scalar": 64}))?;
        assert_eq!(
            (gemma2.attention_softcap, gemma2.logit_softcap),
            (Some(50.0), Some(30.0))
        );
        assert_eq!((gemma2.norm_offset, gemma2.embedding_scale), (1.0, 8.0));
        assert!((gemma2.attention_scale - 0.125).abs() < 1e-9);
        assert!(gemma2.post_norms && gemma2.tied_embeddings);
        assert_eq!(gemma2.activation, Activation::GeluTanh);

        let gemma3 = read(config("gemma3_text"), &json!({"sliding_window": 8}))?;
        assert_eq!(gemma3.windows[4..], [Some(8), None]);
        assert_eq!(gemma3.rope.base as u32, 1_000_000);
        assert_eq!(gemma3.local_rope.as_ref().map(|rope| rope.base), Some(1e4));
        assert!(gemma3.uses_local_rope(0) && !gemma3.uses_local_rope(5));
        assert_eq!(gemma3.attention_softcap, None);

        let phi3 = read(config("phi3"), &json!({"partial_rotary_factor": 0.75}))?;
        assert_eq!(phi3.rope.dimensions, 12);
        Ok(())
    }

    #[test]
    fn the_text_model_of_gemma3_may_be_inside() -> Result<(), LoadError> {
        let text = config("gemma3_text");
        let outer = json!({"model_type": "gemma3", "text_config": text, "eos_token_id": 106});
        let spec = read(outer, &json!({}))?;
        assert_eq!((spec.layers, &spec.eos_tokens[..]), (6, &[106][..]));
        Ok(())
    }

    #[test]
    fn long_rope_takes_its_factors_by_the_context_that_is_served() -> Result<(), LoadError> {
        let mut config = config("phi3");
        let (short, long) = (vec![1.0; 8], vec![2.0; 8]);
        config["original_max_position_embeddings"] = json!(1024);
        config["rope_scaling"] =
            json!({"type": "longrope", "short_factor": short, "long_factor": long});
        let read = |limit| DecoderSpec::from_json(config.as_object().expect("an object"), limit);
        let (all, cut) = (read(None)?, read(Some(1024))?);
        assert_eq!(all.rope.scaling, RopeScaling::Factors(vec![2.0; 8]));
        assert_eq!(cut.rope.scaling, RopeScaling::Factors(vec![1.0; 8]));
        assert_eq!(cut.context_length, 1024);
        // The model was trained with this in either case.
        assert_eq!(all.rope.magnitude.to_bits(), cut.rope.magnitude.to_bits());
        assert!((all.rope.magnitude - 1.095_445).abs() < 1e-5);
        Ok(())
    }

    #[test]
    fn hostile_values_are_refused_with_their_key() {
        let rope = |scaling: Value| json!({"rope_scaling": scaling});
        let cases = [
            ("model_type", json!({"model_type": "gpt2"})),
            ("hidden_size", json!({"hidden_size": u64::MAX})),
            (
                "num_hidden_layers",
                json!({"num_hidden_layers": 4_000_000_000_u64}),
            ),
            ("num_attention_heads", json!({"num_attention_heads": 0})),
            ("num_key_value_heads", json!({"num_key_value_heads": 3})),
            ("head_dim", json!({"head_dim": 1_000_000})),
            ("vocab_size", json!({"vocab_size": -1})),
            (
                "max_position_embeddings",
                json!({"max_position_embeddings": 1e300}),
            ),
            ("rms_norm_eps", json!({"rms_norm_eps": -1})),
            ("hidden_act", json!({"hidden_act": "relu6"})),
            ("mlp_bias", json!({"mlp_bias": true})),
            ("attention_bias", json!({"attention_bias": "yes"})),
            ("rope_theta", json!({"rope_theta": 0})),
            (
                "partial_rotary_factor",
                json!({"partial_rotary_factor": 0.2}),
            ),
            ("quantization_config", json!({"quantization_config": {}})),
            ("layer_types", json!({"layer_types": ["full_attention"]})),
            ("eos_token_id", json!({"eos_token_id": "2"})),
            (
                "rope_scaling.rope_type",
                rope(json!({"rope_type": "dynamic"})),
            ),
            (
                "rope_scaling.factor",
                rope(json!({"type": "linear", "factor": -1.0})),
            ),
            ("rope_scaling.factor", rope(json!({"type": "yarn"}))),
            (
                "rope_scaling.long_factor",
                rope(json!({
                    "type": "longrope", "long_factor": [1.0], "original_max_position_embeddings": 8
                })),
            ),
            (
                "rope_scaling.high_freq_factor",
                rope(json!({
                    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 1.0
                })),
            ),
        ];
        for (key, changes) in cases {
            let error = read(config("llama"), &changes).expect_err(key);
            let LoadError::Config { key: named, .. } = &error else {
                panic!("{key}: {error}");
            };
            assert_eq!(named, key, "{changes}");
        }
    }
}
