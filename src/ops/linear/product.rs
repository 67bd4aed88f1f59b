//! The product itself: how it is shared among threads, cut in blocks, and summed in registers.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators over vectors might not be inlined, and they would go through memory"
)]

use std::cell::RefCell;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::super::parallel;
use super::super::simd::{Arithmetic, Kernel, WIDTH, dispatch, prefetch};
use super::Compute;
use super::activations::{RowScale, TILE_ROWS, Words, convert};
use super::dot::{Dot, Floats, PortableBytes, WidenedPairs};
use super::panels::{COLUMNS, Columns, Line, Panel, Panels};
#[cfg(target_arch = "x86_64")]
use super::x86;

/// Rows of `x` in a tile where there are many registers, by both halves of a panel.
const MANY_ROWS: usize = TILE_ROWS;
/// Rows of `x` in a tile where there are few registers, by half a panel.
const FEW_ROWS: usize = 6;
/// Words summed in one go: a piece of a panel is at most 48 KiB, which the tiles read from L2 as fast as
/// they can use it.
const DEPTH: usize = 384;
/// Rows of `x` in a block: whole tiles, and some more than a share of an encoder's batch has, so that
/// the weights are read once for it.
pub(super) const BLOCK: usize = 12 * TILE_ROWS;
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
pub(super) fn multiply_rows(y: &mut [f32], x: &[f32], weight: &Panels, outputs: usize) {
    let columns = weight.columns(0, outputs);
    let blocks = y.chunks_mut(BLOCK * outputs);
    for (y, x) in blocks.zip(x.chunks(BLOCK * weight.inputs)) {
        with_words(x, weight.inputs, weight.compute, |x, scales| {
            let mut work = Work {
                y,
                x,
                scales,
                columns,
                add: false,
            };
            work.run_as(weight.compute);
        });
    }
}

