//! The product itself: how it is shared among threads, cut in blocks, and summed in registers.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators over vectors might not be inlined, and they would go through memory"
)]

use std::cell::RefCell;

use rayon::prelude::*;

use super::super::parallel;
use super::super::simd::{Arithmetic, Kernel, WIDTH, dispatch};
use super::Compute;
use super::activations::{RowScale, convert};
use super::dot::{Dot, Floats, PortableBytes, WidenedPairs};
use super::panels::{COLUMNS, Columns, Line, Panel, Panels};
#[cfg(target_arch = "x86_64")]
use super::x86;

/// Rows of `x` in a tile where there are many registers, by both halves of a panel.
const MANY_ROWS: usize = 12;
/// Rows of `x` in a tile where there are few registers, by half a panel.
const FEW_ROWS: usize = 6;
/// Words summed in one go: a piece of a panel is at most 24 KiB.
const DEPTH: usize = 192;
/// Rows of `x` in a block.
const BLOCK: usize = 96;
/// Multiply-adds below which threads cost more than they bring (some 20 µs of one core).
const SERIAL_WORK: usize = 1 << 20;

/// Shares the product among the threads: blocks of rows if there are enough of them, else columns.
pub(super) fn multiply(y: &mut [f32], x: &[f32], weight: &Panels, outputs: usize) {
    let inputs = weight.inputs;
    let rows = y.len() / outputs;
    let threads = parallel::threads();
    if threads == 1 || rows * inputs * outputs < SERIAL_WORK {
        multiply_rows(y, x, weight, outputs);
    } else if rows >= threads * 2 * MANY_ROWS {
        // As many blocks for each thread, so that none waits for the last.
        let blocks = rows.div_ceil(BLOCK).next_multiple_of(threads);
        let block = rows.div_ceil(blocks).next_multiple_of(MANY_ROWS);
        y.par_chunks_mut(block * outputs)
            .zip(x.par_chunks(block * inputs))
            .for_each(|(y, x)| multiply_rows(y, x, weight, outputs));
    } else {
        with_words(x, inputs, weight.compute, |x, scales| {
            multiply_shares(y, x, scales, weight, outputs);
        });
    }
}

/// All outputs, block by block.
fn multiply_rows(y: &mut [f32], x: &[f32], weight: &Panels, outputs: usize) {
    let columns = weight.columns(0, outputs);
    let blocks = y.chunks_mut(BLOCK * outputs);
    for (y, x) in blocks.zip(x.chunks(BLOCK * weight.inputs)) {
        with_words(x, weight.inputs, weight.compute, |x, scales| {
            let mut work = Work {
                y,
                x,
                scales,
                columns,
            };
            work.run_as(weight.compute);
        });
    }
}

/// Each thread a share of the outputs of all rows.
fn multiply_shares(y: &mut [f32], x: &[u32], scales: &[RowScale], weight: &Panels, outputs: usize) {
    let rows = y.len() / outputs;
    let share = outputs
        .div_ceil(parallel::threads())
        .next_multiple_of(COLUMNS);
    let parts: Vec<Vec<f32>> = (0..outputs.div_ceil(share))
        .into_par_iter()
        .map(|part| {
            let columns = weight.columns(part * share, share.min(outputs - part * share));
            let mut y = vec![0f32; rows * columns.count];
            let mut work = Work {
                y: &mut y,
                x,
                scales,
                columns,
            };
            work.run_as(weight.compute);
            y
        })
        .collect();
    for (i, part) in parts.iter().enumerate() {
        let width = part.len() / rows;
        for (y, part) in y.chunks_exact_mut(outputs).zip(part.chunks_exact(width)) {
            y[i * share..][..width].copy_from_slice(part);
        }
    }
}

/// Calls `f` with `x` in the words of `compute`, which a buffer of the thread holds if they are
/// not those of `x` itself.
fn with_words(x: &[f32], inputs: usize, compute: Compute, f: impl FnOnce(&[u32], &[RowScale])) {
    thread_local! {
        static BUFFERS: RefCell<(Vec<u32>, Vec<RowScale>)> = RefCell::default();
    }
    if compute == Compute::F32 {
        return f(bytemuck::cast_slice(x), &[]);
    }
    // Taken, not borrowed: while this thread waits for its share of a product, it may begin
    // another.
    let (mut words, mut scales) = BUFFERS.take();
    let rows = x.len() / inputs;
    words.resize(words.len().max(rows * compute.words(inputs)), 0);
    let scaled_rows = if compute == Compute::Int8 { rows } else { 0 };
    scales.resize(scales.len().max(scaled_rows), RowScale::default());
    let used = &mut words[..rows * compute.words(inputs)];
    let scales_used = &mut scales[..scaled_rows];
    convert(used, scales_used, x, inputs, compute);
    f(used, scales_used);
    BUFFERS.set((words, scales));
}

/// Some rows by some panels.
pub(super) struct Work<'a> {
    /// `[rows, columns.count]`
    pub y: &'a mut [f32],
    /// `[rows, groups]`
    pub x: &'a [u32],
    /// Per row, where the words are bytes.
    pub scales: &'a [RowScale],
    pub columns: Columns<'a>,
}

