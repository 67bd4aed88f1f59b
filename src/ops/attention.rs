//! Packed bidirectional attention: each token attends to all tokens of its own row of the batch,
//! and to no other.
//!
//! ```text
//! q, k, v = split(qkv + bias)                  per head, d = hidden / heads
//! y[i]    = Σⱼ softmaxⱼ(q[i]·k[j] / √d) · v[j]   j over the tokens of i's row
//!
//! qkv         [tokens, 3 · hidden]  f32   q, k, v side by side; in each the heads side by side
//! bias        [3 · hidden]          f32   optional
//! cu_seqlens  [rows + 1]            u32
//! y           [tokens, hidden]      f32
//! ```
//! Vaswani et al. 2017 (arXiv:1706.03762), computed as Dao et al. 2022 (`FlashAttention`,
//! arXiv:2205.14135): over tiles of keys, with a running maximum `m` and sum `l` per query, so
//! that no `[tokens, tokens]` matrix exists.
//!
//! Two of the biases need no work per key. `q·(k + b)` differs from `q·k` by the same amount for
//! all keys, which softmax cancels; and since softmax sums to 1, that of `v` is added to `y`.
//!
//! **Tiling.** A task is a block of queries of one row of the batch, all heads: it owns whole rows
//! of `y`. Per head it copies K and V to scratch, where they are dense. A tile is 16 queries
//! (the vector lanes; 8 at the end) by `KEYS` keys: scores are kept transposed, `[key, query]`,
//! so that maximum, exponential and sum are all lane by lane, with nothing to add up across them.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::operand::{check_cu_seqlens, dims2, f32_values, read, u32_values};
use super::simd::{Arithmetic, Kernel, Tile, WIDTH, dispatch};
use super::vector_math::exp;

/// Keys per tile: scores of a tile are `KEYS · 16` floats, 3 KiB, and stay in L1 together with
/// the tile's keys and values for head sizes up to 64.
const KEYS: usize = 48;
/// Keys per pass of the score loop: 6 · 16 partial sums fill 12 of the 16 AVX2 registers.
const KEY_GROUP: usize = 6;
/// Queries per pass of the value loop, by [`DIMS`] of the head: 8 registers of partial sums.
const QUERY_GROUP: usize = 4;
/// Head dimensions per pass of the value loop. V is padded to a multiple of it.
const DIMS: usize = 16;
/// Queries in a task when there are tasks enough for all threads.
const MAX_BLOCK: usize = 64;
/// Multiply-adds below which threads cost more than they bring (some 20 µs of one core).
const SERIAL_WORK: usize = 1 << 20;

/// The op: number of heads, and the bias of the fused projection, `[3 · hidden]`.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Attention heads; `hidden` is a multiple of it.
    pub heads: usize,
    /// Bias of q, k and v, not yet added to `qkv`.
    pub bias: Option<Tensor>,
}

impl Attention {
    /// Attends within the rows of the batch: `qkv` `[tokens, 3 · hidden]` to `[tokens, hidden]`.
    ///
    /// # Errors
    /// If shapes, dtypes or devices do not agree, or `cu_seqlens` does not span `tokens`.
    pub fn apply(&self, qkv: &Tensor, cu_seqlens: &Tensor) -> Result<Tensor> {
        self.apply_within(qkv, cu_seqlens, usize::MAX)
    }

    /// As [`Attention::apply`], of rows that are known to have at most `longest` tokens: a GPU then
    /// gets no blocks of threads that have nothing to do.
    ///
    /// # Errors
    /// As [`Attention::apply`].
    pub fn apply_within(
        &self,
        qkv: &Tensor,
        cu_seqlens: &Tensor,
        longest: usize,
    ) -> Result<Tensor> {
        let op = self;
        qkv.apply_op2_no_bwd(cu_seqlens, &Within { op, longest })
    }
}

/// The op on rows of at most `longest` tokens.
struct Within<'a> {
    op: &'a Attention,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "for a GPU's grid"))]
    longest: usize,
}