/// Each thread a share of the outputs of all rows.
fn multiply_shares(
    y: &mut [f32],
    x: &[Words],
    scales: &[RowScale],
    weight: &Panels,
    outputs: usize,
) {
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
                add: false,
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

/// Calls `f` with `x` in the words of `compute`, in tiles, which a buffer of the thread holds.
pub(super) fn with_words(
    x: &[f32],
    inputs: usize,
    compute: Compute,
    f: impl FnOnce(&[Words], &[RowScale]),
) {
    thread_local! {
        static BUFFERS: RefCell<(Vec<Words>, Vec<RowScale>)> = RefCell::default();
    }
    // Taken, not borrowed: while this thread waits for its share of a product, it may begin
    // another.
    let (mut words, mut scales) = BUFFERS.take();
    let rows = x.len() / inputs;
    let used = rows * compute.words(inputs).div_ceil(WIDTH);
    words.resize(words.len().max(used), Words::zeroed());
    let scaled_rows = if compute == Compute::Int8 { rows } else { 0 };
    scales.resize(scales.len().max(scaled_rows), RowScale::default());
    let (used, scales_used) = (&mut words[..used], &mut scales[..scaled_rows]);
    convert(used, scales_used, x, inputs, compute);
    f(used, scales_used);
    BUFFERS.set((words, scales));
}

/// Some rows by some panels.
pub(super) struct Work<'a> {
    /// `[rows, columns.count]`
    pub y: &'a mut [f32],
    /// Tiles of rows, see [`convert`].
    pub x: &'a [Words],
    /// Per row, where the words are bytes.
    pub scales: &'a [RowScale],
    pub columns: Columns<'a>,
    /// Whether `y` has sums already, to which these are added.
    pub add: bool,
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
        let depth = match self.scales {
            [] => equal_pieces(groups),
            _ => groups.next_multiple_of(WIDTH),
        };
        let panels = count.div_ceil(COLUMNS);
        for first_group in (0..groups).step_by(depth) {
            let columns = self.columns;
            let lines = |panel, first: usize| {
                &columns.panel(panel).groups[first..groups.min(first + depth)]
            };
            for p in 0..panels {
                let next = if p + 1 < panels {
                    lines(p + 1, first_group)
                } else if first_group + depth < groups {
                    lines(0, first_group + depth)
                } else {
                    let after = columns.after;
                    &after[..after.len().min(depth)]
                };
                let mut piece = Piece {
                    panel: columns.panel(p),
                    lines: lines(p, first_group),
                    next: Ahead::new(next, rows, lines(p, first_group).len()),
                    first_group,
                    add: self.add || first_group > 0,
                    words: groups.div_ceil(WIDTH),
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

/// The depth of the fewest pieces of equal depth that are at most [`DEPTH`] deep: as many words as
/// whole panels of outputs fill.
pub(super) fn equal_pieces(groups: usize) -> usize {
    groups
        .div_ceil(groups.div_ceil(DEPTH))
        .next_multiple_of(COLUMNS)
}

/// The piece that comes next, fetched while this one is multiplied: weights come from memory or from
/// the last cache, whose latency no product hides by itself.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    lines: &'a [Line],
    /// Bytes further for every group of a tile.
    step: usize,
}

impl<'a> Ahead<'a> {
    /// `lines`, fetched in the course of all tiles of `rows` rows and `depth` groups.
    #[inline(always)]
    fn new(lines: &'a [Line], rows: usize, depth: usize) -> Self {
        let times = rows.div_ceil(TILE_ROWS) * depth;
        let step = size_of_val(lines).div_ceil(times.max(1));
        Self { lines, step }
    }

    /// Where the part begins that is fetched beside the tile from `row` on.
    #[inline(always)]
    fn beside(self, row: usize, depth: usize) -> *const u8 {
        let start = self.lines.as_ptr().cast::<u8>();
        start.wrapping_add(row / TILE_ROWS * depth * self.step)
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
    next: Ahead<'a>,
    first_group: usize,
    add: bool,
    /// [`Words`] of a whole row.
    words: usize,
    x: &'a [Words],
    scales: &'a [RowScale],
    outputs: usize,
    first_output: usize,
    y: &'a mut [f32],
}

impl Piece<'_> {
    /// `M` rows at a time, then fewer for what is left: how many rows are summed at once changes
    /// no row's sums. `V` vectors of the panel, from `half` on.
    #[inline(always)]
    fn all_rows<D: Dot, const M: usize, const M2: usize, const M3: usize, const V: usize>(
        &mut self,
        rows: usize,
        half: usize,
    ) {
        for first in (0..rows).step_by(TILE_ROWS) {
            let tile = XTile {
                first,
                rows: TILE_ROWS.min(rows - first),
            };
            let mut row = 0;
            while row < tile.rows {
                row += match tile.rows - row {
                    left if left >= M => self.tile::<D, M, V>(tile, row, half),
                    left if left >= M2 => self.tile::<D, M2, V>(tile, row, half),
                    left if left >= M3 => self.tile::<D, M3, V>(tile, row, half),
                    left if left >= 2 => self.tile::<D, 2, V>(tile, row, half),
                    _ => self.tile::<D, 1, V>(tile, row, half),
                };
            }
        }
    }

    /// Adds the piece's share to `M` rows of `y`, from `within` a tile of `x`; the first piece of a
    /// panel sets them, unless there are sums already.
    #[inline(always)]
    fn tile<D: Dot, const M: usize, const V: usize>(
        &mut self,
        tile: XTile,
        within: usize,
        half: usize,
    ) -> usize {
        let depth = self.lines.len();
        let x = &self.x[tile.first * self.words + self.first_group / WIDTH * tile.rows + within..];
        // The last that is read; the loop below asks nothing.
        assert!(depth.div_ceil(WIDTH).saturating_sub(1) * tile.rows + M <= x.len());
        let ahead = self.next.beside(tile.first, depth);
        let mut sums = [[D::zero(); V]; M];
        for (k, line) in self.lines.iter().enumerate() {
            let fetched = ahead.wrapping_add(k * self.next.step);
            prefetch(fetched);
            prefetch(fetched.wrapping_add(size_of::<Words>()));
            let mut weights = [D::load(&line.0[half]); V];
            for v in 1..V {
                weights[v] = D::load(&line.0[half + v]);
            }
            let first = k / WIDTH * tile.rows;
            for i in 0..M {
                // SAFETY: `k < depth`, so this is at most what was asserted above.
                let word = unsafe { x.get_unchecked(first + i) }.0[k % WIDTH];
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
        let row = tile.first + within;
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
            if self.add {
                for (y, sum) in y.iter_mut().zip(values.as_flattened()) {
                    *y += sum;
                }
                continue;
            }
            // Of known length, a copy is a few instructions.
            match y.as_chunks_mut::<WIDTH>() {
                (whole, []) if whole.len() == V => {
                    whole[..V].copy_from_slice(&values[..V]);
                }
                _ => y.copy_from_slice(&values.as_flattened()[..width]),
            }
        }
        M
    }
}

/// Some rows of `x` that lie together.
#[derive(Clone, Copy)]
struct XTile {
    first: usize,
    rows: usize,
}
