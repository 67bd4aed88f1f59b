//! The inner loops of paged attention, on a tile of [`KEYS`] keys and a group of queries.
//!
//! Scores and sums are computed lane by lane: the lanes of a score are keys, those of a sum are
//! dimensions of a value. So how many queries are in the registers at once is a matter of speed
//! only; each query's numbers come by the same operations in the same order.

use std::ops::Range;

use super::super::logit_statistics::cap;
use super::super::simd::{Arithmetic, Tile, WIDTH};
use super::super::vector_math::exp;

/// Keys per tile: K or V of one head of 64 dimensions is 8 KiB of f32 then.
pub(super) const KEYS: usize = 32;
/// Queries in the registers at once.
pub(super) const QUERY_GROUP: usize = 4;
/// V in scratch has rows of a multiple of this.
pub(super) const DIMS: usize = WIDTH;

/// Scores of a query with the keys of a tile; then their weights.
pub(super) type Scores = [f32; KEYS];

/// `scores[i][j] = queries[i] · keys[·][j]` for `scores.len()` queries, at most [`QUERY_GROUP`],
/// and at least the first `count` keys of the tile.
#[inline(always)]
pub(super) fn score<A: Arithmetic>(
    scores: &mut [Scores],
    queries: &[f32],
    keys: &[Scores],
    count: usize,
) {
    match scores.len() {
        1 => score_group::<A, 1, 2>(scores, queries, keys, count),
        2 => score_group::<A, 2, 2>(scores, queries, keys, count),
        3 => score_group::<A, 3, 2>(scores, queries, keys, count),
        _ => score_group::<A, QUERY_GROUP, 1>(scores, queries, keys, count),
    }
}

#[inline(always)]
fn score_group<A: Arithmetic, const QUERIES: usize, const V: usize>(
    scores: &mut [Scores],
    queries: &[f32],
    keys: &[Scores],
    count: usize,
) {
    let dim = keys.len();
    let queries: [&[f32]; QUERIES] = std::array::from_fn(|i| &queries[i * dim..][..dim]);
    for part in 0..count.div_ceil(V * WIDTH) {
        let mut tile = Tile::<A, QUERIES, V>::zero();
        for (p, keys) in keys.iter().enumerate() {
            let mut column = [0f32; QUERIES];
            for i in 0..QUERIES {
                column[i] = queries[i][p];
            }
            tile.add(column, &lanes::<V>(keys)[part]);
        }
        for (i, scores) in scores.iter_mut().enumerate() {
            scores.as_chunks_mut::<WIDTH>().0.as_chunks_mut::<V>().0[part] = tile.row(i);
        }
    }
}

#[inline(always)]
fn lanes<const V: usize>(values: &[f32]) -> &[[[f32; WIDTH]; V]] {
    values.as_chunks::<WIDTH>().0.as_chunks::<V>().0
}

/// Turns scores into weights `e^(s − m)` with `m` raised to their maximum, 0 where the key is not
/// `visible`, and adds them to `sum`. Returns what must be multiplied to all that was summed under
/// the old `m`.
///
/// Where nothing is visible, nothing changes: the factor is 1.
#[inline(always)]
pub(super) fn weigh<A: Arithmetic>(
    scores: &mut Scores,
    visible: Range<usize>,
    softcap: Option<f32>,
    max: &mut f32,
    sum: &mut f32,
) -> f32 {
    if let Some(limit) = softcap {
        for score in scores.as_chunks_mut::<WIDTH>().0 {
            A::store(cap::<A>(A::load(score), limit), score);
        }
    }
    scores[..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..].fill(f32::NEG_INFINITY);

    let vectors = scores.as_chunks_mut::<WIDTH>().0;
    let mut highest = A::splat(*max);
    for scores in vectors.iter() {
        highest = A::max(A::load(scores), highest);
    }
    let highest = fold::<A>(highest, |a, b| if a > b { a } else { b });
    let shrink = fold::<A>(exp::<A>(A::splat(*max - highest)), |a, _| a);
    *max = highest;
    for scores in vectors.iter_mut() {
        A::store(exp::<A>(A::sub(A::load(scores), A::splat(highest))), scores);
    }

    // `exp` does not reach 0.
    scores[..visible.start].fill(0.0);
    scores[visible.end..].fill(0.0);
    let vectors = scores.as_chunks::<WIDTH>().0;
    let mut total = A::splat(0.0);
    for weights in vectors {
        total = A::add(total, A::load(weights));
    }
    *sum = A::mul_add(*sum, shrink, fold::<A>(total, |a, b| a + b));
    shrink
}

/// Combines the lanes pairwise.
#[inline(always)]
fn fold<A: Arithmetic>(vector: A::Vector, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; WIDTH];
    A::store(vector, &mut lanes);
    let mut width = WIDTH / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `sums[i] = sums[i] · rescale[i] + Σⱼ weights[i][j] · values[j]` for `weights.len()` queries, at
/// most [`QUERY_GROUP`], over the keys of `range`. `sums` and `values` have rows of `padded`.
#[inline(always)]
pub(super) fn add_values<A: Arithmetic>(
    sums: &mut [f32],
    rescale: &[f32],
    weights: &[Scores],
    values: &[f32],
    padded: usize,
    range: Range<usize>,
) {
    let op = AddValues {
        rescale,
        weights,
        values,
        padded,
        range,
    };
    match weights.len() {
        1 => op.group::<A, 1, 4>(sums),
        2 => op.group::<A, 2, 2>(sums),
        3 => op.group::<A, 3, 2>(sums),
        _ => op.group::<A, QUERY_GROUP, 1>(sums),
    }
}

struct AddValues<'a> {
    rescale: &'a [f32],
    weights: &'a [Scores],
    values: &'a [f32],
    padded: usize,
    range: Range<usize>,
}

impl AddValues<'_> {
    #[inline(always)]
    fn group<A: Arithmetic, const QUERIES: usize, const V: usize>(&self, sums: &mut [f32]) {
        let wide = self.padded - self.padded % (V * WIDTH);
        for column in (0..wide).step_by(V * WIDTH) {
            self.columns::<A, QUERIES, V>(sums, column);
        }
        for column in (wide..self.padded).step_by(DIMS) {
            self.columns::<A, QUERIES, { DIMS / WIDTH }>(sums, column);
        }
    }

    #[inline(always)]
    fn columns<A: Arithmetic, const QUERIES: usize, const V: usize>(
        &self,
        sums: &mut [f32],
        column: usize,
    ) {
        let range = self.range.clone();
        let weights: [&[f32]; QUERIES] = std::array::from_fn(|i| &self.weights[i][range.clone()]);
        let values = &self.values[range.start * self.padded..range.end * self.padded];
        let mut tile = Tile::<A, QUERIES, V>::zero();
        for (j, value) in values.chunks_exact(self.padded).enumerate() {
            let mut weight = [0f32; QUERIES];
            for i in 0..QUERIES {
                weight[i] = weights[i][j];
            }
            tile.add(weight, &lanes::<V>(&value[column..][..V * WIDTH])[0]);
        }
        for i in 0..QUERIES {
            let sums = &mut sums[i * self.padded + column..][..V * WIDTH];
            let rescale = A::splat(self.rescale[i]);
            let added = tile.row(i);
            for (sums, added) in sums.as_chunks_mut::<WIDTH>().0.iter_mut().zip(&added) {
                let sum = A::mul_add_vector(A::load(sums), rescale, A::load(added));
                A::store(sum, sums);
            }
        }
    }
}
