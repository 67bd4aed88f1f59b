//! Linear layers and the table of embeddings, in f32 or quantized.

use candle_core::{Result, Tensor};

use crate::ops::{Compute, Linear, QuantizedLinear};

/// A linear layer of one or several weights side by side.
#[derive(Debug, Clone)]
pub(super) enum Projection {
    /// In f32.
    Dense(Linear),
    /// As in a GGUF file, or quantized at load.
    Quantized(QuantizedLinear),
}

impl Projection {
    /// `[tokens, in]` to `[tokens, out]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(linear) => linear.apply(x),
            Self::Quantized(linear) => linear.apply(x),
        }
    }

    /// In which precision the ops beside it may compute, too.
    pub fn compute(&self) -> Compute {
        match self {
            Self::Dense(linear) => linear.compute(),
            Self::Quantized(_) => Compute::F32,
        }
    }

    /// The layer, if its product can run on some rows of values alone.
    pub fn on_rows(&self) -> Option<&Linear> {
        match self {
            Self::Dense(linear) if linear.is_on_cpu() => Some(linear),
            _ => None,
        }
    }

    /// Whether all of it is in f32.
    pub fn is_dense(&self) -> bool {
        matches!(self, Self::Dense(_))
    }

    /// Number of output features.
    pub fn out_features(&self) -> usize {
        match self {
            Self::Dense(linear) => linear.out_features(),
            Self::Quantized(linear) => linear.out_features(),
        }
    }
}

/// The table of embeddings, `[vocabulary, hidden]`.
#[derive(Debug, Clone)]
pub(super) enum Embedding {
    /// In f32.
    Dense(Tensor),
    /// Quantized; where embeddings are tied, it shares its memory with the output projection.
    Quantized(QuantizedLinear),
}

impl Embedding {
    /// The rows of `tokens`, times `scale`: a new tensor `[tokens, hidden]`, f32. Every id must be
    /// in the vocabulary.
    pub fn rows(&self, tokens: &[u32], scale: f32) -> Result<Tensor> {
        match self {
            Self::Quantized(table) => table.rows(tokens, scale),
            Self::Dense(table) => {
                let ids = Tensor::from_slice(tokens, tokens.len(), table.device())?;
                let rows = table.index_select(&ids, 0)?;
                if scale.to_bits() == 1f32.to_bits() {
                    Ok(rows)
                } else {
                    rows.affine(scale.into(), 0.0)
                }
            }
        }
    }
}
