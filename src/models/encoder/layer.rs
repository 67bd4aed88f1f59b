//! A layer of the encoder, in two parts: its first product, and the rest.

use std::ops::Range;

use candle_core::{Result as DeviceResult, Tensor};

use super::super::error::LoadError;
use super::super::loader::Loader;
use super::super::plan::{LayerPlan, NormPlan};
use super::super::projection::Projection;
use super::super::spec::EncoderSpec;
use super::super::tensor_plan::ProjectionPlan;
use super::on_rows::LayerOnRows;
use crate::ops::{Attention, AttentionIn, BiasActivation, Pool, Pooling, ResidualNorm};

/// A layer with its weights.
#[derive(Debug)]
pub(super) struct Layer {
    /// q, k and v in one matrix.
    qkv: Projection,
    attention: Attention,
    attention_out: Projection,
    pub(super) attention_norm: ResidualNorm,
    feed_in: Projection,
    pub(super) feed_bias: Tensor,
    pub(super) activation: BiasActivation,
    feed_out: Projection,
    pub(super) feed_norm: ResidualNorm,
}

impl Layer {
    pub fn load(
        plan: &LayerPlan,
        spec: &EncoderSpec,
        loader: &mut Loader<'_>,
    ) -> Result<Self, LoadError> {
        let mut residual_norm = |linear: &ProjectionPlan, norm: &NormPlan| {
            Ok::<_, LoadError>(ResidualNorm {
                bias: loader.vectors(&linear.biases)?,
                weight: loader.plain(&norm.weight)?,
                norm_bias: loader.plain(&norm.bias)?,
                epsilon: spec.norm_epsilon,
            })
        };
        let attention_norm = residual_norm(&plan.attention_out, &plan.attention_norm)?;
        let feed_norm = residual_norm(&plan.feed_out, &plan.feed_norm)?;
        Ok(Self {
            qkv: loader.product_only(&plan.qkv)?,
            attention: Attention {
                heads: spec.heads,
                bias: Some(loader.vectors(&plan.qkv.biases)?),
            },
            attention_out: loader.product_only(&plan.attention_out)?,
            attention_norm,
            feed_in: loader.product_only(&plan.feed_in)?,
            feed_bias: loader.vectors(&plan.feed_in.biases)?,
            activation: BiasActivation(spec.activation),
            feed_out: loader.product_only(&plan.feed_out)?,
            feed_norm,
        })
    }

    /// `x` `[tokens, hidden]` to the same shape, or to `[rows, hidden]` if one token per row is
    /// all that is kept. No row has more than `longest` tokens.
    pub fn forward(
        &self,
        x: &Tensor,
        cu_seqlens: &Tensor,
        longest: usize,
        keep: Option<Pooling>,
    ) -> DeviceResult<Tensor> {
        self.forward_from(&self.project(x)?, x, cu_seqlens, longest, keep)
    }

    /// Queries, keys and values, without their bias: `[tokens, 3 · hidden]`.
    pub fn project(&self, x: &Tensor) -> DeviceResult<Tensor> {
        self.qkv.apply(x)
    }

    /// As [`Layer::forward`], after [`Layer::project`].
    pub fn forward_from(
        &self,
        qkv: &Tensor,
        x: &Tensor,
        cu_seqlens: &Tensor,
        longest: usize,
        keep: Option<Pooling>,
    ) -> DeviceResult<Tensor> {
        let attended = self.attention().apply_within(qkv, cu_seqlens, longest)?;
        match keep {
            None => self.finish(&attended, x),
            Some(pooling) => {
                let pool = Pool::plain(pooling);
                let attended = pool.apply(&attended, cu_seqlens)?;
                self.finish(&attended, &pool.apply(x, cu_seqlens)?)
            }
        }
    }

    /// As [`Layer::forward_from`], for some of the tokens: `x` is theirs, `qkv` is of the whole
    /// batch.
    pub fn forward_part(
        &self,
        qkv: &Tensor,
        x: &Tensor,
        cu_seqlens: &Tensor,
        part: Range<usize>,
    ) -> DeviceResult<Tensor> {
        let attended = self.attention().apply_to_part(qkv, cu_seqlens, part)?;
        self.finish(&attended, x)
    }

    /// The layer for threads that have each some tokens and need nothing of each other but keys and
    /// values, if its weights allow it: the same bits, without a tensor for every step between.
    pub fn on_rows(&self) -> Option<LayerOnRows<'_>> {
        Some(LayerOnRows {
            layer: self,
            qkv: self.qkv.on_rows()?,
            attention_out: self.attention_out.on_rows()?,
            feed_in: self.feed_in.on_rows()?,
            feed_out: self.feed_out.on_rows()?,
        })
    }

    /// Attention in the precision of the product before it.
    pub fn attention(&self) -> AttentionIn<'_> {
        self.attention.computing(self.qkv.compute())
    }

    /// Whether its weights are f32.
    pub fn is_dense(&self) -> bool {
        let products = [
            &self.qkv,
            &self.attention_out,
            &self.feed_in,
            &self.feed_out,
        ];
        products.into_iter().all(Projection::is_dense)
    }

    fn finish(&self, attended: &Tensor, x: &Tensor) -> DeviceResult<Tensor> {
        let y = self.attention_out.apply(attended)?;
        self.attention_norm.apply(&y, x)?;
        let inner = self.feed_in.apply(&y)?;
        self.activation.apply(&inner, &self.feed_bias)?;
        let out = self.feed_out.apply(&inner)?;
        self.feed_norm.apply(&out, &y)?;
        Ok(out)
    }
}
