//! Queries of a unit against one span of keys, tile by tile, and the sum of spans.

use std::ops::Range;

use super::super::simd::{Arithmetic, Kernel, WIDTH};
use super::super::vector_math::exp;
use super::cache::CacheValue;
use super::layer::{Layer, SPAN, Unit};
use super::norm_and_rotate;
use super::tile::{KEYS, QUERY_GROUP, Scores, add_values, score, weigh};

/// Buffers of a thread, kept from task to task.
#[derive(Default)]
pub(super) struct Scratch {
    /// The unit's queries, normalized, rotated and scaled: `[queries, dim]`.
    pub queries: Vec<f32>,
    /// The position of each.
    pub positions: Vec<usize>,
    /// K of a tile: `[dim]` rows of [`KEYS`].
    pub keys: Vec<Scores>,
    /// V of a tile: `[KEYS, padded]`. The padding is zero and stays so.
    pub values: Vec<f32>,
    /// Scores, then weights, of a tile: `[queries]` rows of [`KEYS`].
    pub scores: Vec<Scores>,
    /// What a tile shrinks the sums before it by, per query.
    pub rescale: Vec<f32>,
    /// Of the span at hand.
    pub running: Running,
    /// Of the spans before it.
    pub total: Running,
}

/// What softmax knows of the keys so far, per query.
#[derive(Default)]
pub(super) struct Running {
    /// `m`; finite, so that the difference of two is never NaN.
    pub max: Vec<f32>,
    /// `l = Σ e^(s − m)`.
    pub sum: Vec<f32>,
    /// `Σ e^(s − m) · v`, `[queries, padded]`.
    pub weighted: Vec<f32>,
}

impl Running {
    pub fn reset(&mut self, queries: usize, padded: usize) {
        self.max.clear();
        self.max.resize(queries, f32::MIN);
        self.sum.clear();
        self.sum.resize(queries, 0.0);
        self.weighted.clear();
        self.weighted.resize(queries * padded, 0.0);
    }
}

/// Takes a unit's queries to scratch: normalized, rotated and scaled.
pub(super) struct Prepare<'a, T> {
    pub layer: &'a Layer<'a, T>,
    pub unit: &'a Unit<'a>,
    pub scratch: &'a mut Scratch,
}

impl<T: CacheValue> Kernel for Prepare<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (layer, unit, scratch) = (self.layer, self.unit, self.scratch);
        let heads = layer.heads;
        scratch.queries.clear();
        scratch.positions.clear();
        let first_row = unit.row.first_token + unit.first_token;
        let rows = layer.qkv[first_row * heads.width()..].chunks_exact(heads.width());
        for (row, position) in rows.zip(unit.first_position()..unit.end_position()) {
            let begin = scratch.queries.len();
            let queries = heads.queries(row, unit.kv_head);
            scratch.queries.extend_from_slice(queries);
            let rotation = layer.rope.map(|rope| rope.at(position));
            for query in scratch.queries[begin..].chunks_exact_mut(heads.dim) {
                norm_and_rotate(query, layer.norm, rotation);
                for q in query {
                    *q *= layer.scale;
                }
                scratch.positions.push(position);
            }
        }
        scratch.keys.resize(heads.dim, [0.0; KEYS]);
        scratch.values.resize(KEYS * layer.padded, 0.0);
        scratch.scores.resize(scratch.positions.len(), [0.0; KEYS]);
        scratch.rescale.resize(scratch.positions.len(), 0.0);
    }
}

/// Computes what a unit's queries have of one span of keys.
pub(super) struct AttendSpan<'a, T> {
    pub layer: &'a Layer<'a, T>,
    pub unit: &'a Unit<'a>,
    pub span: usize,
    /// Prepared for the unit; `running` is the result.
    pub scratch: &'a mut Scratch,
}

impl<T: CacheValue> Kernel for AttendSpan<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (layer, unit, scratch) = (self.layer, self.unit, self.scratch);
        let queries = scratch.positions.len();
        scratch.running.reset(queries, layer.padded);
        let seen = layer.visible_to(unit);
        let start = seen.start.max(self.span * SPAN) / KEYS * KEYS;
        let end = seen.end.min((self.span + 1) * SPAN);
        for tile in (start..end).step_by(KEYS) {
            let positions = seen.start.max(tile)..end.min(tile + KEYS);
            layer.widen_keys(unit, positions.clone(), tile, &mut scratch.keys);
            for first in (0..queries).step_by(QUERY_GROUP) {
                score_and_weigh::<A, T>(layer, tile, first, scratch);
            }
            layer.widen_values(unit, positions, tile, &mut scratch.values);
            for first in (0..queries).step_by(QUERY_GROUP) {
                let last = queries.min(first + QUERY_GROUP) - 1;
                let range = within_tile(tile, layer.visible(scratch.positions[first])).start
                    ..within_tile(tile, layer.visible(scratch.positions[last])).end;
                if range.is_empty() {
                    continue;
                }
                add_values::<A>(
                    &mut scratch.running.weighted[first * layer.padded..],
                    &scratch.rescale[first..=last],
                    &scratch.scores[first..=last],
                    &scratch.values,
                    layer.padded,
                    range,
                );
            }
        }
    }
}

