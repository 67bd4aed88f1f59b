//! A decoder's safetensors checkpoint as llama.cpp's `llama`, `qwen2`, `qwen3`, `gemma2`, `gemma3`
//! or `phi3`.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::super::decoder::plan::{DecoderPlan, Naming};
use super::super::decoder::rope::{RopeScaling, RopeSpec, yarn_magnitude};
use super::super::decoder::{Architecture, DecoderSpec};
use super::super::gguf::MetadataValue;
use super::super::source::Source;
use super::conversion::{Change, Conversion, Converted};
use super::error::QuantizeError;
use super::vocabulary;
use crate::ops::Activation;

pub(super) fn convert(
    dir: &Path,
    source: &Source,
    config: &Map<String, Json>,
) -> Result<Conversion, QuantizeError> {
    let spec = DecoderSpec::of(source, None)?;
    let expected =
        if spec.architecture == Architecture::Gemma2 || spec.architecture == Architecture::Gemma3 {
            Activation::GeluTanh
        } else {
            Activation::Silu
        };
    if spec.activation != expected {
        let reason = format!("its activation is {:?}, not {expected:?}", spec.activation);
        return Err(QuantizeError::NoForm(reason));
    }
    let from = DecoderPlan::of(source, &spec);
    source.check(from.tensors())?;
    let to = DecoderPlan::new(&spec, Naming::Gguf);
    let mut tensors: Vec<Converted> = from
        .tensors()
        .zip(to.tensors())
        .map(|(from, to)| Converted::of(source, from, to, change(&spec, &to.name)))
        .collect();
    let mut writer = Writer {
        spec: &spec,
        metadata: Vec::new(),
        notes: Vec::new(),
    };
    writer.write();
    tensors.extend(writer.rope(dir)?);
    let Writer {
        mut metadata,
        mut notes,
        ..
    } = writer;
    match vocabulary::read(dir, config, spec.vocabulary, false)? {
        Some(vocabulary) => metadata.extend(vocabulary),
        None => metadata.push(vocabulary::none(&mut notes)),
    }
    Ok(Conversion {
        metadata,
        tensors,
        layers: spec.layers,
        heads_per_kv: spec.heads / spec.kv_heads,
        notes,
    })
}

/// What llama.cpp calls the family.
fn architecture(spec: &DecoderSpec) -> &'static str {
    match spec.architecture {
        Architecture::Llama | Architecture::Mistral => "llama",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
        Architecture::Gemma2 => "gemma2",
        Architecture::Gemma3 => "gemma3",
        Architecture::Phi3 => "phi3",
    }
}

/// How a tensor's values differ between the two.
fn change(spec: &DecoderSpec, name: &str) -> Change {
    let interleaved = architecture(spec) == "llama";
    if interleaved && name.contains(".attn_q.") {
        Change::Interleave { heads: spec.heads }
    } else if interleaved && name.contains(".attn_k.") {
        Change::Interleave {
            heads: spec.kv_heads,
        }
    } else if name.ends_with("norm.weight") && spec.norm_offset != 0.0 {
        Change::Add(spec.norm_offset)
    } else {
        Change::None
    }
}

struct Writer<'a> {
    spec: &'a DecoderSpec,
    metadata: Vec<(String, MetadataValue)>,
    notes: Vec<String>,
}

