//! Causal attention over a paged cache: each new token attends to all of its sequence so far,
//! through a table of the blocks where that lies.
//!
//! ```text
//! q, k, v = split(qkv)                      heads · d, kv_heads · d, kv_heads · d columns
//! q, k    ← rope(rms(q)), rope(rms(k))      each optional, head by head
//! cache at the token's position ← k, v      rounded to the cache's type
//!
//! sⱼ = scale · q·k[j]                       optionally sⱼ ← c · tanh(sⱼ / c)
//! y  = Σⱼ softmaxⱼ(s) · v[j]                j ≤ p, and j > p − window; k and v as rounded
//!
//! qkv  [tokens, (heads + 2·kv_heads) · d]  f32
//! y    [tokens, heads · d]                 f32   query head h uses K and V of h / (heads/kv_heads)
//! ```
//! Vaswani et al. 2017 (arXiv:1706.03762) with grouped queries (arXiv:2305.13245), a sliding
//! window (arXiv:2004.05150), a soft cap (Gemma 2, arXiv:2408.00118) and normalized queries and
//! keys (arXiv:2302.05442), over the blocks of Kwon et al. 2023 (arXiv:2309.06180).
//!
//! A token's result is the same to the last bit whatever it is computed with: one token at a time,
//! in a chunk or in a whole prompt, alone or in a batch, on one thread or many. See `attend.rs`
//! for the order of the sums that this rests on, and `cache.rs` for the layout of the cache.

mod attend;
mod cache;
#[cfg(feature = "cuda")]
mod device;
mod layer;
mod rows;
mod span;
mod tile;
mod write;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::rms_norm::{Gain, RmsNorm};
use super::rope::{Rope, Rotation};

pub use cache::{CacheGeometry, CacheType, LayerCache};
pub use rows::PagedRows;

/// The op: what a layer's attention is, apart from its weights.
#[derive(Debug, Clone)]
pub struct PagedAttention {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of K and of V.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Multiplies the scores; `1/√head_dim` in most models.
    pub scale: f32,
    /// Keys that a token sees, itself among them; all if `None`.
    pub window: Option<usize>,
    /// Soft cap of the scaled scores.
    pub softcap: Option<f32>,
    /// Norm of each query head, `[head_dim]`, before the rotation.
    pub q_norm: Option<RmsNorm>,
    /// Norm of each key head, `[head_dim]`, before the rotation.
    pub k_norm: Option<RmsNorm>,
    /// Rotation of queries and keys by their positions.
    pub rope: Option<Arc<Rope>>,
}

impl PagedAttention {
    /// Takes the fused projection `qkv`, `[tokens, (heads + 2·kv_heads) · head_dim]`, of the
    /// tokens of `rows`; writes their keys and values to `cache`; and returns what they attend to,
    /// `[tokens, heads · head_dim]`.
    ///
    /// # Errors
    /// If shapes, dtypes or devices do not agree with each other, with `rows` or with this layer,
    /// or if a position is past what `rope` knows.
    pub fn apply(&self, qkv: &Tensor, cache: &LayerCache, rows: &PagedRows) -> Result<Tensor> {
        self.check(rows)?;
        let heads = self.heads();
        if qkv.dims() != [rows.tokens(), heads.width()] {
            bail!(
                "qkv must be {:?} for these rows and heads, is {:?}",
                [rows.tokens(), heads.width()],
                qkv.dims()
            );
        }
        let (blocks, block_size) = (rows.cache_blocks(), rows.block_size());
        let (keys, values) = (&cache.keys, &cache.values);
        let geometry = CacheGeometry {
            blocks,
            block_size,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        };
        if keys.dims() != geometry.keys(keys.device())
            || values.dims() != [blocks, self.kv_heads, block_size, self.head_dim]
        {
            bail!(
                "the cache's keys {:?} and values {:?} must be of {blocks} blocks of {block_size} \
                 tokens, {} heads of {}",
                keys.dims(),
                values.dims(),
                self.kv_heads,
                self.head_dim
            );
        }
        if keys.dtype() != values.dtype() {
            bail!("keys and values of a cache must have the same type");
        }
        #[cfg(feature = "cuda")]
        if keys.device().is_cuda() {
            device::check_heads(self.head_dim)?;
            let op = self;
            return qkv.apply_op1_no_bwd(&device::OnDevice { op, cache, rows });
        }
        keys.inplace_op2(qkv, &write::Keys { op: self, rows })?;
        values.inplace_op2(qkv, &write::Values { op: self, rows })?;
        qkv.apply_op3_no_bwd(keys, values, &attend::Attend { op: self, rows })
    }

    fn check(&self, rows: &PagedRows) -> Result<()> {
        let Self {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self;
        if kv_heads == 0 || head_dim == 0 || heads == 0 || heads % kv_heads != 0 {
            bail!("{heads} query heads and {kv_heads} key heads of {head_dim} do not group");
        }
        if self.window == Some(0) {
            bail!("a token must see at least itself, but the window is 0");
        }
        if let Some(cap) = self.softcap
            && !(cap.is_finite() && cap > 0.0)
        {
            bail!("a soft cap must be positive, is {cap}");
        }
        if let Some(rope) = &self.rope {
            if rope.rotary_dims() > head_dim {
                let rotary = rope.rotary_dims();
                bail!("rope rotates {rotary} dimensions, a head has {head_dim}");
            }
            if rows.end_position() > rope.max_positions() {
                bail!(
                    "position {} is past the last of rope's {}",
                    rows.end_position() - 1,
                    rope.max_positions()
                );
            }
        }
        Ok(())
    }

    fn heads(&self) -> Heads {
        Heads {
            query: self.heads,
            kv: self.kv_heads,
            dim: self.head_dim,
        }
    }
}

/// How `qkv` is divided. `query` is a multiple of `kv`, and nothing is 0.
#[derive(Debug, Clone, Copy)]
struct Heads {
    query: usize,
    kv: usize,
    dim: usize,
}

impl Heads {
    /// Query heads that share a key head.
    fn group(self) -> usize {
        self.query / self.kv
    }

    /// Columns of `qkv`.
    fn width(self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }

    /// Columns of all keys, or of all values, of a token.
    fn kv_width(self) -> usize {
        self.kv * self.dim
    }

    /// The queries in a row of `qkv` that share key head `kv_head`: `[group, dim]`.
    fn queries(self, row: &[f32], kv_head: usize) -> &[f32] {
        let width = self.group() * self.dim;
        &row[kv_head * width..][..width]
    }

    /// The keys in a row of `qkv`: `[kv_heads, dim]`.
    fn keys(self, row: &[f32]) -> &[f32] {
        &row[self.query * self.dim..][..self.kv_width()]
    }

    /// The values in a row of `qkv`: `[kv_heads, dim]`.
    fn values(self, row: &[f32]) -> &[f32] {
        &row[(self.query + self.kv) * self.dim..][..self.kv_width()]
    }
}

/// What is done to each head of one token's queries or keys.
#[inline(always)]
fn norm_and_rotate(head: &mut [f32], norm: Option<Gain<'_>>, rotation: Option<Rotation<'_>>) {
    if let Some(norm) = norm {
        norm.normalize(head);
    }
    if let Some(rotation) = rotation {
        rotation.apply(head);
    }
}
