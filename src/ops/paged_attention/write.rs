//! Keys and values of new tokens into the cache: keys normalized and rotated, both rounded to the
//! cache's type.
//!
//! The arithmetic is done in parallel; the writing, which goes to places that the block tables
//! name, is not: it is some bytes per token.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, bail};
use half::f16;

use super::super::operand::{f32_values, read};
use super::super::parallel::for_row_blocks;
use super::super::rms_norm::Gain;
use super::super::rope::Rope;
use super::super::simd::{Arithmetic, Kernel, dispatch};
use super::cache::{CacheValue, cache_values_mut};
use super::rows::PagedRows;
use super::{Heads, PagedAttention, norm_and_rotate};

/// Writes to the cache's keys. [`PagedAttention::apply`] has checked the shapes.
pub(super) struct Keys<'a> {
    pub op: &'a PagedAttention,
    pub rows: &'a PagedRows,
}

impl InplaceOp2 for Keys<'_> {
    fn name(&self) -> &'static str {
        "paged-attention-keys"
    }

    fn cpu_fwd(
        &self,
        keys: &mut CpuStorage,
        keys_layout: &Layout,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
    ) -> Result<()> {
        let qkv = f32_values(qkv, qkv_layout, "qkv")?;
        let heads = self.op.heads();
        let norm = self.op.k_norm.as_ref();
        let weight = norm.map(|norm| read(norm.weight(), "key norm weight"));
        let norm = match (norm, &weight) {
            (Some(norm), Some(weight)) => Some(Gain {
                weight: weight.values(heads.dim)?,
                epsilon: norm.epsilon(),
            }),
            _ => None,
        };
        let positions: Vec<usize> = self.rows.token_positions().collect();
        let mut prepared = vec![0f32; positions.len() * heads.kv_width()];
        for_row_blocks(&mut prepared, heads.kv_width(), |first, keys| {
            dispatch(PrepareKeys {
                keys,
                qkv: &qkv[first * heads.width()..],
                positions: &positions[first..],
                heads,
                norm,
                rope: self.op.rope.as_deref(),
            });
        });
        match keys {
            CpuStorage::F32(_) => self.write::<f32>(keys, keys_layout, &prepared),
            CpuStorage::F16(_) => self.write::<f16>(keys, keys_layout, &prepared),
            _ => bail!("a cache must be f32 or f16"),
        }
    }
}

impl Keys<'_> {
    /// `prepared` is `[tokens, kv_heads, dim]`.
    fn write<T: CacheValue>(
        &self,
        keys: &mut CpuStorage,
        layout: &Layout,
        prepared: &[f32],
    ) -> Result<()> {
        let Heads { kv, dim, .. } = self.op.heads();
        let keys = cache_values_mut::<T>(keys, layout, layout.shape().elem_count())?;
        let block_size = self.rows.block_size();
        let mut narrowed = vec![T::default(); kv * dim];
        let slots = slots(self.rows);
        for (token, (block, slot)) in prepared.chunks_exact(kv * dim).zip(slots) {
            T::narrow(token, &mut narrowed);
            let block = &mut keys[block * kv * dim * block_size..];
            for (row, value) in block.chunks_exact_mut(block_size).zip(&narrowed) {
                row[slot] = *value;
            }
        }
        Ok(())
    }
}

/// Writes to the cache's values. [`PagedAttention::apply`] has checked the shapes.
pub(super) struct Values<'a> {
    pub op: &'a PagedAttention,
    pub rows: &'a PagedRows,
}

impl InplaceOp2 for Values<'_> {
    fn name(&self) -> &'static str {
        "paged-attention-values"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        values_layout: &Layout,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
    ) -> Result<()> {
        let qkv = f32_values(qkv, qkv_layout, "qkv")?;
        match values {
            CpuStorage::F32(_) => self.write::<f32>(values, values_layout, qkv),
            CpuStorage::F16(_) => self.write::<f16>(values, values_layout, qkv),
            _ => bail!("a cache must be f32 or f16"),
        }
    }
}

impl Values<'_> {
    fn write<T: CacheValue>(
        &self,
        values: &mut CpuStorage,
        layout: &Layout,
        qkv: &[f32],
    ) -> Result<()> {
        let heads = self.op.heads();
        let values = cache_values_mut::<T>(values, layout, layout.shape().elem_count())?;
        let block_size = self.rows.block_size();
        let head_len = block_size * heads.dim;
        for (token, (block, slot)) in qkv.chunks_exact(heads.width()).zip(slots(self.rows)) {
            let block = &mut values[block * heads.kv * head_len..];
            let new = heads.values(token).chunks_exact(heads.dim);
            for (head, new) in block.chunks_exact_mut(head_len).zip(new) {
                T::narrow(new, &mut head[slot * heads.dim..][..heads.dim]);
            }
        }
        Ok(())
    }
}

/// Block, and place in the block, of each token.
fn slots(rows: &PagedRows) -> impl Iterator<Item = (usize, usize)> {
    let block_size = rows.block_size();
    rows.iter().flat_map(move |row| {
        (row.first_position..row.first_position + row.tokens).map(move |position| {
            let block = row.blocks[position / block_size];
            (block as usize, position % block_size)
        })
    })
}

struct PrepareKeys<'a> {
    /// Of as many tokens as it is long: `[tokens, kv_heads, dim]`.
    keys: &'a mut [f32],
    /// From the first of these tokens on.
    qkv: &'a [f32],
    positions: &'a [usize],
    heads: Heads,
    norm: Option<Gain<'a>>,
    rope: Option<&'a Rope>,
}

impl Kernel for PrepareKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let heads = self.heads;
        let tokens = self.keys.chunks_exact_mut(heads.kv_width());
        let rows = self.qkv.chunks_exact(heads.width()).zip(self.positions);
        for (keys, (row, &position)) in tokens.zip(rows) {
            keys.copy_from_slice(heads.keys(row));
            let rotation = self.rope.map(|rope| rope.at(position));
            for key in keys.chunks_exact_mut(heads.dim) {
                norm_and_rotate(key, self.norm, rotation);
            }
        }
    }
}