impl Writer<'_> {
    fn set(&mut self, key: &str, value: MetadataValue) {
        let key = format!("{}.{key}", architecture(self.spec));
        self.metadata.push((key, value));
    }

    fn count(&mut self, key: &str, count: usize) {
        self.set(key, MetadataValue::U32(count as u32));
    }

    fn number(&mut self, key: &str, number: f32) {
        self.set(key, MetadataValue::F32(number));
    }

    fn write(&mut self) {
        let spec = self.spec;
        let name = architecture(spec);
        self.metadata
            .push(("general.architecture".to_owned(), name.into()));
        self.metadata
            .push(("general.type".to_owned(), "model".into()));
        self.count("vocab_size", spec.vocabulary);
        self.count("context_length", spec.context_length);
        self.count("embedding_length", spec.hidden);
        self.count("block_count", spec.layers);
        self.count("feed_forward_length", spec.intermediate);
        self.count("attention.head_count", spec.heads);
        self.count("attention.head_count_kv", spec.kv_heads);
        self.number("attention.layer_norm_rms_epsilon", spec.norm_epsilon);
        self.count("attention.key_length", spec.head_dim);
        self.count("attention.value_length", spec.head_dim);
        if let Some(cap) = spec.attention_softcap {
            self.number("attn_logit_softcapping", cap);
        }
        if let Some(cap) = spec.logit_softcap {
            self.number("final_logit_softcapping", cap);
        }
        let usual = (spec.head_dim as f32).sqrt().recip();
        if (spec.attention_scale - usual).abs() > 1e-6 * usual {
            self.number("attention.scale", spec.attention_scale);
            if !matches!((name, spec.layers), ("gemma2", 46) | ("gemma3", 62)) {
                self.notes
                    .push("llama.cpp has no key for its scale of attention".to_owned());
            }
        }
        self.windows();
    }

    fn windows(&mut self) {
        let spec = self.spec;
        let size = spec.windows.iter().flatten().next();
        let Some(&size) = size else {
            // Their readers take an absent key for a window.
            if matches!(spec.architecture, Architecture::Gemma2 | Architecture::Phi3) {
                self.count("attention.sliding_window", 0);
            }
            return;
        };
        self.count("attention.sliding_window", size);
        let period = match spec.architecture {
            Architecture::Gemma2 => Some(2),
            Architecture::Gemma3 => Some(6),
            _ => None,
        };
        let usual = |index: usize| period.is_none_or(|period| !(index + 1).is_multiple_of(period));
        let is = |(index, window): (usize, &Option<usize>)| window.is_some() == usual(index);
        if !spec.windows.iter().enumerate().all(is) {
            let local = spec.windows.iter().map(Option::is_some).collect();
            self.set(
                "attention.sliding_window_pattern",
                MetadataValue::Bools(local),
            );
        }
        if period.is_none() {
            self.notes.push(format!(
                "llama.cpp lets it see everything; its layers have a window of {size}"
            ));
        }
    }

    /// Keys of the rotary positions, and the tensors that stand for some.
    fn rope(&mut self, dir: &Path) -> Result<Vec<Converted>, QuantizeError> {
        let spec = self.spec;
        let rope = &spec.rope;
        let no_form = |reason: &str| QuantizeError::NoForm(reason.to_owned());
        if architecture(spec) == "llama" && rope.dimensions != spec.head_dim {
            return Err(no_form("only a part of each head rotates"));
        }
        self.count("rope.dimension_count", rope.dimensions);
        self.number("rope.freq_base", rope.base as f32);
        if let Some(local) = &spec.local_rope {
            if local.scaling != RopeScaling::None {
                return Err(no_form("the positions of its local layers are scaled"));
            }
            if (local.base - 1e4).abs() > 0.0 {
                self.number("rope.freq_base_swa", local.base as f32);
            }
        }
        match &rope.scaling {
            RopeScaling::None => Ok(Vec::new()),
            RopeScaling::Linear { factor } => {
                self.set("rope.scaling.type", "linear".into());
                self.number("rope.scaling.factor", *factor as f32);
                Ok(Vec::new())
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original,
            } => {
                self.set("rope.scaling.type", "yarn".into());
                self.number("rope.scaling.factor", *factor as f32);
                self.count("rope.scaling.original_context_length", *original as usize);
                self.number("rope.scaling.yarn_beta_fast", *beta_fast as f32);
                self.number("rope.scaling.yarn_beta_slow", *beta_slow as f32);
                let rest = rope.magnitude / yarn_magnitude(*factor);
                if (rest - 1.0).abs() > 1e-6 {
                    self.number("rope.scaling.attn_factor", rest);
                }
                Ok(Vec::new())
            }
            RopeScaling::Llama3 { .. } => {
                if spec.architecture != Architecture::Llama {
                    return Err(no_form("positions scaled as Llama 3's in another family"));
                }
                let plain = RopeSpec {
                    scaling: RopeScaling::None,
                    ..rope.clone()
                };
                let pairs = plain.frequencies().into_iter().zip(rope.frequencies());
                let factors = pairs.map(|(plain, scaled)| plain / scaled).collect();
                Ok(vec![Converted::computed("rope_freqs.weight", factors)])
            }
            RopeScaling::Factors(long) => self.long_rope(dir, long),
        }
    }

    /// Both lists of `LongRoPE`, of which a reader picks one by the context that it serves.
    fn long_rope(&mut self, dir: &Path, served: &[f32]) -> Result<Vec<Converted>, QuantizeError> {
        let spec = self.spec;
        if spec.architecture != Architecture::Phi3 {
            let reason = "positions scaled by LongRoPE in another family than Phi 3";
            return Err(QuantizeError::NoForm(reason.to_owned()));
        }
        let Some(original) = DecoderSpec::original_context(dir)? else {
            let reason = "LongRoPE without original_max_position_embeddings";
            return Err(QuantizeError::NoForm(reason.to_owned()));
        };
        // With the whole context as the original one, there is one list only.
        let short = DecoderSpec::read_config(dir, Some(original))?;
        let RopeScaling::Factors(short) = short.rope.scaling else {
            unreachable!("the scaling does not depend on the context, its list does");
        };
        self.count("rope.scaling.original_context_length", original);
        self.number("rope.scaling.attn_factor", spec.rope.magnitude);
        Ok(vec![
            Converted::computed("rope_factors_long.weight", served.to_vec()),
            Converted::computed("rope_factors_short.weight", short),
        ])
    }
}