impl CustomOp2 for Within<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        cu_seqlens: &CpuStorage,
        cu_seqlens_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = dims2(qkv_layout, "qkv")?;
        let qkv = f32_values(qkv, qkv_layout, "qkv")?;
        let cu_seqlens = u32_values(cu_seqlens, cu_seqlens_layout, "cu_seqlens")?;
        check_cu_seqlens(cu_seqlens, tokens)?;
        let hidden = width / 3;
        let heads = self.op.heads;
        if heads == 0 || width != 3 * hidden || hidden % heads != 0 || hidden == 0 {
            bail!("qkv of width {width} does not split in three of {heads} heads");
        }
        let bias = self.op.bias.as_ref().map(|bias| read(bias, "qkv bias"));
        let bias = match &bias {
            Some(bias) => bias.values(width)?,
            None => &vec![0f32; width],
        };
        let mut out = vec![0f32; tokens * hidden];
        attend(&mut out, qkv, bias, cu_seqlens, heads);
        Ok((CpuStorage::F32(out), (tokens, hidden).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        qkv: &CudaStorage,
        qkv_layout: &Layout,
        cu_seqlens: &CudaStorage,
        cu_seqlens_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let Self { op, longest } = *self;
        super::cuda::attention(op, longest, qkv, qkv_layout, cu_seqlens, cu_seqlens_layout)
    }
}

/// Cuts the batch into tasks and runs them.
fn attend(out: &mut [f32], qkv: &[f32], bias: &[f32], cu_seqlens: &[u32], heads: usize) {
    let hidden = bias.len() / 3;
    let tokens = out.len() / hidden;
    let threads = rayon::current_num_threads();
    let block = (tokens / (4 * threads))
        .next_multiple_of(DIMS)
        .clamp(DIMS, MAX_BLOCK);

    let mut tasks = Vec::new();
    let mut work = 0;
    let mut rest = out;
    for row in cu_seqlens.windows(2) {
        let (begin, end) = (row[0] as usize, row[1] as usize);
        let row_qkv = &qkv[begin * 3 * hidden..end * 3 * hidden];
        work += (end - begin) * (end - begin) * hidden * 2;
        let (mut row_out, after) = rest.split_at_mut((end - begin) * hidden);
        rest = after;
        for first_query in (0..end - begin).step_by(block) {
            let (out, after) = row_out.split_at_mut(row_out.len().min(block * hidden));
            row_out = after;
            tasks.push(Task {
                out,
                qkv: row_qkv,
                bias,
                first_query,
                heads,
            });
        }
    }
    if work < SERIAL_WORK || tasks.len() == 1 {
        let mut scratch = Scratch::default();
        for task in tasks {
            dispatch(Attend(task, &mut scratch));
        }
    } else {
        tasks
            .into_par_iter()
            .for_each_init(Scratch::default, |scratch, task| {
                dispatch(Attend(task, scratch));
            });
    }
}

/// A block of queries of one row of the batch.
struct Task<'a> {
    /// Rows of `y` of the block's queries, `[queries, hidden]`.
    out: &'a mut [f32],
    /// Of the whole row, `[len, 3 · hidden]`.
    qkv: &'a [f32],
    bias: &'a [f32],
    /// The block's first query, as a row of `qkv`.
    first_query: usize,
    heads: usize,
}

/// Buffers of a thread, kept from task to task.
#[derive(Default)]
struct Scratch {
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

struct Attend<'a, 'b>(Task<'a>, &'b mut Scratch);

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Attend(task, scratch) = self;
        let hidden = task.bias.len() / 3;
        let dim = hidden / task.heads;
        let queries = task.out.len() / hidden;
        for head in 0..task.heads {
            let head = Head {
                len: task.qkv.len() / (3 * hidden),
                hidden,
                dim,
                padded: dim.next_multiple_of(DIMS),
                offset: head * dim,
            };
            head.copy_keys_and_values(task.qkv, scratch);
            let mut done = 0;
            while done < queries {
                let left = queries - done;
                let q = &task.qkv[(task.first_query + done) * 3 * hidden..];
                let out = &mut task.out[done * hidden..];
                if left <= WIDTH {
                    attend_tile::<A, 1>(head, left, q, task.bias, scratch, out);
                } else {
                    attend_tile::<A, 2>(head, left.min(2 * WIDTH), q, task.bias, scratch, out);
                }
                done += left.min(2 * WIDTH);
            }
        }
    }
}

