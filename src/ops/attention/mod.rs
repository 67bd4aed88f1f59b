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
//! **Precision.** In bf16, where the machine has its instruction, q and k, and v and the weights of
//! the softmax, are rounded to it and multiplied in pairs (`pairs`): two dimensions of a key, two keys
//! of a value. Elsewhere a word of `tile` is one f32.
//!
//! **Tiling.** A task is a block of queries of one row of the batch, all heads: it owns whole rows
//! of `y`. Per head it copies K and V to scratch,
//! where they are dense. A tile is 16 queries
//! (the vector lanes; 32 where there are registers enough) by `KEYS` keys: scores are kept
//! transposed, `[key, query]`, so that maximum, exponential and sum are all lane by lane, with nothing to add up across them.

#[cfg(target_arch = "x86_64")]
mod pairs;
mod products;
mod tile;

use std::ops::Range;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::linear::Compute;
use super::operand::{check_cu_seqlens, dims2, f32_values, read, u32_values};
use super::parallel;
#[cfg(target_arch = "x86_64")]
use super::simd::run_with_bf16;
use super::simd::{Arithmetic, Kernel, WIDTH, dispatch};
use products::{Products, Singles};
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
        self.computing(Compute::F32)
            .apply_within(qkv, cu_seqlens, longest)
    }

    /// The op in another precision on the CPU: in bf16 both of its products are, where there is an
    /// instruction for them. Their sums, maxima and divisions are f32 all the same, and in int8 all
    /// is.
    pub fn computing(&self, compute: Compute) -> AttentionIn<'_> {
        AttentionIn { op: self, compute }
    }
}

/// [`Attention`] in some precision, by [`Attention::computing`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionIn<'a> {
    op: &'a Attention,
    compute: Compute,
}

impl AttentionIn<'_> {
    /// As [`Attention::apply_within`].
    ///
    /// # Errors
    /// As [`Attention::apply_within`].
    pub fn apply_within(self, qkv: &Tensor, cu_seqlens: &Tensor, longest: usize) -> Result<Tensor> {
        qkv.apply_op2_no_bwd(cu_seqlens, &Within { op: self, longest })
    }

    /// The rows of [`Attention::apply`] of some tokens alone, `[part.len(), hidden]`. On the CPU:
    /// threads that have each some tokens of a batch, not whole rows, share its keys and values.
    ///
    /// # Errors
    /// As [`Attention::apply`], and if `part` is not of the batch's tokens, or they are elsewhere.
    pub fn apply_to_part(
        self,
        qkv: &Tensor,
        cu_seqlens: &Tensor,
        part: Range<usize>,
    ) -> Result<Tensor> {
        qkv.apply_op2_no_bwd(cu_seqlens, &AttentionOfPart { op: self, part })
    }

    /// As [`AttentionIn::apply_to_part`], of the values of `qkv` on the CPU, to those of `out`,
    /// `[part.len(), hidden]`.
    ///
    /// # Errors
    /// As [`AttentionIn::apply_to_part`].
    pub fn apply_rows(
        self,
        out: &mut [f32],
        qkv: &[f32],
        hidden: usize,
        cu_seqlens: &[u32],
        part: Range<usize>,
    ) -> Result<()> {
        let tokens = cu_seqlens.last().map_or(0, |&end| end as usize);
        if qkv.len() != tokens * 3 * hidden || out.len() != part.len() * hidden {
            let (qkv, out, part) = (qkv.len(), out.len(), part.len());
            bail!("{qkv} values are not {tokens} tokens' of {hidden}, or {out} not {part} tokens'");
        }
        self.on_values(out, (qkv, 3 * hidden), cu_seqlens, part)
    }

    fn on_cpu(
        self,
        (qkv, qkv_layout): (&CpuStorage, &Layout),
        (cu_seqlens, cu_seqlens_layout): (&CpuStorage, &Layout),
        part: Option<Range<usize>>,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = dims2(qkv_layout, "qkv")?;
        let qkv = f32_values(qkv, qkv_layout, "qkv")?;
        let cu_seqlens = u32_values(cu_seqlens, cu_seqlens_layout, "cu_seqlens")?;
        let part = part.unwrap_or(0..tokens);
        if part.end > tokens {
            bail!("tokens {part:?} are not in a batch of {tokens}");
        }
        let (count, hidden) = (part.len(), width / 3);
        let mut out = vec![0f32; count * hidden];
        self.on_values(&mut out, (qkv, width), cu_seqlens, part)?;
        Ok((CpuStorage::F32(out), (count, hidden).into()))
    }

    fn on_values(
        self,
        out: &mut [f32],
        (qkv, width): (&[f32], usize),
        cu_seqlens: &[u32],
        part: Range<usize>,
    ) -> Result<()> {
        let (hidden, heads) = (width / 3, self.op.heads);
        if heads == 0 || width != 3 * hidden || hidden % heads != 0 || hidden == 0 {
            bail!("qkv of width {width} does not split in three of {heads} heads");
        }
        let tokens = qkv.len() / width;
        check_cu_seqlens(cu_seqlens, tokens)?;
        if part.start > part.end || part.end > tokens {
            bail!("tokens {part:?} are not in a batch of {tokens}");
        }
        let bias = self.op.bias.as_ref().map(|bias| read(bias, "qkv bias"));
        let bias = match &bias {
            Some(bias) => bias.values(width)?,
            None => &vec![0f32; width],
        };
        attend(self, out, qkv, bias, cu_seqlens, part);
        Ok(())
    }
}

