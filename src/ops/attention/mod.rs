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
//! (the vector lanes; 32 where there are registers enough) by `KEYS` keys: scores are kept transposed, `[key, query]`,
//! so that maximum, exponential and sum are all lane by lane, with nothing to add up across them.

mod tile;

use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::operand::{check_cu_seqlens, dims2, f32_values, read, u32_values};
use super::parallel;
use super::simd::{Arithmetic, Kernel, WIDTH, dispatch};
use tile::{DIMS, Head, Scratch, attend_tile};

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

    /// The rows of [`Attention::apply`] of some tokens alone, `[part.len(), hidden]`. On the CPU:
    /// threads that have each some tokens of a batch, not whole rows, share its keys and values.
    ///
    /// # Errors
    /// As [`Attention::apply`], and if `part` is not of the batch's tokens, or they are elsewhere.
    pub fn apply_to_part(
        &self,
        qkv: &Tensor,
        cu_seqlens: &Tensor,
        part: Range<usize>,
    ) -> Result<Tensor> {
        qkv.apply_op2_no_bwd(cu_seqlens, &AttentionOfPart { op: self, part })
    }

    fn on_cpu(
        &self,
        (qkv, qkv_layout): (&CpuStorage, &Layout),
        (cu_seqlens, cu_seqlens_layout): (&CpuStorage, &Layout),
        part: Option<Range<usize>>,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = dims2(qkv_layout, "qkv")?;
        let qkv = f32_values(qkv, qkv_layout, "qkv")?;
        let cu_seqlens = u32_values(cu_seqlens, cu_seqlens_layout, "cu_seqlens")?;
        check_cu_seqlens(cu_seqlens, tokens)?;
        let hidden = width / 3;
        if self.heads == 0 || width != 3 * hidden || hidden % self.heads != 0 || hidden == 0 {
            bail!(
                "qkv of width {width} does not split in three of {} heads",
                self.heads
            );
        }
        let part = part.unwrap_or(0..tokens);
        if part.start > part.end || part.end > tokens {
            bail!("tokens {part:?} are not in a batch of {tokens}");
        }
        let bias = self.bias.as_ref().map(|bias| read(bias, "qkv bias"));
        let bias = match &bias {
            Some(bias) => bias.values(width)?,
            None => &vec![0f32; width],
        };
        let count = part.len();
        let mut out = vec![0f32; count * hidden];
        attend(&mut out, qkv, bias, cu_seqlens, self.heads, part);
        Ok((CpuStorage::F32(out), (count, hidden).into()))
    }
}

struct AttentionOfPart<'a> {
    op: &'a Attention,
    part: Range<usize>,
}

impl CustomOp2 for AttentionOfPart<'_> {
    fn name(&self) -> &'static str {
        "attention-of-part"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        cu_seqlens: &CpuStorage,
        cu_seqlens_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let part = Some(self.part.clone());
        self.op
            .on_cpu((qkv, qkv_layout), (cu_seqlens, cu_seqlens_layout), part)
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
        self.op
            .on_cpu((qkv, qkv_layout), (cu_seqlens, cu_seqlens_layout), None)
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

/// Cuts a part of the batch into tasks and runs them.
fn attend(
    out: &mut [f32],
    qkv: &[f32],
    bias: &[f32],
    cu_seqlens: &[u32],
    heads: usize,
    part: Range<usize>,
) {
    let hidden = bias.len() / 3;
    let tokens = out.len() / hidden;
    let threads = parallel::threads();
    let block = if threads == 1 {
        // Whole rows: K and V are copied once.
        tokens.next_multiple_of(DIMS)
    } else {
        (tokens / (4 * threads))
            .next_multiple_of(DIMS)
            .clamp(DIMS, MAX_BLOCK)
    };

    let mut tasks = Vec::new();
    let mut work = 0;
    let mut rest = out;
    for row in cu_seqlens.windows(2) {
        let (begin, end) = (row[0] as usize, row[1] as usize);
        let row_qkv = &qkv[begin * 3 * hidden..end * 3 * hidden];
        let queries = begin.max(part.start)..end.min(part.end);
        if queries.is_empty() {
            continue;
        }
        work += queries.len() * (end - begin) * hidden * 2;
        let (mut row_out, after) = rest.split_at_mut(queries.len() * hidden);
        rest = after;
        for first_query in queries.step_by(block) {
            let (out, after) = row_out.split_at_mut(row_out.len().min(block * hidden));
            row_out = after;
            tasks.push(Task {
                out,
                qkv: row_qkv,
                bias,
                first_query: first_query - begin,
                heads,
            });
        }
    }
    if threads == 1 || work < SERIAL_WORK || tasks.len() == 1 {
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
                if A::MANY_REGISTERS && left > WIDTH {
                    attend_tile::<A, 2>(head, left.min(2 * WIDTH), q, task.bias, scratch, out);
                    done += left.min(2 * WIDTH);
                } else {
                    attend_tile::<A, 1>(head, left.min(WIDTH), q, task.bias, scratch, out);
                    done += left.min(WIDTH);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
