//! A tile of attention: up to 16 or 32 queries of one head against all keys of their row.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators over vectors might not be inlined, and they would go through memory"
)]

use super::super::linear::dot::Dot;
use super::super::simd::{Arithmetic, WIDTH};
use super::products::Products;

/// Keys per tile: scores of a tile are `KEYS` by 16 or 32 floats, 3 or 6 KiB, and stay in L1
/// together with the tile's keys and values for head sizes up to 64.
const KEYS: usize = 48;
/// Keys per pass of the score loop: 6 · 16 partial sums fill 12 of the 16 AVX2 registers, 6 · 32
/// fill 12 of the 32 AVX-512 registers.
const KEY_GROUP: usize = 6;
/// Head dimensions that V is padded to a multiple of.
pub(super) const DIMS: usize = WIDTH;

/// Buffers of a thread, kept from task to task. A word is one value, or two that are multiplied
/// together.
#[derive(Default)]
pub(super) struct Scratch {
    /// K of one head, `[len up to a multiple of KEY_GROUP, words of d]`.
    keys: Vec<u32>,
    /// V of one head, `[words of len, d up to a multiple of DIMS]`.
    values: Vec<u32>,
    /// Scaled Q of one tile, transposed: `[words of d, lanes]`.
    queries: Vec<u32>,
    /// Scores, then weights, of one tile: `[KEYS, lanes]`, then `[words of KEYS, lanes]`.
    scores: Vec<u32>,
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
    /// Words of a query or a key. Where a word has two values, they are the `i`-th and that as far
    /// behind it, so that a row is packed lane by lane.
    #[inline(always)]
    fn words<P: Products>(self) -> usize {
        match P::PER_WORD {
            1 => self.dim,
            per_word => self.dim.div_ceil(per_word * WIDTH) * WIDTH,
        }
    }

    #[inline(always)]
    pub fn copy_keys_and_values<P: Products>(self, qkv: &[f32], scratch: &mut Scratch) {
        let Head {
            len,
            hidden,
            dim,
            padded,
            offset,
        } = self;
        let words = self.words::<P>();
        let pairs = len.div_ceil(P::PER_WORD);
        let grow = |buffer: &mut Vec<u32>, len: usize| buffer.resize(buffer.len().max(len), 0);
        grow(&mut scratch.keys, len.next_multiple_of(KEY_GROUP) * words);
        grow(&mut scratch.values, pairs * padded);
        let key = |t: usize| &qkv[t * 3 * hidden + hidden + offset..][..dim];
        let value = |t: usize| &qkv[t * 3 * hidden + 2 * hidden + offset..][..dim];
        for (t, to) in scratch.keys.chunks_exact_mut(words).take(len).enumerate() {
            if P::PER_WORD == 1 {
                to.copy_from_slice(bytemuck::cast_slice(key(t)));
            } else {
                pack_row::<P>(to, key(t));
            }
        }
        for (t, to) in scratch
            .values
            .chunks_exact_mut(padded)
            .take(pairs)
            .enumerate()
        {
            let low = value(t * P::PER_WORD);
            if P::PER_WORD == 1 {
                to[..dim].copy_from_slice(bytemuck::cast_slice(low));
                to[dim..].fill(0);
                continue;
            }
            // Beside the last of an odd number lies nothing.
            let second = t * P::PER_WORD + 1;
            let high = (second < len).then(|| value(second));
            for (i, to) in to.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
                let high = high.map_or([0.0; WIDTH], |high| some(high, i * WIDTH));
                *to = P::pack(&some(low, i * WIDTH), &high);
            }
        }
    }
}

/// The values from `at` on that a vector has room for, and zeros if there are too few.
#[inline(always)]
fn some(values: &[f32], at: usize) -> [f32; WIDTH] {
    let values = values.get(at..).unwrap_or_default();
    if let Some(values) = values.first_chunk::<WIDTH>() {
        return *values;
    }
    let mut padded = [0f32; WIDTH];
    padded[..values.len()].copy_from_slice(values);
    padded
}

/// Packs a query or a key in pairs.
#[inline(always)]
fn pack_row<P: Products>(words: &mut [u32], row: &[f32]) {
    for (i, words) in words.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
        let at = i * 2 * WIDTH;
        *words = P::pack(&some(row, at), &some(row, at + WIDTH));
    }
}

