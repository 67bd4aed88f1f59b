//! A decoder's description from the metadata of a GGUF file: keys that begin with the
//! architecture's name, as llama.cpp's converter writes them, and the tensors that stand for a
//! key (`rope_freqs.weight` and its like).

use candle_core::Device;

use super::super::error::LoadError;
use super::super::gguf::{GgufFile, Keys};
use super::rope::{RopeScaling, RopeSpec, yarn_magnitude};
use super::spec::{
    Architecture, DecoderSpec, EPSILON, HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, LAYERS, POSITIONS,
    POSITIVE, VOCABULARY,
};
use crate::ops::{Activation, RopeStyle};

const ARCHITECTURE: &str = "general.architecture";
const SUPPORTED: &str = "llama, qwen2, qwen3, gemma2, gemma3, phi3";

impl DecoderSpec {
    /// From a file's metadata; the context is cut to `max_context`.
    ///
    /// # Errors
    /// If it describes something that is not supported; the error names the key or the tensor.
    pub fn from_gguf(file: &GgufFile, max_context: Option<usize>) -> Result<Self, LoadError> {
        let metadata = file.metadata();
        let name = metadata.text(ARCHITECTURE)?;
        let architecture = match name {
            Some("llama") => Architecture::Llama,
            Some("qwen2") => Architecture::Qwen2,
            Some("qwen3") => Architecture::Qwen3,
            Some("gemma2") => Architecture::Gemma2,
            Some("gemma3") => Architecture::Gemma3,
            Some("phi3") => Architecture::Phi3,
            _ => return Err(metadata.unsupported(ARCHITECTURE, SUPPORTED)),
        };
        let reader = Reader {
            file,
            keys: Keys::new(metadata, name.unwrap_or_default()),
            architecture,
        };
        reader.spec(max_context)
    }
}

struct Reader<'a> {
    file: &'a GgufFile,
    keys: Keys<'a>,
    architecture: Architecture,
}