impl Work<'_> {
    /// With the best instructions there are.
    pub fn run_as(&mut self, compute: Compute) {
        #[cfg(target_arch = "x86_64")]
        {
            let done = match compute {
                Compute::F32 => false,
                Compute::Bf16 => x86::run_bf16(self),
                Compute::Int8 => x86::run_bytes(self),
            };
            if done {
                return;
            }
        }
        match compute {
            Compute::F32 => dispatch(InF32(self)),
            Compute::Bf16 => dispatch(InBf16(self)),
            Compute::Int8 => self.run::<PortableBytes>(),
        }
    }

    #[inline(always)]
    pub fn run<D: Dot>(&mut self) {
        let Columns { groups, count, .. } = self.columns;
        let rows = self.y.len() / count;
        // Pieces of equal depth, rather than a short last one; sums of bytes are scaled at the end
        // of the whole row.
        let depth = if self.scales.is_empty() {
            groups.div_ceil(groups.div_ceil(DEPTH))
        } else {
            groups
        };
        for first_group in (0..groups).step_by(depth) {
            for (p, panel) in self.columns.panels().enumerate() {
                let end = groups.min(first_group + depth);
                let mut piece = Piece {
                    panel,
                    lines: &panel.groups[first_group..end],
                    first_group,
                    groups,
                    x: self.x,
                    scales: self.scales,
                    outputs: count,
                    first_output: p * COLUMNS,
                    y: self.y,
                };
                if D::MANY_REGISTERS {
                    piece.all_rows::<D, MANY_ROWS, 8, 4, 2>(rows, 0);
                } else {
                    for half in 0..2 {
                        if p * COLUMNS + half * WIDTH < count {
                            piece.all_rows::<D, FEW_ROWS, 3, 2, 1>(rows, half);
                        }
                    }
                }
            }
        }
    }
}

pub(super) struct InF32<'a, 'b>(pub &'a mut Work<'b>);

impl Kernel for InF32<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        self.0.run::<Floats<A>>();
    }
}

pub(super) struct InBf16<'a, 'b>(pub &'a mut Work<'b>);

impl Kernel for InBf16<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        self.0.run::<WidenedPairs<A>>();
    }
}

/// A piece of a panel, and all rows that it meets.
struct Piece<'a> {
    panel: Panel<'a>,
    /// Of the panel, the groups of this piece.
    lines: &'a [Line],
    first_group: usize,
    /// Of a whole row.
    groups: usize,
    x: &'a [u32],
    scales: &'a [RowScale],
    outputs: usize,
    first_output: usize,
    y: &'a mut [f32],
}

impl Piece<'_> {
    /// Tiles of `M` rows, then smaller ones for what is left: how many rows share a tile changes
    /// no row's sums. `V` vectors of the panel, from `half` on.
    #[inline(always)]
    fn all_rows<D: Dot, const M: usize, const M2: usize, const M3: usize, const V: usize>(
        &mut self,
        rows: usize,
        half: usize,
    ) {
        let mut row = 0;
        while row < rows {
            row += match rows - row {
                left if left >= M => self.tile::<D, M, V>(row, half),
                left if left >= M2 => self.tile::<D, M2, V>(row, half),
                left if left >= M3 => self.tile::<D, M3, V>(row, half),
                left if left >= 2 => self.tile::<D, 2, V>(row, half),
                _ => self.tile::<D, 1, V>(row, half),
            };
        }
    }

    /// Adds the piece's share to `M` rows of `y`; the first piece of a panel sets them.
    #[inline(always)]
    fn tile<D: Dot, const M: usize, const V: usize>(&mut self, row: usize, half: usize) -> usize {
        let depth = self.lines.len();
        let x: [&[u32]; M] =
            std::array::from_fn(|i| &self.x[(row + i) * self.groups + self.first_group..][..depth]);
        let mut sums = [[D::zero(); V]; M];
        for (k, line) in self.lines.iter().enumerate() {
            let mut weights = [D::load(&line.0[half]); V];
            for v in 1..V {
                weights[v] = D::load(&line.0[half + v]);
            }
            for i in 0..M {
                // SAFETY: `k` counts the lines, and the slices were cut to as many words.
                let word = unsafe { *x[i].get_unchecked(k) };
                for v in 0..V {
                    sums[i][v] = D::add(sums[i][v], word, weights[v]);
                }
            }
        }
        // All at once, in a loop that unrolls: else the sums would live in memory all along.
        let mut stored = [[[0u32; WIDTH]; V]; M];
        for i in 0..M {
            for v in 0..V {
                stored[i][v] = D::store(sums[i][v]);
            }
        }
        let first = self.first_output + half * WIDTH;
        let width = (V * WIDTH).min(self.outputs - first);
        for i in 0..M {
            let y = &mut self.y[(row + i) * self.outputs + first..][..width];
            let mut values = [[0f32; WIDTH]; V];
            for v in 0..V {
                let bits = stored[i][v];
                if self.scales.is_empty() {
                    values[v] = bytemuck::cast(bits);
                } else {
                    let RowScale { scale, zero } = self.scales[row + i];
                    let offsets = &self.panel.sums()[half + v];
                    let factors = &self.panel.scales()[half + v];
                    for c in 0..WIDTH {
                        let sum = bits[c].cast_signed();
                        let sum = sum.wrapping_sub(zero.wrapping_mul(offsets[c]));
                        values[v][c] = sum as f32 * (scale * factors[c]);
                    }
                }
            }
            if self.first_group == 0 {
                // Of known length, a copy is a few instructions.
                match y.as_chunks_mut::<WIDTH>() {
                    (whole, []) if whole.len() == V => {
                        whole[..V].copy_from_slice(&values[..V]);
                    }
                    _ => y.copy_from_slice(&values.as_flattened()[..width]),
                }
            } else {
                for (y, sum) in y.iter_mut().zip(values.as_flattened()) {
                    *y += sum;
                }
            }
        }
        M
    }
}