/// The part of `positions` that lies in the tile, from the tile's beginning.
#[inline(always)]
fn within_tile(tile: usize, positions: Range<usize>) -> Range<usize> {
    let within = |position: usize| position.saturating_sub(tile).min(KEYS);
    within(positions.start)..within(positions.end)
}

#[inline(always)]
fn score_and_weigh<A: Arithmetic, T: CacheValue>(
    layer: &Layer<'_, T>,
    tile: usize,
    first: usize,
    scratch: &mut Scratch,
) {
    let end = scratch.positions.len().min(first + QUERY_GROUP);
    let scores = &mut scratch.scores[first..end];
    let positions = &scratch.positions[first..end];
    let dim = layer.heads.dim;
    let count = positions
        .last()
        .map_or(0, |&last| within_tile(tile, layer.visible(last)).end);
    score::<A>(
        scores,
        &scratch.queries[first * dim..],
        &scratch.keys,
        count,
    );
    for (i, (scores, &position)) in scores.iter_mut().zip(positions).enumerate() {
        scratch.rescale[first + i] = weigh::<A>(
            scores,
            within_tile(tile, layer.visible(position)),
            layer.softcap,
            &mut scratch.running.max[first + i],
            &mut scratch.running.sum[first + i],
        );
    }
}

/// Adds what a later span has to what those before it have.
pub(super) struct Merge<'a> {
    pub total: &'a mut Running,
    pub later: &'a Running,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Merge { total, later } = self;
        let padded = later.weighted.len() / later.max.len();
        let rows = total.weighted.chunks_exact_mut(padded);
        let rows = rows.zip(later.weighted.chunks_exact(padded));
        for (i, (weighted, added)) in rows.enumerate() {
            let max = if later.max[i] > total.max[i] {
                later.max[i]
            } else {
                total.max[i]
            };
            let mut factors = [0f32; WIDTH];
            factors[0] = total.max[i] - max;
            factors[1] = later.max[i] - max;
            A::store(exp::<A>(A::load(&factors)), &mut factors);
            let [old, new, ..] = factors;
            total.max[i] = max;
            total.sum[i] = A::mul_add(total.sum[i], old, later.sum[i] * new);
            for (sum, added) in weighted.iter_mut().zip(added) {
                *sum = A::mul_add(*sum, old, added * new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::simd::{Portable, dispatch};
    use super::super::super::testing::{Random, max_error};
    use super::super::{CacheGeometry, Heads, PagedRows};
    use super::*;
    use candle_core::Result;

    #[test]
    fn both_instruction_sets_agree() -> Result<()> {
        let geometry = CacheGeometry {
            blocks: 7,
            block_size: 16,
            kv_heads: 1,
            head_dim: 40,
        };
        let heads = Heads {
            query: 3,
            kv: 1,
            dim: 40,
        };
        let rows = PagedRows::new([(60, 9, &[3, 5, 0, 6, 2][..])], &geometry)?;
        let mut random = Random::new(20);
        let qkv = random.values(9 * heads.width(), 2.0);
        let [keys, values] = [(); 2].map(|()| random.values(7 * 16 * 40, 2.0));
        let layer = Layer {
            heads,
            padded: 48,
            scale: 0.3,
            window: Some(50),
            softcap: Some(3.0),
            norm: None,
            rope: None,
            qkv: &qkv,
            keys: &keys,
            values: &values,
            block_size: 16,
        };
        let row = rows.iter().next().expect("the row");
        let unit = &Unit {
            row,
            kv_head: 0,
            first_token: 0,
            tokens: 9,
        };
        let mut scratch = [Scratch::default(), Scratch::default()];
        for (i, scratch) in scratch.iter_mut().enumerate() {
            let layer = &layer;
            let prepare = Prepare {
                layer,
                unit,
                scratch: &mut *scratch,
            };
            dispatch(prepare);
            let attend = AttendSpan {
                layer,
                unit,
                span: 0,
                scratch,
            };
            if i == 0 {
                attend.run::<Portable>();
            } else {
                dispatch(attend);
            }
        }
        let [portable, best] = scratch.map(|scratch| scratch.running.weighted);
        let portable: Vec<f64> = portable.iter().map(|&x| f64::from(x)).collect();
        assert!(portable.iter().any(|x| x.abs() > 0.1));
        assert!(max_error(&best, &portable) < 2e-5);
        Ok(())
    }
}