/// Computes `y` of `count` queries of one head, at most a tile's `V · WIDTH`. `qkv` and `out`
/// begin at the first of them.
#[inline(always)]
pub(super) fn attend_tile<A: Arithmetic, P: Products, const V: usize>(
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
    let words = head.words::<P>();
    scratch.queries.resize(words * lanes, 0);
    scratch.scores.resize(KEYS * lanes, 0);
    scratch.sums.clear();
    scratch.sums.resize(lanes * padded, 0.0);
    place_queries::<A, P>(head, count, lanes, qkv, bias, &mut scratch.queries);

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
            .zip(scratch.keys[first * words..].chunks_exact(KEY_GROUP * words))
            .take(keys_here.div_ceil(KEY_GROUP))
        {
            score_group::<P, V>(group, keys, queries);
        }
        let rescale = running.weigh::<A, P>(scores, keys_here);
        let pairs = keys_here.div_ceil(P::PER_WORD);
        let values = &scratch.values[first / P::PER_WORD * padded..][..pairs * padded];
        let op = AddValues {
            rescale: rescale.as_flattened(),
            weights: &scores[..pairs],
            values,
            padded,
        };
        if A::MANY_REGISTERS {
            op.all::<A, P, 8, 2>(&mut scratch.sums, count);
        } else {
            op.all::<A, P, 4, 1>(&mut scratch.sums, count);
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

/// Scales the queries of a tile, with their bias, and puts them side by side, one in each lane.
#[inline(always)]
fn place_queries<A: Arithmetic, P: Products>(
    head: Head,
    count: usize,
    lanes: usize,
    qkv: &[f32],
    bias: &[f32],
    words: &mut [u32],
) {
    let Head {
        hidden,
        dim,
        offset,
        ..
    } = head;
    let scale = A::splat(1.0 / (dim as f32).sqrt());
    let bias = &bias[offset..][..dim];
    for (i, row) in qkv.chunks(3 * hidden).take(count).enumerate() {
        let query = &row[offset..][..dim];
        let scaled = |at: usize| {
            let sum = A::add(A::load(&some(query, at)), A::load(&some(bias, at)));
            let mut values = [0f32; WIDTH];
            A::store(A::mul(sum, scale), &mut values);
            values
        };
        for (c, columns) in words.chunks_mut(WIDTH * lanes).enumerate() {
            let packed = if P::PER_WORD == 1 {
                bytemuck::cast(scaled(c * WIDTH))
            } else {
                P::pack(&scaled(c * 2 * WIDTH), &scaled(c * 2 * WIDTH + WIDTH))
            };
            for (column, word) in columns.chunks_exact_mut(lanes).zip(packed) {
                column[i] = word;
            }
        }
    }
}

/// One word per query of a tile.
type Lanes<const V: usize> = [[u32; WIDTH]; V];
/// One value per query of a tile.
type Floats<const V: usize> = [[f32; WIDTH]; V];

#[inline(always)]
fn lane_rows<const V: usize>(words: &[u32]) -> &[Lanes<V>] {
    words.as_chunks().0.as_chunks().0
}

#[inline(always)]
fn lane_rows_mut<const V: usize>(words: &mut [u32]) -> &mut [Lanes<V>] {
    words.as_chunks_mut().0.as_chunks_mut().0
}

/// `scores[j][i] = keys[j] · queries[·][i]` for [`KEY_GROUP`] keys.
#[inline(always)]
fn score_group<P: Products, const V: usize>(
    scores: &mut [Lanes<V>],
    keys: &[u32],
    queries: &[Lanes<V>],
) {
    let words = queries.len();
    let keys: [&[u32]; KEY_GROUP] = std::array::from_fn(|j| &keys[j * words..][..words]);
    let mut sums = [[P::Dot::zero(); V]; KEY_GROUP];
    for (p, query) in queries.iter().enumerate() {
        for j in 0..KEY_GROUP {
            for v in 0..V {
                sums[j][v] = P::Dot::add(sums[j][v], keys[j][p], P::Dot::load(&query[v]));
            }
        }
    }
    for (j, score) in scores.iter_mut().enumerate() {
        for v in 0..V {
            score[v] = P::Dot::store(sums[j][v]);
        }
    }
}

/// What softmax knows of the keys so far, per query: their maximum `m`, and `l = Σ e^(s − m)`.
struct Running<const V: usize> {
    max: Floats<V>,
    sum: Floats<V>,
}

impl<const V: usize> Running<V> {
    /// Turns the scores of the first `keys` of a tile into words of weights `e^(s − m)`, after
    /// raising `m` to the tile's maximum, and adds them to `l`. Returns by how much what was summed
    /// under the old `m` shrinks.
    #[inline(always)]
    fn weigh<A: Arithmetic, P: Products>(
        &mut self,
        scores: &mut [Lanes<V>],
        keys: usize,
    ) -> Floats<V> {
        let mut rescale = [[0f32; WIDTH]; V];
        for v in 0..V {
            let old = A::load(&self.max[v]);
            let mut max = old;
            for score in &scores[..keys] {
                max = A::max(A::load(bytemuck::cast_ref(&score[v])), max);
            }
            let shrink = P::exp::<A>(A::sub(old, max));
            let mut sum = A::mul(A::load(&self.sum[v]), shrink);
            for word in 0..keys.div_ceil(P::PER_WORD) {
                let first = word * P::PER_WORD;
                let mut low = [0f32; WIDTH];
                let score = A::load(bytemuck::cast_ref(&scores[first][v]));
                let weight = P::exp::<A>(A::sub(score, max));
                sum = A::add(sum, weight);
                A::store(weight, &mut low);
                if P::PER_WORD == 1 {
                    scores[word][v] = bytemuck::cast(low);
                    continue;
                }
                let mut high = [0f32; WIDTH];
                if first + 1 < keys {
                    let score = A::load(bytemuck::cast_ref(&scores[first + 1][v]));
                    let weight = P::exp::<A>(A::sub(score, max));
                    sum = A::add(sum, weight);
                    A::store(weight, &mut high);
                }
                scores[word][v] = P::pack(&low, &high);
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
    /// `[words of keys, padded]`
    values: &'a [u32],
    padded: usize,
}

impl<const V: usize> AddValues<'_, V> {
    /// For `count` queries, or some more up to a multiple of `QUERIES`, which divides the lanes.
    #[inline(always)]
    fn all<A: Arithmetic, P: Products, const QUERIES: usize, const WIDE: usize>(
        &self,
        sums: &mut [f32],
        count: usize,
    ) {
        for query in (0..count).step_by(QUERIES) {
            let sums = &mut sums[query * self.padded..][..QUERIES * self.padded];
            let wide = self.padded - self.padded % (WIDE * WIDTH);
            for column in (0..wide).step_by(WIDE * WIDTH) {
                self.columns::<A, P, QUERIES, WIDE>(sums, query, column);
            }
            for column in (wide..self.padded).step_by(WIDTH) {
                self.columns::<A, P, QUERIES, 1>(sums, query, column);
            }
        }
    }

    #[inline(always)]
    fn columns<A: Arithmetic, P: Products, const QUERIES: usize, const WIDE: usize>(
        &self,
        sums: &mut [f32],
        query: usize,
        column: usize,
    ) {
        let mut added = [[P::Dot::zero(); WIDE]; QUERIES];
        let values = self.values.chunks_exact(self.padded);
        for (weight, value) in self.weights.iter().zip(values) {
            let weight = &weight.as_flattened()[query..].as_chunks::<QUERIES>().0[0];
            let value: &[[u32; WIDTH]; WIDE] =
                &value[column..][..WIDE * WIDTH].as_chunks().0.as_chunks().0[0];
            for i in 0..QUERIES {
                for v in 0..WIDE {
                    added[i][v] = P::Dot::add(added[i][v], weight[i], P::Dot::load(&value[v]));
                }
            }
        }
        for i in 0..QUERIES {
            let sums = &mut sums[i * self.padded + column..][..WIDE * WIDTH];
            let rescale = A::splat(self.rescale[query + i]);
            for (v, sums) in sums.as_chunks_mut().0.iter_mut().enumerate() {
                let added: [f32; WIDTH] = bytemuck::cast(P::Dot::store(added[i][v]));
                let sum = A::mul_add_vector(A::load(sums), rescale, A::load(&added));
                A::store(sum, sums);
            }
        }
    }
}
