//! A tile of attention: up to 16 or 32 queries of one head against all keys of their row.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators over vectors might not be inlined, and they would go through memory"
)]

use super::super::simd::{Arithmetic, Tile, WIDTH};
use super::super::vector_math::exp;

/// Keys per tile: scores of a tile are `KEYS` by 16 or 32 floats, 3 or 6 KiB, and stay in L1
/// together with the tile's keys and values for head sizes up to 64.
const KEYS: usize = 48;
/// Keys per pass of the score loop: 6 · 16 partial sums fill 12 of the 16 AVX2 registers, 6 · 32
/// fill 12 of the 32 AVX-512 registers.
const KEY_GROUP: usize = 6;
/// Head dimensions that V is padded to a multiple of.
pub(super) const DIMS: usize = WIDTH;

/// Buffers of a thread, kept from task to task.
#[derive(Default)]
pub(super) struct Scratch {
    /// K of one head, `[len up to a multiple of KEY_GROUP, d]`.
    keys: Vec<f32>,
    /// V of one head, `[len, d up to a multiple of DIMS]`.
    values: Vec<f32>,
    /// Scaled Q of one tile, transposed: `[d, lanes]`.
    queries: Vec<f32>,
    /// Scores, then weights, of one tile: `[KEYS, lanes]`.
    scores: Vec<f32>,
    /// `y` of one tile before the division by `l`: `[lanes, padded d]`.
    sums: Vec<f32>,
}

/// One head of one row of the batch, and its place in the rows of `qkv` and of `y`.
#[derive(Clone, Copy)]
pub(super) struct Head {
    /// Tokens of the row of the batch.
    pub len: usize,
    pub hidden: usize,
    /// Dimension of a head, `d`.
    pub dim: usize,
    /// `d` up to a multiple of [`DIMS`].
    pub padded: usize,
    /// First column of the head in q, in k, in v and in `y`.
    pub offset: usize,
}

impl Head {
    #[inline(always)]
    pub fn copy_keys_and_values(self, qkv: &[f32], scratch: &mut Scratch) {
        let Head {
            len,
            hidden,
            dim,
            padded,
            offset,
        } = self;
        // The padding is zero and stays so: only `dim` columns of a row are written, below.
        if scratch.values.len() < len * padded {
            scratch
                .keys
                .resize(len.next_multiple_of(KEY_GROUP) * dim, 0.0);
            scratch.values.resize(len * padded, 0.0);
        }
        let rows = qkv.chunks_exact(3 * hidden);
        let keys = scratch.keys.chunks_exact_mut(dim);
        let values = scratch.values.chunks_exact_mut(padded);
        for ((row, key), value) in rows.zip(keys).zip(values) {
            key.copy_from_slice(&row[hidden + offset..][..dim]);
            value[..dim].copy_from_slice(&row[2 * hidden + offset..][..dim]);
        }
    }
}

/// Computes `y` of `count` queries of one head, at most a tile's `V · WIDTH`. `qkv` and `out`
/// begin at the first of them.
#[inline(always)]
pub(super) fn attend_tile<A: Arithmetic, const V: usize>(
    head: Head,
    count: usize,
    qkv: &[f32],
    bias: &[f32],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let Head {
        len,
        hidden,
        dim,
        padded,
        offset,
    } = head;
    let lanes = V * WIDTH;
    scratch.queries.resize(dim * lanes, 0.0);
    scratch.scores.resize(KEYS * lanes, 0.0);
    scratch.sums.clear();
    scratch.sums.resize(lanes * padded, 0.0);

    let scale = 1.0 / (dim as f32).sqrt();
    let query_bias = &bias[offset..][..dim];
    for (i, row) in qkv.chunks(3 * hidden).take(count).enumerate() {
        let query = &row[offset..][..dim];
        let columns = scratch.queries.chunks_exact_mut(lanes);
        for ((column, q), b) in columns.zip(query).zip(query_bias) {
            column[i] = (q + b) * scale;
        }
    }

    let mut running = Running {
        max: [[f32::NEG_INFINITY; WIDTH]; V],
        sum: [[0.0; WIDTH]; V],
    };
    let queries = lane_rows(&scratch.queries);
    for first in (0..len).step_by(KEYS) {
        let keys_here = KEYS.min(len - first);
        let scores = lane_rows_mut(&mut scratch.scores);
        for (group, keys) in scores
            .chunks_exact_mut(KEY_GROUP)
            .zip(scratch.keys[first * dim..].chunks_exact(KEY_GROUP * dim))
            .take(keys_here.div_ceil(KEY_GROUP))
        {
            score_group::<A, V>(group, keys, queries);
        }
        let scores = &mut scores[..keys_here];
        let rescale = running.weigh::<A>(scores);
        let values = &scratch.values[first * padded..][..keys_here * padded];
        let op = AddValues {
            rescale: rescale.as_flattened(),
            weights: scores,
            values,
            padded,
        };
        if A::MANY_REGISTERS {
            op.all::<A, 8, 2>(&mut scratch.sums, count);
        } else {
            op.all::<A, 4, 1>(&mut scratch.sums, count);
        }
    }

    let value_bias = &bias[2 * hidden + offset..][..dim];
    let totals = running.sum.as_flattened();
    let rows = scratch.sums.chunks_exact(padded).zip(totals);
    for ((sums, total), y) in rows.zip(out.chunks_mut(hidden)).take(count) {
        let inverse = 1.0 / total;
        let y = &mut y[offset..][..dim];
        for ((y, s), b) in y.iter_mut().zip(sums).zip(value_bias) {
            *y = A::mul_add(*s, inverse, *b);
        }
    }
}

