//! The product's loops: which thread does which panels, and in what order.
//!
//! The work is cut into ranges of panels, a few per thread; only where there are too few panels
//! for that, the rows are cut as well. A thread goes through its panels from front to back, as
//! they lie in memory, once per block of rows; a panel stays in the L1 cache while the tiles of
//! the block pass over it, and the block of `x` in L2. A tile sums over all inputs in registers,
//! so that how the work is cut, or how high a tile is, does not change a row's result.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::super::parallel;
use super::machine::{InstructionSet, LANES, Machine, Work};
use super::panels::{Activations, Panels};

/// Bytes of quantized activations in a block of rows: half an L2 cache of the smaller machines.
const BLOCK_BYTES: usize = 256 * 1024;
/// Multiply-adds below which threads cost more than they bring (some 10 µs of one core).
const SERIAL_WORK: usize = 1 << 20;
/// Ranges of panels per thread.
const TASKS_PER_THREAD: usize = 2;

/// A weight in panels that can be multiplied with activations in one form.
pub(super) trait Weight<X: ?Sized>: Sync {
    /// Inputs of a row.
    fn inputs(&self) -> usize;

    /// `R` rows of `x`, from the given one, times a panel.
    fn tile<M: Machine, const R: usize>(&self, panel: usize, x: &X, row: usize) -> [M::Floats; R];
}

/// `y = x·Wᵀ` for weights side by side.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub parts: &'a [Panels],
    pub x: &'a Activations<'a>,
    pub inputs: usize,
    /// `Σ` of the parts' outputs.
    pub outputs: usize,
}

impl Product<'_> {
    /// Sets `y`, `[rows, outputs]`.
    pub fn compute(&self, y: &mut [f32]) {
        self.compute_with(InstructionSet::best(), y);
    }

    /// As [`Product::compute`], with given instructions.
    pub fn compute_with(&self, instructions: InstructionSet, y: &mut [f32]) {
        let rows = y.len() / self.outputs;
        let panels: usize = self.parts.iter().map(Panels::count).sum();
        let output = Output::new(y, self.outputs);
        let threads = parallel::threads();
        if threads == 1 || rows * self.inputs * self.outputs < SERIAL_WORK {
            self.compute_part(instructions, &output, 0..rows, 0..panels);
            return;
        }
        let tasks = threads * TASKS_PER_THREAD;
        let width = panels.div_ceil(tasks);
        let across = panels.div_ceil(width);
        // A task has 16 rows or more.
        let down = (tasks / across).clamp(1, rows.div_ceil(16));
        let height = rows.div_ceil(down);
        (0..across * down).into_par_iter().for_each(|task| {
            let (first_panel, first_row) = (task % across * width, task / across * height);
            let rows = first_row.min(rows)..rows.min(first_row + height);
            let panels = first_panel..panels.min(first_panel + width);
            self.compute_part(instructions, &output, rows, panels);
        });
    }

    /// Some rows of some panels, which are counted through all parts.
    fn compute_part(
        &self,
        instructions: InstructionSet,
        y: &Output<'_>,
        rows: Range<usize>,
        panels: Range<usize>,
    ) {
        let (mut first_panel, mut first_output) = (0, 0);
        for part in self.parts {
            let end = first_panel + part.count();
            let panels = panels.start.max(first_panel)..panels.end.min(end);
            if !panels.is_empty() {
                let piece = Piece {
                    instructions,
                    y,
                    rows: rows.clone(),
                    panels: panels.start - first_panel..panels.end - first_panel,
                    first_output,
                    outputs: part.outputs,
                };
                part.multiply(self.x, piece);
            }
            first_panel = end;
            first_output += part.outputs;
        }
    }
}

/// Some rows of `x`, some panels of one weight, and where in `y` their products go.
pub(super) struct Piece<'a> {
    instructions: InstructionSet,
    y: &'a Output<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    /// Column of `y` where the weight's outputs begin.
    first_output: usize,
    /// Number of the weight's outputs.
    outputs: usize,
}

impl<'a> Piece<'a> {
    /// Multiplies, unless there is no `x` in the form that the weight needs.
    pub fn run<X: ?Sized, W: Weight<X>>(self, weight: &'a W, x: Option<&'a X>) {
        if let Some(x) = x {
            let piece = self;
            piece.instructions.run(PieceOf { piece, weight, x });
        }
    }
}

struct PieceOf<'a, X: ?Sized, W> {
    piece: Piece<'a>,
    weight: &'a W,
    x: &'a X,
}

impl<X: ?Sized, W: Weight<X>> Work for PieceOf<'_, X, W> {
    #[inline(always)]
    fn run<M: Machine>(self) {
        let Range { start, end } = self.piece.rows;
        let height = (BLOCK_BYTES / self.weight.inputs()).next_multiple_of(M::ROWS);
        for first_row in (start..end).step_by(height) {
            let end = end.min(first_row + height);
            for panel in self.piece.panels.clone() {
                let mut row = first_row;
                while row < end {
                    row += self.best_tile::<M>(panel, row, end - row);
                }
            }
        }
    }
}

impl<X: ?Sized, W: Weight<X>> PieceOf<'_, X, W> {
    /// Computes a tile of at most so many rows, and says of how many.
    #[inline(always)]
    fn best_tile<M: Machine>(&self, panel: usize, row: usize, rows: usize) -> usize {
        // Constants, so that a tile that a machine does not use is not even compiled.
        if const { M::ROWS >= 8 } && rows >= 8 {
            return self.tile::<M, 8>(panel, row);
        }
        if const { M::ROWS >= 4 } {
            match rows {
                4.. => return self.tile::<M, 4>(panel, row),
                3 => return self.tile::<M, 3>(panel, row),
                2 => return self.tile::<M, 2>(panel, row),
                _ => {}
            }
        }
        self.tile::<M, 1>(panel, row)
    }

    #[inline(always)]
    fn tile<M: Machine, const R: usize>(&self, panel: usize, row: usize) -> usize {
        let Piece {
            y,
            first_output,
            outputs,
            ..
        } = self.piece;
        let sums = self.weight.tile::<M, R>(panel, self.x, row);
        let column = panel * LANES;
        let width = LANES.min(outputs - column);
        for (r, sums) in sums.into_iter().enumerate() {
            let mut values = [0f32; LANES];
            M::store(sums, &mut values);
            // SAFETY: the pieces of a product have no row and panel in common, and so no value
            // of `y`; each is the work of one thread.
            unsafe { y.write(row + r, first_output + column, &values[..width]) };
        }
        R
    }
}

/// `y`, written to by several threads, each to columns or rows of its own.
pub(super) struct Output<'a> {
    values: *mut f32,
    len: usize,
    columns: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a `&mut [f32]` of which each thread uses another part, see `write`.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    pub fn new(y: &'a mut [f32], columns: usize) -> Self {
        Self {
            values: y.as_mut_ptr(),
            len: y.len(),
            columns,
            lifetime: PhantomData,
        }
    }

    /// Sets the values of a row from a column on.
    ///
    /// # Safety
    /// No other thread may be writing to these.
    #[inline(always)]
    unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        let at = row * self.columns + column;
        assert!(at + values.len() <= self.len);
        // SAFETY: within the slice, which is borrowed for as long as `self` lives; the caller
        // keeps others away.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.values.add(at), values.len()) }
    }
}