struct AttentionOfPart<'a> {
    op: AttentionIn<'a>,
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
    op: AttentionIn<'a>,
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
        super::cuda::attention(
            op.op,
            longest,
            qkv,
            qkv_layout,
            cu_seqlens,
            cu_seqlens_layout,
        )
    }
}

/// Cuts a part of the batch into tasks and runs them.
fn attend(
    op: AttentionIn<'_>,
    out: &mut [f32],
    qkv: &[f32],
    bias: &[f32],
    cu_seqlens: &[u32],
    part: Range<usize>,
) {
    let heads = op.op.heads;
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
            task.run(op.compute, &mut scratch);
        }
    } else {
        tasks
            .into_par_iter()
            .for_each_init(Scratch::default, |scratch, task| {
                task.run(op.compute, scratch);
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

impl Task<'_> {
    fn run(self, compute: Compute, scratch: &mut Scratch) {
        let attend = Attend(self, scratch);
        #[cfg(target_arch = "x86_64")]
        if compute == Compute::Bf16 {
            match run_with_bf16(AttendInPairs(attend)) {
                Ok(()) => {}
                Err(AttendInPairs(attend)) => dispatch(attend),
            }
            return;
        }
        let _ = compute;
        dispatch(attend);
    }
}

struct Attend<'a, 'b>(Task<'a>, &'b mut Scratch);

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        self.all_heads::<A, Singles<A>>();
    }
}

#[cfg(target_arch = "x86_64")]
struct AttendInPairs<'a, 'b>(Attend<'a, 'b>);

#[cfg(target_arch = "x86_64")]
impl Kernel for AttendInPairs<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        self.0.all_heads::<A, pairs::Pairs>();
    }
}

impl Attend<'_, '_> {
    #[inline(always)]
    fn all_heads<A: Arithmetic, P: Products>(self) {
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
            head.copy_keys_and_values::<P>(task.qkv, scratch);
            let mut done = 0;
            while done < queries {
                let left = queries - done;
                let q = &task.qkv[(task.first_query + done) * 3 * hidden..];
                let out = &mut task.out[done * hidden..];
                if A::MANY_REGISTERS && left > WIDTH {
                    attend_tile::<A, P, 2>(head, left.min(2 * WIDTH), q, task.bias, scratch, out);
                    done += left.min(2 * WIDTH);
                } else {
                    attend_tile::<A, P, 1>(head, left.min(WIDTH), q, task.bias, scratch, out);
                    done += left.min(WIDTH);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