/// One value per query of a tile.
type Lanes<const V: usize> = [[f32; WIDTH]; V];

#[inline(always)]
fn lane_rows<const V: usize>(values: &[f32]) -> &[Lanes<V>] {
    values.as_chunks().0.as_chunks().0
}

#[inline(always)]
fn lane_rows_mut<const V: usize>(values: &mut [f32]) -> &mut [Lanes<V>] {
    values.as_chunks_mut().0.as_chunks_mut().0
}

/// `scores[j][i] = keys[j] · queries[·][i]` for [`KEY_GROUP`] keys.
#[inline(always)]
fn score_group<A: Arithmetic, const V: usize>(
    scores: &mut [Lanes<V>],
    keys: &[f32],
    queries: &[Lanes<V>],
) {
    let dim = queries.len();
    let keys: [&[f32]; KEY_GROUP] = std::array::from_fn(|j| &keys[j * dim..][..dim]);
    let mut tile = Tile::<A, KEY_GROUP, V>::zero();
    for (p, query) in queries.iter().enumerate() {
        let mut column = [0f32; KEY_GROUP];
        for j in 0..KEY_GROUP {
            column[j] = keys[j][p];
        }
        tile.add(column, query);
    }
    for (j, score) in scores.iter_mut().enumerate() {
        *score = tile.row(j);
    }
}

/// What softmax knows of the keys so far, per query: their maximum `m`, and `l = Σ e^(s − m)`.
struct Running<const V: usize> {
    max: Lanes<V>,
    sum: Lanes<V>,
}

impl<const V: usize> Running<V> {
    /// Turns the scores of a tile into weights `e^(s − m)`, after raising `m` to the tile's
    /// maximum, and adds them to `l`. Returns by how much what was summed under the old `m`
    /// shrinks.
    #[inline(always)]
    fn weigh<A: Arithmetic>(&mut self, scores: &mut [Lanes<V>]) -> Lanes<V> {
        let mut rescale = [[0f32; WIDTH]; V];
        for v in 0..V {
            let old = A::load(&self.max[v]);
            let mut max = old;
            for score in scores.iter() {
                max = A::max(A::load(&score[v]), max);
            }
            let shrink = exp::<A>(A::sub(old, max));
            let mut sum = A::mul(A::load(&self.sum[v]), shrink);
            for score in scores.iter_mut() {
                let weight = exp::<A>(A::sub(A::load(&score[v]), max));
                sum = A::add(sum, weight);
                A::store(weight, &mut score[v]);
            }
            A::store(shrink, &mut rescale[v]);
            A::store(max, &mut self.max[v]);
            A::store(sum, &mut self.sum[v]);
        }
        rescale
    }
}

/// `sums[i] = sums[i] · rescale[i] + Σⱼ weights[j][i] · values[j]`
struct AddValues<'a, const V: usize> {
    /// One per query.
    rescale: &'a [f32],
    weights: &'a [Lanes<V>],
    /// `[keys, padded]`
    values: &'a [f32],
    padded: usize,
}

impl<const V: usize> AddValues<'_, V> {
    /// For `count` queries, or some more up to a multiple of `QUERIES`, which divides the lanes.
    #[inline(always)]
    fn all<A: Arithmetic, const QUERIES: usize, const WIDE: usize>(
        &self,
        sums: &mut [f32],
        count: usize,
    ) {
        for query in (0..count).step_by(QUERIES) {
            let sums = &mut sums[query * self.padded..][..QUERIES * self.padded];
            let wide = self.padded - self.padded % (WIDE * WIDTH);
            for column in (0..wide).step_by(WIDE * WIDTH) {
                self.columns::<A, QUERIES, WIDE>(sums, query, column);
            }
            for column in (wide..self.padded).step_by(WIDTH) {
                self.columns::<A, QUERIES, 1>(sums, query, column);
            }
        }
    }

    #[inline(always)]
    fn columns<A: Arithmetic, const QUERIES: usize, const WIDE: usize>(
        &self,
        sums: &mut [f32],
        query: usize,
        column: usize,
    ) {
        let mut tile = Tile::<A, QUERIES, WIDE>::zero();
        let values = self.values.chunks_exact(self.padded);
        for (weight, value) in self.weights.iter().zip(values) {
            let weight = weight.as_flattened()[query..].as_chunks::<QUERIES>().0;
            let value = value[column..][..WIDE * WIDTH].as_chunks().0.as_chunks().0;
            tile.add(weight[0], &value[0]);
        }
        for i in 0..QUERIES {
            let sums = &mut sums[i * self.padded + column..][..WIDE * WIDTH];
            let rescale = A::splat(self.rescale[query + i]);
            for (sums, added) in sums.as_chunks_mut().0.iter_mut().zip(&tile.row(i)) {
                let sum = A::mul_add_vector(A::load(sums), rescale, A::load(added));
                A::store(sum, sums);
            }
        }
    }
}
