//! What a decoder is made of: one description for all families, so that the forward pass knows
//! switches, not names.
//!
//! It is read from the metadata of a GGUF file (`spec_gguf.rs`) or from `config.json`
//! (`spec_config.rs`); every number is bounded there, so that the rest of the loader may multiply
//! them without thought.

use std::fmt;
use std::ops::RangeInclusive;

use super::super::error::LoadError;
use super::super::source::Source;
use super::rope::RopeSpec;
use crate::ops::Activation;

/// The bounds of a decoder's numbers, whichever file they come from.
pub(super) const HIDDEN: RangeInclusive<usize> = 1..=65_536;
pub(super) const LAYERS: RangeInclusive<usize> = 1..=512;
pub(super) const HEADS: RangeInclusive<usize> = 1..=1024;
pub(super) const HEAD_DIM: RangeInclusive<usize> = 1..=1024;
pub(super) const INTERMEDIATE: RangeInclusive<usize> = 1..=1 << 20;
pub(super) const VOCABULARY: RangeInclusive<usize> = 1..=1 << 24;
pub(super) const POSITIONS: RangeInclusive<usize> = 1..=1 << 24;
pub(super) const EPSILON: RangeInclusive<f64> = 0.0..=1.0;
/// Bases, factors, caps and scales.
pub(super) const POSITIVE: RangeInclusive<f64> = 1e-6..=1e12;

/// Who named the tensors, and whose defaults hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1 to 3, `SmolLM`, and what is stored like them; in GGUF files Mistral too.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, its text model.
    Gemma3,
    /// Phi 3, 3.5 and 4-mini.
    Phi3,
}

impl Architecture {
    /// Whether it is of the Gemma family, which scales embeddings and normalizes what layers add.
    pub(super) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Whether q and k of each head are normalized before they are rotated.
    pub(super) fn has_head_norms(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
        })
    }
}

/// A pre-norm decoder with rotary positions and a gated feed-forward block.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says whether the files have some tensors; they are independent"
)]
pub struct DecoderSpec {
    /// The family.
    pub architecture: Architecture,
    /// Features of a token.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; `heads` is a multiple.
    pub kv_heads: usize,
    /// Features of a head; `heads · head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Features inside the feed-forward block.
    pub intermediate: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Positions that a sequence may have: the model's, or the caller's limit if that is less.
    pub context_length: usize,
    /// `ε` of all norms.
    pub norm_epsilon: f32,
    /// What is added to every stored norm weight: 1 in Gemma's safetensors, else 0.
    pub norm_offset: f32,
    /// Activation of the gate.
    pub activation: Activation,
    /// Positions of the layers that see everything.
    pub rope: RopeSpec,
    /// Positions of the layers with a window, where they have others (Gemma 3).
    pub local_rope: Option<RopeSpec>,
    /// Per layer, how many positions a token sees, its own among them; `None` is all.
    pub windows: Vec<Option<usize>>,
    /// Whether q and k are normalized per head (Qwen 3, Gemma 3).
    pub head_norms: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the projection after attention has a bias.
    pub attention_out_bias: bool,
    /// Whether what a layer adds to the residual is normalized first (Gemma).
    pub post_norms: bool,
    /// Scores are multiplied by this before the softmax.
    pub attention_scale: f32,
    /// Scores `s` become `cap·tanh(s/cap)` (Gemma 2).
    pub attention_softcap: Option<f32>,
    /// The same for logits.
    pub logit_softcap: Option<f32>,
    /// Embeddings are multiplied by this: `√hidden` in Gemma, else 1.
    pub embedding_scale: f32,
    /// Whether the table of embeddings is also the output projection.
    pub tied_embeddings: bool,
    /// The token that begins a text, if the file names one.
    pub bos_token: Option<u32>,
    /// The tokens that end an answer, as far as the file names them.
    pub eos_tokens: Vec<u32>,
}

impl DecoderSpec {
    /// From the files; the context is cut to `max_context`.
    pub(in crate::models) fn of(
        source: &Source,
        max_context: Option<usize>,
    ) -> Result<Self, LoadError> {
        match source {
            Source::Gguf(file) => Self::from_gguf(file, max_context),
            Source::Safetensors(dir, _) => Self::read_config(dir, max_context),
        }
    }

    /// Features of q, k and v of a token, side by side.
    pub fn qkv_features(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// The positions that layer `index` uses.
    pub(super) fn uses_local_rope(&self, index: usize) -> bool {
        self.local_rope.is_some() && self.windows[index].is_some()
    }

    /// A window of `size` in every layer that `is_local` names.
    pub(super) fn windows(
        layers: usize,
        size: Option<usize>,
        is_local: impl Fn(usize) -> bool,
    ) -> Vec<Option<usize>> {
        (0..layers).map(|i| size.filter(|_| is_local(i))).collect()
    }
}
