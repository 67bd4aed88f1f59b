//! How busy a generation engine is: written by its runner, read by admission, without a lock.

use std::time::Duration;

use crate::engine::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The load of one engine.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Sequences accepted and not ended.
    alive: AtomicUsize,
    /// How many there may be.
    most: usize,
    /// Sequences that run at a time, of those.
    running: usize,
    /// Smoothed time from one sequence's end to the next, in nanoseconds.
    gap_ns: AtomicU64,
}

impl Load {
    pub(super) fn new(running: usize, waiting: usize) -> Self {
        Self {
            most: running + waiting,
            running,
            ..Self::default()
        }
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn alive(&self) -> usize {
        self.alive.load(Relaxed)
    }

    /// Whether as many are alive as can run.
    pub(super) fn is_full(&self) -> bool {
        self.alive() >= self.running
    }

    /// Counts `sequences` more as alive; when they don't fit, tells how many are.
    pub(super) fn reserve(&self, sequences: usize) -> Result<(), usize> {
        self.alive
            .fetch_update(Relaxed, Relaxed, |alive| {
                alive
                    .checked_add(sequences)
                    .filter(|&then| then <= self.most)
            })
            .map(drop)
    }

    pub(super) fn ended(&self, sequences: usize) {
        self.alive.fetch_sub(sequences, Relaxed);
    }

    /// Notes the time between two ends.
    pub(super) fn observe_gap(&self, gap: Duration) {
        let before = self.gap_ns.load(Relaxed);
        let gap = gap.as_nanos() as u64;
        let after = if before == 0 {
            gap
        } else {
            before - before / 8 + gap / 8
        };
        self.gap_ns.store(after, Relaxed);
    }

    /// Time until a sequence that would be accepted now begins to run.
    pub(super) fn expected_wait(&self) -> Duration {
        let ahead = (self.alive() + 1).saturating_sub(self.running);
        Duration::from_nanos(self.gap_ns.load(Relaxed).saturating_mul(ahead as u64))
    }
}
