//! One layer's attention over the cache of a step, and which parts of the cache a unit of queries
//! reads.

use std::ops::Range;

use super::super::rms_norm::Gain;
use super::super::rope::Rope;
use super::Heads;
use super::cache::CacheValue;
use super::rows::RowView;
use super::tile::{KEYS, Scores};

/// Keys after which sums begin anew, a multiple of [`KEYS`].
pub(super) const SPAN: usize = 512;

/// What all units share.
pub(super) struct Layer<'a, T> {
    pub heads: Heads,
    /// `dim` up to a multiple of [`DIMS`].
    pub padded: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    pub norm: Option<Gain<'a>>,
    pub rope: Option<&'a Rope>,
    pub qkv: &'a [f32],
    pub keys: &'a [T],
    pub values: &'a [T],
    pub block_size: usize,
}

/// Consecutive tokens of a row, with the query heads that share a key head.
#[derive(Clone, Copy)]
pub(super) struct Unit<'a> {
    pub row: RowView<'a>,
    pub kv_head: usize,
    /// Within the row.
    pub first_token: usize,
    pub tokens: usize,
}

impl Unit<'_> {
    pub fn first_position(&self) -> usize {
        self.row.first_position + self.first_token
    }

    pub fn end_position(&self) -> usize {
        self.first_position() + self.tokens
    }
}

impl<T: CacheValue> Layer<'_, T> {
    /// The positions that the token at `position` attends to.
    pub fn visible(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        let start = self.window.map_or(0, |window| end.saturating_sub(window));
        start..end
    }

    /// The positions that any token of the unit attends to.
    pub fn visible_to(&self, unit: &Unit) -> Range<usize> {
        self.visible(unit.first_position()).start..unit.end_position()
    }

    /// The spans, by number, in which they lie.
    pub fn spans(&self, unit: &Unit) -> Range<usize> {
        let visible = self.visible_to(unit);
        visible.start / SPAN..visible.end.div_ceil(SPAN)
    }

    /// K of `positions` of the unit's head, to the lanes of a tile that begins at `tile`.
    pub fn widen_keys(
        &self,
        unit: &Unit,
        positions: Range<usize>,
        tile: usize,
        keys: &mut [Scores],
    ) {
        let Heads { kv, dim, .. } = self.heads;
        let keys = keys.as_flattened_mut();
        for run in self.runs(unit, positions) {
            let head = (run.block * kv + unit.kv_head) * dim * self.block_size;
            let source = &self.keys[head..][..dim * self.block_size];
            T::widen(
                &source[run.slot..],
                self.block_size,
                &mut keys[run.position - tile..],
                KEYS,
                dim,
                run.len,
            );
        }
    }

    /// V of `positions` of the unit's head, to the rows of a tile that begins at `tile`.
    pub fn widen_values(
        &self,
        unit: &Unit,
        positions: Range<usize>,
        tile: usize,
        values: &mut [f32],
    ) {
        let Heads { kv, dim, .. } = self.heads;
        for run in self.runs(unit, positions) {
            let head = (run.block * kv + unit.kv_head) * dim * self.block_size;
            let source = &self.values[head..][..dim * self.block_size];
            let (rows, width) = if self.padded == dim {
                (1, run.len * dim)
            } else {
                (run.len, dim)
            };
            T::widen(
                &source[run.slot * dim..],
                width,
                &mut values[(run.position - tile) * self.padded..],
                width.max(self.padded),
                rows,
                width,
            );
        }
    }

    /// Cuts positions where their blocks end.
    fn runs(&self, unit: &Unit, positions: Range<usize>) -> impl Iterator<Item = Run> {
        let (blocks, block_size) = (unit.row.blocks, self.block_size);
        let mut position = positions.start;
        std::iter::from_fn(move || {
            let left = positions
                .end
                .checked_sub(position)
                .filter(|&left| left > 0)?;
            let slot = position % block_size;
            let run = Run {
                block: blocks[position / block_size] as usize,
                slot,
                position,
                len: left.min(block_size - slot),
            };
            position += run.len;
            Some(run)
        })
    }
}

/// Consecutive positions in one block.
struct Run {
    block: usize,
    /// Of the first, in the block.
    slot: usize,
    position: usize,
    len: usize,
}
