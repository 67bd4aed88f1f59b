//! What a model does with its encoded tokens: pool them, classify the row, or classify each token.

use candle_core::Tensor;

use super::error::LoadError;
use super::loader::Loader;
use super::plan::HeadPlan;
use super::projection::Projection;
use super::spec::EncoderSpec;
use crate::ops::{Activation, BiasActivation, Pool, Pooling};

/// What the caller wants of the model; checked against its config and weights at load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// One vector per row.
    Embed {
        /// Which tokens make the vector.
        pooling: Pooling,
        /// Divide by the L2 norm.
        normalize: bool,
        /// Keep so many of the first values (Matryoshka), before the norm; `None` keeps all.
        dimension: Option<usize>,
    },
    /// One logit per label and row.
    SequenceClass,
    /// One logit per row: a sequence class with one label, as cross-encoders have.
    PairScore,
    /// One logit per label and token.
    TokenClass,
}

impl Head {
    /// The name that manifests and errors use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::SequenceClass => "sequence-class",
            Self::PairScore => "pair-score",
            Self::TokenClass => "token-class",
        }
    }

    /// Checks what the config alone can tell; whether the tensors exist is the checkpoint's to say.
    ///
    /// # Errors
    /// [`LoadError::Head`] if the head does not fit the model.
    pub fn check(&self, spec: &EncoderSpec) -> Result<(), LoadError> {
        let error = |reason| {
            Err(LoadError::Head {
                head: self.name(),
                reason,
            })
        };
        match self {
            Self::Embed {
                dimension: Some(dimension),
                ..
            } if !(1..=spec.hidden).contains(dimension) => error(format!(
                "dimension {dimension} is not in 1..={}, the model's hidden size",
                spec.hidden
            )),
            Self::PairScore if spec.labels.len() != 1 => error(format!(
                "needs a model with one label; this one has {}",
                spec.labels.len()
            )),
            _ => Ok(()),
        }
    }

    /// The one token of each row that the head looks at, if it looks at one only.
    pub(crate) fn single_token(&self) -> Option<Pooling> {
        match self {
            Self::Embed {
                pooling: pooling @ (Pooling::Cls | Pooling::Last),
                ..
            } => Some(*pooling),
            Self::SequenceClass | Self::PairScore => Some(Pooling::Cls),
            Self::Embed { .. } | Self::TokenClass => None,
        }
    }
}

/// What a model says about one row.
#[derive(Debug, Clone, PartialEq)]
pub enum RowOutput {
    /// The row's vector, `[dimension]`.
    Embedding(Vec<f32>),
    /// Raw scores, `[labels]`; no softmax.
    Logits(Vec<f32>),
    /// Raw scores of each token.
    TokenLogits {
        /// Scores per token.
        labels: usize,
        /// `[len, labels]`, row-major; special tokens included.
        values: Vec<f32>,
    },
}

/// A head with its weights.
#[derive(Debug)]
pub(super) enum LoadedHead {
    Embed(Pool),
    Sequence {
        dense: Projection,
        bias: Tensor,
        activation: Activation,
        out: Projection,
    },
    Tokens {
        out: Projection,
    },
}

impl LoadedHead {
    pub fn load(plan: &HeadPlan, loader: &mut Loader<'_>) -> Result<Self, LoadError> {
        Ok(match plan {
            HeadPlan::Embed(pool) => Self::Embed(*pool),
            HeadPlan::Sequence {
                dense,
                activation,
                out,
            } => Self::Sequence {
                bias: loader.vectors(&dense.biases)?,
                dense: loader.product_only(dense)?,
                activation: *activation,
                out: loader.unquantized_projection(out)?,
            },
            HeadPlan::Tokens { out } => Self::Tokens {
                out: loader.unquantized_projection(out)?,
            },
        })
    }

    /// Values per row (per token, for token classes).
    pub fn output_dim(&self, hidden: usize) -> usize {
        match self {
            Self::Embed(pool) => pool.dimension.unwrap_or(hidden),
            Self::Sequence { out, .. } | Self::Tokens { out } => out.out_features(),
        }
    }

    /// From encoded tokens `[tokens, hidden]` to one output per row. `cu_seqlens` is on the
    /// tensor's device, `lengths` are the same rows on the host.
    pub fn forward(
        &self,
        x: &Tensor,
        cu_seqlens: &Tensor,
        lengths: impl Iterator<Item = usize>,
    ) -> candle_core::Result<Vec<RowOutput>> {
        match self {
            Self::Embed(pool) => {
                let vectors = pool.apply(x, cu_seqlens)?.to_vec2()?;
                Ok(vectors.into_iter().map(RowOutput::Embedding).collect())
            }
            Self::Sequence {
                dense,
                bias,
                activation,
                out,
            } => {
                let first = Pool::plain(Pooling::Cls).apply(x, cu_seqlens)?;
                let x = dense.apply(&first)?;
                BiasActivation(*activation).apply(&x, bias)?;
                let logits = out.apply(&x)?.to_vec2()?;
                Ok(logits.into_iter().map(RowOutput::Logits).collect())
            }
            Self::Tokens { out } => {
                let labels = out.out_features();
                let logits = out.apply(x)?.flatten_all()?.to_vec1::<f32>()?;
                let mut rest = logits.as_slice();
                Ok(lengths
                    .map(|len| {
                        let (values, after) = rest.split_at(len * labels);
                        rest = after;
                        RowOutput::TokenLogits {
                            labels,
                            values: values.to_vec(),
                        }
                    })
                    .collect())
            }
        }
    }
}
