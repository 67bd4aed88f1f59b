//! How busy an engine is: written by its dispatcher, read by admission, without a lock.

use std::time::Duration;

use crate::{
    batching::Priority,
    engine::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// The load of one engine.
#[derive(Debug)]
pub(super) struct Load {
    /// Rows accepted and not yet in a batch.
    pub(super) waiting_rows: AtomicUsize,
    pub(super) max_waiting_rows: usize,
    /// Predicted time until what runs, and what waits down to each priority, is done, in nanoseconds.
    pub(super) backlog_ns: [AtomicU64; Priority::LEVELS],
    /// Coefficients of the run time model, as `f64` bits: a and b in nanoseconds.
    pub(super) fixed_ns: AtomicU64,
    pub(super) token_ns: AtomicU64,
}

impl Load {
    /// Counts `rows` more as waiting; when they don't fit, tells how many wait.
    pub(super) fn reserve(&self, rows: usize) -> Result<(), usize> {
        self.waiting_rows
            .fetch_update(Relaxed, Relaxed, |waiting| {
                waiting
                    .checked_add(rows)
                    .filter(|&then| then <= self.max_waiting_rows)
            })
            .map(drop)
    }

    /// Predicted run time of a batch of so many tokens.
    pub(super) fn predict(&self, tokens: usize) -> Duration {
        let coefficient = |bits: &AtomicU64| f64::from_bits(bits.load(Relaxed));
        let nanoseconds = coefficient(&self.fixed_ns) + coefficient(&self.token_ns) * tokens as f64;
        Duration::from_nanos(nanoseconds as u64)
    }
}
