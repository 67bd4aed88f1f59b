//! How the ops share their work among the threads of the rayon pool: rows in blocks that are worth
//! a task, or, where a caller has shared out a whole batch already, not at all.

use std::cell::Cell;

use rayon::prelude::*;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Threads that an op may share its work with, this one among them.
pub(crate) fn threads() -> usize {
    if ALONE.get() {
        1
    } else {
        rayon::current_num_threads()
    }
}

/// Runs `f` with every op in it kept to this thread: for a caller that gives each thread a part of
/// the batch to run from end to end, which needs no thread to wait for another.
pub(crate) fn alone<T>(f: impl FnOnce() -> T) -> T {
    /// Sets it back even if `f` panics.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Before(ALONE.replace(true));
    f()
}

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
    if threads() == 1 || values.len() <= rows * width {
        // In blocks all the same: a block stays in the cache while several passes go over it.
        for (block, chunk) in values.chunks_mut(rows * width).enumerate() {
            f(block * rows, chunk);
        }
    } else {
        values
            .par_chunks_mut(rows * width)
            .enumerate()
            .for_each(|(block, chunk)| f(block * rows, chunk));
    }
}