/// One head of one row of the batch, and its place in the rows of `qkv` and of `y`.
#[derive(Clone, Copy)]
struct Head {
    /// Tokens of the row of the batch.
    len: usize,
    hidden: usize,
    /// Dimension of a head, `d`.
    dim: usize,
    /// `d` up to a multiple of [`DIMS`].
    padded: usize,
    /// First column of the head in q, in k, in v and in `y`.
    offset: usize,
}

impl Head {
    #[inline(always)]
    fn copy_keys_and_values(self, qkv: &[f32], scratch: &mut Scratch) {
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
fn attend_tile<A: Arithmetic, const V: usize>(
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
        for query in (0..count).step_by(QUERY_GROUP) {
            let sums = &mut scratch.sums[query * padded..][..QUERY_GROUP * padded];
            let rescale = &rescale.as_flattened()[query..][..QUERY_GROUP];
            add_values::<A, V>(sums, rescale, query, scores, values, padded);
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

/// `sums[i] = sums[i] · rescale[i] + Σⱼ weights[j][query + i] · values[j]` for [`QUERY_GROUP`]
/// queries.
#[inline(always)]
fn add_values<A: Arithmetic, const V: usize>(
    sums: &mut [f32],
    rescale: &[f32],
    query: usize,
    weights: &[Lanes<V>],
    values: &[f32],
    padded: usize,
) {
    for column in (0..padded).step_by(DIMS) {
        let mut tile = Tile::<A, QUERY_GROUP, { DIMS / WIDTH }>::zero();
        for (weight, value) in weights.iter().zip(values.chunks_exact(padded)) {
            let weight = weight.as_flattened()[query..].as_chunks::<QUERY_GROUP>().0;
            let value = value[column..][..DIMS].as_chunks().0.as_chunks().0;
            tile.add(weight[0], &value[0]);
        }
        for i in 0..QUERY_GROUP {
            let sums = &mut sums[i * padded + column..][..DIMS];
            for (sum, new) in sums.iter_mut().zip(tile.row(i).as_flattened()) {
                *sum = A::mul_add(*sum, rescale[i], *new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::super::testing::{Random, cu_seqlens, indices, max_error};
    use super::*;
    use candle_core::Device;

    /// The formula at the top of the file, as it stands there, in f64.
    fn reference(qkv: &[f32], bias: &[f32], lengths: &[usize], heads: usize) -> Vec<f64> {
        let width = bias.len();
        let hidden = width / 3;
        let dim = hidden / heads;
        let at = |t: usize, c: usize| f64::from(qkv[t * width + c]) + f64::from(bias[c]);
        let mut out = vec![0.0; qkv.len() / 3];
        let mut begin = 0;
        for len in lengths {
            let row = begin..begin + len;
            begin = row.end;
            for i in row.clone() {
                for h in 0..heads {
                    let q = h * dim..(h + 1) * dim;
                    let scores: Vec<f64> = row
                        .clone()
                        .map(|j| q.clone().map(|c| at(i, c) * at(j, hidden + c)).sum::<f64>())
                        .map(|s| s / (dim as f64).sqrt())
                        .collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let scores: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = scores.iter().sum();
                    for c in q.clone() {
                        out[i * hidden + c] = row
                            .clone()
                            .zip(&scores)
                            .map(|(j, s)| s / total * at(j, 2 * hidden + c))
                            .sum();
                    }
                }
            }
        }
        out
    }

    fn check(lengths: &[usize], heads: usize, dim: usize, range: f32) -> Result<f64> {
        let (tokens, hidden) = (lengths.iter().sum::<usize>(), heads * dim);
        let mut random = Random::new((tokens * hidden) as u64);
        let qkv = random.values(tokens * 3 * hidden, range);
        let bias = random.values(3 * hidden, 1.0);
        let expected = reference(&qkv, &bias, lengths, heads);
        let op = Attention {
            heads,
            bias: Some(Tensor::from_slice(&bias, bias.len(), &Device::Cpu)?),
        };
        let qkv = Tensor::from_vec(qkv, (tokens, 3 * hidden), &Device::Cpu)?;
        let y = op.apply(&qkv, &indices(&cu_seqlens(lengths))?)?;
        assert_eq!(y.dims(), [tokens, hidden]);
        Ok(max_error(&y.flatten_all()?.to_vec1()?, &expected))
    }

    #[test]
    fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
        let shapes: [(&[usize], usize, usize); 9] = [
            (&[1], 1, 1),
            (&[0, 1, 0, 2], 2, 3),
            (&[5], 3, 16),
            (&[16, 17, 8, 9, 1], 2, 32),
            (&[47, 48, 49], 2, 20),
            (&[200, 3, 97], 3, 64),
            (&[64, 65, 63], 1, 80),
            (&[150], 2, 128),
            (&[7; 40], 12, 32),
        ];
        for (lengths, heads, dim) in shapes {
            let error = check(lengths, heads, dim, 2.0)?;
            assert!(error < 3e-6, "{lengths:?} {heads}x{dim}: {error:e}");
        }
        Ok(())
    }

    #[test]
    fn large_scores_neither_overflow_nor_lose_the_row() -> Result<()> {
        let error = check(&[130, 30], 2, 32, 20.0)?;
        assert!(error < 1e-2, "{error:e}");
        Ok(())
    }

    #[test]
    fn both_instruction_sets_agree() {
        let (heads, dim, len) = (2, 24, 101);
        let hidden = heads * dim;
        let mut random = Random::new(8);
        let qkv = random.values(len * 3 * hidden, 2.0);
        let bias = random.values(3 * hidden, 1.0);
        let mut outputs = [vec![0f32; len * hidden], vec![0f32; len * hidden]];
        for (i, out) in outputs.iter_mut().enumerate() {
            let task = Task {
                out,
                qkv: &qkv,
                bias: &bias,
                first_query: 0,
                heads,
            };
            let mut scratch = Scratch::default();
            let attend = Attend(task, &mut scratch);
            if i == 0 {
                attend.run::<Portable>();
            } else {
                dispatch(attend);
            }
        }
        let portable: Vec<f64> = outputs[0].iter().map(|&x| f64::from(x)).collect();
        assert!(max_error(&outputs[1], &portable) < 2e-6);
    }

    #[test]
    fn a_row_does_not_see_its_neighbours() -> Result<()> {
        let (heads, hidden) = (2, 64);
        let op = Attention { heads, bias: None };
        let mut random = Random::new(11);
        let mut values = random.values(30 * 3 * hidden, 1.0);
        let run = |values: &[f32]| -> Result<Vec<f32>> {
            let qkv = Tensor::from_slice(values, (30, 3 * hidden), &Device::Cpu)?;
            let y = op.apply(&qkv, &indices(&[0, 10, 30])?)?;
            y.flatten_all()?.to_vec1()
        };
        let before = run(&values)?;
        values[10 * 3 * hidden..].fill(1e30);
        let after = run(&values)?;
        assert_eq!(before[..10 * hidden], after[..10 * hidden]);
        Ok(())
    }

    #[test]
    fn bad_shapes_are_errors() -> Result<()> {
        let zeros = |width: usize| Tensor::zeros((4, width), candle_core::DType::F32, &Device::Cpu);
        let ends = indices(&[0, 4])?;
        for (heads, width) in [(0, 12), (3, 12), (1, 13)] {
            assert!(
                Attention { heads, bias: None }
                    .apply(&zeros(width)?, &ends)
                    .is_err()
            );
        }
        let op = Attention {
            heads: 1,
            bias: None,
        };
        assert!(op.apply(&zeros(12)?, &indices(&[0, 3])?).is_err());
        assert!(op.apply(&zeros(12)?, &ends).is_ok());
        Ok(())
    }
}
