//! What a running model has in hand, laid where another thread can reach it.
//!
//! Whoever runs a model lays down what it has to answer for, runs, and takes it back. While the run
//! lasts the watchdog may take it instead. Both change one word, and only one of them can: so all is
//! answered once, and no lock is held.

use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    time::Duration,
};

use crossbeam::atomic::AtomicCell;

/// The lower bits of a bay's word; the number of the run is above them.
const PHASES: u64 = 0b11;
const IDLE: u64 = 0;
const RUNNING: u64 = 1;
const SEIZED: u64 = 2;
/// One run more.
const NEXT: u64 = PHASES + 1;

/// A place for what one thread has in hand while its model runs.
pub(crate) struct Bay<T> {
    word: AtomicU64,
    expected_ns: AtomicU64,
    hand: AtomicCell<Option<Box<T>>>,
}

/// A run, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run(u64);

impl<T> Default for Bay<T> {
    fn default() -> Self {
        Self {
            word: AtomicU64::new(IDLE),
            expected_ns: AtomicU64::new(0),
            hand: AtomicCell::new(None),
        }
    }
}

impl<T> Bay<T> {
    /// Lays down what is in hand: from here on a run is under way, which is expected to take so long.
    pub(crate) fn lay(&self, hand: Box<T>, expected: Duration) {
        self.hand.store(Some(hand));
        self.expected_ns.store(expected.as_nanos() as u64, Relaxed);
        let last = self.word.load(Relaxed);
        debug_assert_eq!(last & PHASES, IDLE, "one run at a time");
        self.word.store((last + NEXT) | RUNNING, Release);
    }

    /// Takes back what was laid down; `None` when the run took so long that it was given up, and
    /// another thread has it.
    pub(crate) fn take_back(&self) -> Option<Box<T>> {
        let running = self.word.load(Relaxed);
        self.leave(Run(running & !PHASES), IDLE)
    }

    /// The run that is under way, if one is, and how long it was expected to take.
    pub(super) fn running(&self) -> Option<(Run, Duration)> {
        let word = self.word.load(Acquire);
        let expected = Duration::from_nanos(self.expected_ns.load(Relaxed));
        (word & PHASES == RUNNING).then_some((Run(word & !PHASES), expected))
    }

    /// Takes what is in hand of a run away from the thread that runs it; `None` when it is over.
    pub(super) fn seize(&self, run: Run) -> Option<Box<T>> {
        self.leave(run, SEIZED)
    }

    fn leave(&self, run: Run, phase: u64) -> Option<Box<T>> {
        let (running, over) = (run.0 | RUNNING, run.0 | phase);
        let changed = self.word.compare_exchange(running, over, AcqRel, Relaxed);
        changed.ok()?;
        self.hand.take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use super::*;

    #[test]
    fn what_is_in_hand_is_taken_back_or_seized_and_never_both() {
        let bay = Bay::default();
        bay.lay(Box::new(1), Duration::ZERO);
        let (first, _) = bay.running().unwrap();
        assert_eq!(bay.take_back().as_deref(), Some(&1));
        assert!(bay.running().is_none());

        bay.lay(Box::new(2), Duration::from_millis(3));
        let (second, expected) = bay.running().unwrap();
        assert_eq!(expected, Duration::from_millis(3));
        assert!(bay.seize(first).is_none(), "that run is over");
        assert_eq!(bay.seize(second).as_deref(), Some(&2));
        assert!(bay.seize(second).is_none());
        assert!(bay.take_back().is_none());
    }

    #[test]
    fn two_threads_that_reach_for_it_at_once_share_nothing() {
        const ROUNDS: usize = 20_000;
        let bay = Arc::new(Bay::default());
        let seized = Arc::new(AtomicUsize::new(0));
        let meet = Arc::new(Barrier::new(2));
        let watch = {
            let (bay, seized, meet) = (Arc::clone(&bay), Arc::clone(&seized), Arc::clone(&meet));
            std::thread::spawn(move || {
                meet.wait();
                while seized.load(SeqCst) == 0 {
                    // Mostly of a run that is over by then.
                    let Some((run, _)) = bay.running() else {
                        continue;
                    };
                    std::thread::yield_now();
                    if bay.seize(run).is_some() {
                        seized.fetch_add(1, SeqCst);
                    }
                }
            })
        };
        meet.wait();
        let mut kept = 0;
        for round in 0..ROUNDS {
            bay.lay(Box::new(round), Duration::ZERO);
            match bay.take_back() {
                Some(hand) => {
                    assert_eq!(*hand, round);
                    kept += 1;
                }
                None => break,
            }
        }
        if kept == ROUNDS {
            // It never met one; it does now.
            bay.lay(Box::new(ROUNDS), Duration::ZERO);
        }
        watch.join().unwrap();
        assert!(bay.take_back().is_none());
        assert_eq!(seized.load(SeqCst), 1);
    }
}
