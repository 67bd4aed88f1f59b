//! Splits the rows of an activation over the rayon pool, in blocks that are worth a task.

use rayon::prelude::*;

/// Values per task: some 10 µs of elementwise work, well above the price of a rayon task, and
/// small enough (64 KiB) that a block stays in the L2 cache while several passes go over it.
const BLOCK_VALUES: usize = 16 * 1024;

/// Calls `f(first_row, block)` on blocks of whole rows of `values`, `[rows, width]`, in parallel
/// if there is more than one block.
pub(crate) fn for_row_blocks(
    values: &mut [f32],
    width: usize,
    f: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    if values.is_empty() || width == 0 {
        return;
    }
    let rows = (BLOCK_VALUES / width).max(1);
    if values.len() <= rows * width {
        f(0, values);
    } else {
        values
            .par_chunks_mut(rows * width)
            .enumerate()
            .for_each(|(block, chunk)| f(block * rows, chunk));
    }
}
