//! One layer: attention, then the gated feed-forward block, each behind a norm.

use std::sync::Arc;

use candle_core::{Result as DeviceResult, Tensor};

use super::super::error::LoadError;
use super::super::loader::Loader;
use super::super::projection::Projection;
use super::plan::LayerPlan;
use super::spec::DecoderSpec;
use crate::ops::{
    GatedActivation, LayerCache, PagedAttention, PagedRows, ResidualRmsNorm, RmsNorm, Rope,
};

/// A layer without its first norm, which the layer before it applies, and with the one that comes
/// after it.
#[derive(Debug)]
pub(super) struct Layer {
    /// q, k and v in one projection.
    qkv: Projection,
    attention: PagedAttention,
    attention_out: Projection,
    after_attention: ResidualRmsNorm,
    gate_up: Projection,
    activation: GatedActivation,
    down: Projection,
    after_feed: ResidualRmsNorm,
}

impl Layer {
    pub fn load(
        plan: &LayerPlan,
        spec: &DecoderSpec,
        index: usize,
        rope: &Arc<Rope>,
        next_norm: RmsNorm,
        loader: &mut Loader<'_>,
    ) -> Result<Self, LoadError> {
        let mut norm = |plan| loader.norm(plan, spec.norm_offset, spec.norm_epsilon);
        let (q_norm, k_norm) = match &plan.head_norms {
            Some([q, k]) => (Some(norm(q)?), Some(norm(k)?)),
            None => (None, None),
        };
        let post_attention = plan
            .post_attention_norm
            .as_ref()
            .map(&mut norm)
            .transpose()?;
        let post_feed = plan.post_feed_norm.as_ref().map(&mut norm).transpose()?;
        let feed_norm = norm(&plan.feed_norm)?;
        Ok(Self {
            qkv: loader.projection(&plan.qkv)?,
            attention: PagedAttention {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                head_dim: spec.head_dim,
                scale: spec.attention_scale,
                window: spec.windows[index],
                softcap: spec.attention_softcap,
                q_norm,
                k_norm,
                rope: Some(rope.clone()),
            },
            attention_out: loader.projection(&plan.attention_out)?,
            after_attention: ResidualRmsNorm::new(post_attention, feed_norm),
            gate_up: loader.projection(&plan.gate_up)?,
            activation: GatedActivation(spec.activation),
            down: loader.projection(&plan.down)?,
            after_feed: ResidualRmsNorm::new(post_feed, next_norm),
        })
    }

    /// The normed residual `[tokens, hidden]` to what the heads saw, `[tokens, heads · head_dim]`;
    /// keys and values go to the cache.
    pub fn attend(
        &self,
        normed: &Tensor,
        cache: &LayerCache,
        rows: &PagedRows,
    ) -> DeviceResult<Tensor> {
        self.attention.apply(&self.qkv.apply(normed)?, cache, rows)
    }

    /// Adds to the residual `x`, in place, what comes of `attended`; returns it normed for what
    /// follows the layer.
    pub fn feed(&self, x: &Tensor, attended: &Tensor) -> DeviceResult<Tensor> {
        let delta = self.attention_out.apply(attended)?;
        let normed = self.after_attention.apply(x, &delta)?;
        let gated = self.activation.apply(&self.gate_up.apply(&normed)?)?;
        let delta = self.down.apply(&gated)?;
        self.after_feed.apply(x, &delta)
    }
}