impl Reader<'_> {
    fn spec(&self, max_context: Option<usize>) -> Result<DecoderSpec, LoadError> {
        let architecture = self.architecture;
        let gemma = architecture.is_gemma();
        if self.keys.count("expert_count", 0..=1 << 20)?.unwrap_or(0) != 0 {
            return Err(self
                .keys
                .unsupported("expert_count", "0: mixtures of experts are not"));
        }
        let hidden = self.keys.required("embedding_length", HIDDEN)?;
        let layers = self.keys.required("block_count", LAYERS)?;
        let heads = self.keys.required("attention.head_count", HEADS)?;
        let kv_heads = self
            .keys
            .count("attention.head_count_kv", HEADS)?
            .unwrap_or(heads);
        if heads % kv_heads != 0 {
            let supported = format!("a divisor of the head count, {heads}");
            return Err(self.keys.unsupported("attention.head_count_kv", &supported));
        }
        let head_dim = match self.keys.count("attention.key_length", HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(self
                    .keys
                    .unsupported("attention.key_length", "a whole number"));
            }
        };
        if self
            .keys
            .count("attention.value_length", HEAD_DIM)?
            .unwrap_or(head_dim)
            != head_dim
        {
            let supported = format!("the length of keys, {head_dim}");
            return Err(self.keys.unsupported("attention.value_length", &supported));
        }
        let positions = self.keys.required("context_length", POSITIONS)?;
        let context_length = max_context.map_or(positions, |most| most.min(positions));
        let (rope, local_rope) = self.ropes(head_dim, context_length)?;
        let cap = |key, default| {
            let cap = self.keys.number(key, POSITIVE)?;
            let default = (architecture == Architecture::Gemma2).then_some(default);
            Ok::<_, LoadError>(cap.or(default).map(|cap| cap as f32))
        };
        Ok(DecoderSpec {
            architecture,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate: self.keys.required("feed_forward_length", INTERMEDIATE)?,
            vocabulary: self.vocabulary()?,
            context_length,
            norm_epsilon: self
                .keys
                .number("attention.layer_norm_rms_epsilon", EPSILON)?
                .ok_or_else(|| {
                    self.keys
                        .unsupported("attention.layer_norm_rms_epsilon", "a number")
                })? as f32,
            // The converter has added Gemma's 1 to the weights.
            norm_offset: 0.0,
            activation: if gemma {
                Activation::GeluTanh
            } else {
                Activation::Silu
            },
            rope,
            local_rope,
            windows: self.windows(layers, context_length)?,
            head_norms: architecture.has_head_norms(),
            qkv_bias: self.has("blk.0.attn_q.bias") || self.has("blk.0.attn_qkv.bias"),
            attention_out_bias: self.has("blk.0.attn_output.bias"),
            post_norms: gemma,
            attention_scale: self.attention_scale(hidden, layers, heads, head_dim)?,
            attention_softcap: cap("attn_logit_softcapping", 50.0)?,
            logit_softcap: cap("final_logit_softcapping", 30.0)?,
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
            tied_embeddings: !self.has("output.weight"),
            bos_token: self.keys.metadata.u32("tokenizer.ggml.bos_token_id")?,
            eos_tokens: self.eos_tokens()?,
        })
    }

    /// As many as the table of embeddings has rows, which is what the forward pass relies on.
    fn vocabulary(&self) -> Result<usize, LoadError> {
        let name = "token_embd.weight";
        let rows = self.file.tensors().get(name).map(|info| info.shape[0]);
        match rows {
            Some(rows) if VOCABULARY.contains(&rows) => Ok(rows),
            _ => Err(LoadError::MissingTensor {
                name: name.to_owned(),
                expected: Vec::new(),
                why: "its rows tell the vocabulary, up to 2²⁴".to_owned(),
            }),
        }
    }

    /// Gemma's largest models scale by their features per head, which the file does not say.
    fn attention_scale(
        &self,
        hidden: usize,
        layers: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<f32, LoadError> {
        if let Some(scale) = self.keys.number("attention.scale", POSITIVE)? {
            return Ok(scale as f32);
        }
        let features = match (self.architecture, layers) {
            (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62) => hidden as f32 / heads as f32,
            _ => head_dim as f32,
        };
        Ok(features.sqrt().recip())
    }

    fn windows(&self, layers: usize, context: usize) -> Result<Vec<Option<usize>>, LoadError> {
        let size = self
            .keys
            .count("attention.sliding_window", 0..=*POSITIONS.end())?;
        let default = (self.architecture == Architecture::Gemma2).then_some(4096);
        // 0 is none, and sequences never outgrow one as long as the context.
        let size = size.or(default).filter(|size| (1..context).contains(size));
        let key = "attention.sliding_window_pattern";
        let full_key = self.keys.key(key);
        if self.keys.metadata.array_len(&full_key).is_some() {
            let local = self.keys.metadata.bools(&full_key)?.unwrap_or_default();
            if local.len() != layers {
                return Err(self
                    .keys
                    .unsupported(key, &format!("one value per layer, {layers}")));
            }
            return Ok(DecoderSpec::windows(layers, size, |i| local[i]));
        }
        let default = match self.architecture {
            Architecture::Gemma2 => Some(2),
            Architecture::Gemma3 => Some(6),
            _ => None,
        };
        // Every so many layers the last sees everything.
        let period = self.keys.count(key, 1..=1024)?.or(default);
        Ok(DecoderSpec::windows(layers, size, |i| {
            period.is_none_or(|period| (i + 1) % period != 0)
        }))
    }

    fn ropes(
        &self,
        head_dim: usize,
        context: usize,
    ) -> Result<(RopeSpec, Option<RopeSpec>), LoadError> {
        let dimensions = self
            .keys
            .count("rope.dimension_count", 2..=head_dim)?
            .unwrap_or(head_dim);
        if dimensions % 2 != 0 {
            return Err(self
                .keys
                .unsupported("rope.dimension_count", "an even number"));
        }
        let plain = |base| RopeSpec {
            base,
            dimensions,
            style: match self.architecture {
                Architecture::Llama => RopeStyle::Interleaved,
                _ => RopeStyle::HalfSplit,
            },
            scaling: RopeScaling::None,
            magnitude: 1.0,
        };
        let mut global = plain(self.keys.number("rope.freq_base", POSITIVE)?.unwrap_or(1e4));
        self.scale(&mut global, context)?;
        let local = if self.architecture == Architecture::Gemma3 {
            let base = self.keys.number("rope.freq_base_swa", POSITIVE)?;
            Some(plain(base.unwrap_or(1e4)))
        } else {
            None
        };
        Ok((global, local))
    }

    fn scale(&self, spec: &mut RopeSpec, context: usize) -> Result<(), LoadError> {
        let magnitude = self
            .keys
            .number("rope.scaling.attn_factor", POSITIVE)?
            .unwrap_or(1.0) as f32;
        let original = self
            .keys
            .count("rope.scaling.original_context_length", POSITIONS)?;
        spec.magnitude = magnitude;
        let pairs = spec.dimensions / 2;
        if self.has("rope_factors_long.weight") {
            // Chosen once, by the context that is served; see spec_config.rs.
            let long = original.is_some_and(|original| context > original);
            let name = if long {
                "rope_factors_long.weight"
            } else {
                "rope_factors_short.weight"
            };
            spec.scaling = RopeScaling::Factors(self.factors(name, pairs)?);
            return Ok(());
        }
        if self.has("rope_freqs.weight") {
            spec.scaling = RopeScaling::Factors(self.factors("rope_freqs.weight", pairs)?);
            return Ok(());
        }
        let key = self.keys.key("rope.scaling.type");
        let factor = self.keys.number("rope.scaling.factor", POSITIVE)?;
        match (self.keys.metadata.text(&key)?, factor) {
            (None | Some("none"), _) | (Some("linear"), None) => {}
            (Some("linear"), Some(factor)) => spec.scaling = RopeScaling::Linear { factor },
            (Some("yarn"), Some(factor)) => {
                let original = original.ok_or_else(|| {
                    self.keys
                        .unsupported("rope.scaling.original_context_length", "a whole number")
                })?;
                let beta = |key, default| {
                    Ok::<_, LoadError>(self.keys.number(key, POSITIVE)?.unwrap_or(default))
                };
                spec.scaling = RopeScaling::Yarn {
                    factor,
                    beta_fast: beta("rope.scaling.yarn_beta_fast", 32.0)?,
                    beta_slow: beta("rope.scaling.yarn_beta_slow", 1.0)?,
                    original: original as f64,
                };
                spec.magnitude *= yarn_magnitude(factor);
            }
            _ => {
                return Err(self
                    .keys
                    .unsupported("rope.scaling.type", "none, linear, yarn"));
            }
        }
        Ok(())
    }

    /// A tensor of positive factors, `[pairs]`.
    fn factors(&self, name: &str, pairs: usize) -> Result<Vec<f32>, LoadError> {
        if let Some(info) = self.file.tensors().get(name)
            && info.shape != [pairs]
        {
            return Err(LoadError::Shape {
                name: name.to_owned(),
                found: info.shape.clone(),
                expected: vec![pairs],
            });
        }
        let tensor = self.file.tensor(name, &Device::Cpu)?;
        let factors: Vec<f32> = tensor.dequantize(&Device::Cpu)?.to_vec1()?;
        let wrong = |factor: &f32| !POSITIVE.contains(&f64::from(*factor));
        match factors.iter().position(wrong) {
            None => Ok(factors),
            Some(index) => Err(LoadError::NonFinite {
                name: name.to_owned(),
                index,
            }),
        }
    }

    /// The tokens that end a text, a turn or a message.
    fn eos_tokens(&self) -> Result<Vec<u32>, LoadError> {
        let mut tokens = Vec::new();
        for kind in ["eos", "eot", "eom"] {
            let token = self
                .keys
                .metadata
                .u32(&format!("tokenizer.ggml.{kind}_token_id"))?;
            tokens.extend(token.filter(|token| !tokens.contains(token)));
        }
        Ok(tokens)
    }

    fn has(&self, tensor: &str) -> bool {
        self.file.tensors().contains_key(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::gguf::testing::GgufWriter;
    use super::super::super::testing::TempDir;
    use super::*;

    fn writer(architecture: &str) -> GgufWriter {
        let key = |key: &str| format!("{architecture}.{key}");
        GgufWriter::new()
            .string(ARCHITECTURE, architecture)
            .u32(&key("block_count"), 6)
            .u32(&key("context_length"), 4096)
            .u32(&key("embedding_length"), 64)
            .u32(&key("feed_forward_length"), 128)
            .u32(&key("attention.head_count"), 4)
            .u32(&key("attention.head_count_kv"), 2)
            .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
            .u32("tokenizer.ggml.eos_token_id", 2)
            .u32("tokenizer.ggml.eot_token_id", 5)
            .f32_tensor("token_embd.weight", &[10, 64], &[0.0; 640])
    }

    fn read(writer: &GgufWriter, limit: Option<usize>) -> Result<DecoderSpec, LoadError> {
        let dir = TempDir::new().expect("a folder");
        let path = dir.path().join("model.gguf");
        writer.write(&path).expect("a file");
        DecoderSpec::from_gguf(&GgufFile::open(&path)?, limit)
    }

    #[test]
    fn each_family_has_its_switches() -> Result<(), LoadError> {
        let llama = read(&writer("llama"), Some(1000))?;
        assert_eq!(
            (llama.vocabulary, llama.head_dim, llama.context_length),
            (10, 16, 1000)
        );
        assert_eq!(
            (llama.rope.style, llama.rope.base),
            (RopeStyle::Interleaved, 1e4)
        );
        assert!(llama.tied_embeddings && !llama.qkv_bias);
        assert_eq!(llama.eos_tokens, [2, 5]);

        let qwen2 = writer("qwen2").f32_tensor("blk.0.attn_q.bias", &[64], &[0.0; 64]);
        let qwen2 = read(&qwen2, None)?;
        assert!(qwen2.qkv_bias && qwen2.rope.style == RopeStyle::HalfSplit);

        let gemma2 = read(
            &writer("gemma2").u32("gemma2.attention.sliding_window", 8),
            None,
        )?;
        assert_eq!(gemma2.windows[..3], [Some(8), None, Some(8)]);
        assert_eq!(
            (gemma2.attention_softcap, gemma2.logit_softcap),
            (Some(50.0), Some(30.0))
        );
        assert_eq!((gemma2.norm_offset, gemma2.embedding_scale), (0.0, 8.0));

        let gemma3 = writer("gemma3")
            .u32("gemma3.attention.sliding_window", 8)
            .u32("gemma3.attention.key_length", 32)
            .u32("gemma3.attention.value_length", 32)
            .f32("gemma3.rope.freq_base", 1e6)
            .string("gemma3.rope.scaling.type", "linear")
            .f32("gemma3.rope.scaling.factor", 8.0);
        let gemma3 = read(&gemma3, None)?;
        assert_eq!(gemma3.windows[4..], [Some(8), None]);
        assert_eq!(gemma3.rope.scaling, RopeScaling::Linear { factor: 8.0 });
        let local = gemma3.local_rope.expect("positions of its own");
        assert_eq!((local.base, local.scaling), (1e4, RopeScaling::None));
        assert!(gemma3.head_norms && gemma3.post_norms);
        Ok(())
    }

    #[test]
    fn factors_come_from_tensors() -> Result<(), LoadError> {
        let llama3 = writer("llama").f32_tensor("rope_freqs.weight", &[8], &[2.0; 8]);
        let llama3 = read(&llama3, None)?;
        assert_eq!(llama3.rope.scaling, RopeScaling::Factors(vec![2.0; 8]));

        let phi3 = writer("phi3")
            .u32("phi3.rope.scaling.original_context_length", 1024)
            .f32("phi3.rope.scaling.attn_factor", 1.25)
            .f32_tensor("rope_factors_long.weight", &[8], &[4.0; 8])
            .f32_tensor("rope_factors_short.weight", &[8], &[1.5; 8]);
        for (limit, factor) in [(None, 4.0), (Some(1024), 1.5)] {
            let spec = read(&phi3, limit)?;
            assert_eq!(spec.rope.scaling, RopeScaling::Factors(vec![factor; 8]));
            assert_eq!(spec.rope.magnitude.to_bits(), 1.25_f32.to_bits());
        }
        let wrong = writer("llama").f32_tensor("rope_freqs.weight", &[7], &[2.0; 7]);
        assert!(matches!(read(&wrong, None), Err(LoadError::Shape { .. })));
        let zero = writer("llama").f32_tensor("rope_freqs.weight", &[8], &[0.0; 8]);
        assert!(matches!(
            read(&zero, None),
            Err(LoadError::NonFinite { .. })
        ));
        Ok(())
    }

    #[test]
    fn hostile_values_are_refused_with_their_key() {
        let cases = [
            (
                "general.architecture",
                GgufWriter::new().string(ARCHITECTURE, "mamba"),
            ),
            ("general.architecture", GgufWriter::new()),
            (
                "llama.embedding_length",
                GgufWriter::new().string(ARCHITECTURE, "llama"),
            ),
            (
                "llama.expert_count",
                writer("llama").u32("llama.expert_count", 8),
            ),
            (
                "llama.attention.key_length",
                writer("llama").u32("llama.attention.key_length", 0),
            ),
            (
                "llama.attention.value_length",
                writer("llama").u32("llama.attention.value_length", 8),
            ),
            (
                "llama.rope.dimension_count",
                writer("llama").u32("llama.rope.dimension_count", 17),
            ),
            (
                "llama.rope.freq_base",
                writer("llama").f32("llama.rope.freq_base", f32::NAN),
            ),
            (
                "llama.rope.scaling.type",
                writer("llama").string("llama.rope.scaling.type", "x"),
            ),
            (
                "llama.attention.sliding_window_pattern",
                writer("llama").strings("llama.attention.sliding_window_pattern", &["a"]),
            ),
        ];
        for (key, writer) in cases {
            let error = read(&writer, None).expect_err(key);
            let LoadError::Metadata { key: named, .. } = &error else {
                panic!("{key}: {error}");
            };
            assert_eq!(named, key);
        }
    }
}
