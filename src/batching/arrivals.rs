//! Whether and how soon more rows are to be expected, from what came lately.
//!
//! Two readings, both made for closed-loop clients, which come back in a burst when a batch ends:
//! the **gap**, from the latest arrival or the latest end of a batch to the next arrival, and the
//! **peak**, the most rows that were in the system at a time. When as many rows wait as the peak,
//! everybody is on board and nobody is to be waited for.

use std::time::{Duration, Instant};

const GAPS: usize = 15;
/// Fewer gaps than this say nothing.
const NEEDED: usize = 4;
/// Batches that the peak looks back.
const BATCHES: usize = 8;

/// What came lately.
#[derive(Debug, Clone)]
pub struct Arrivals {
    gaps: [Duration; GAPS],
    gap_count: usize,
    /// Most rows in the system, for each of the last batches; the current one's first.
    peaks: [usize; BATCHES],
    /// The latest arrival or end of a batch.
    latest: Option<Instant>,
}

impl Arrivals {
    pub fn new() -> Self {
        Self {
            gaps: [Duration::ZERO; GAPS],
            gap_count: 0,
            peaks: [0; BATCHES],
            latest: None,
        }
    }

    /// Notes the arrival of a row, after which `in_system` rows wait or run. Rows that come at the
    /// same instant, as those of one request do, count as one arrival.
    pub fn note(&mut self, now: Instant, in_system: usize) {
        self.peaks[0] = self.peaks[0].max(in_system);
        if let Some(latest) = self.latest {
            let gap = now.saturating_duration_since(latest);
            if gap.is_zero() {
                return;
            }
            self.gaps[self.gap_count % GAPS] = gap;
            self.gap_count += 1;
        }
        self.latest = Some(now);
    }

    /// Notes that a batch ended.
    pub fn note_done(&mut self, now: Instant) {
        self.latest = self.latest.max(Some(now));
        self.peaks.rotate_right(1);
        self.peaks[0] = 0;
    }

    /// The latest arrival or end of a batch.
    pub fn latest(&self) -> Option<Instant> {
        self.latest
    }

    /// The most rows that were in the system at a time, lately.
    pub fn peak(&self) -> usize {
        self.peaks.iter().copied().max().unwrap_or(0)
    }

    /// The gap to expect inside a burst, once enough have been seen. The lower third of the last
    /// ones: a mean would be ruled by the long gaps between bursts.
    pub fn expected_gap(&self) -> Option<Duration> {
        let known = self.gap_count.min(GAPS);
        if known < NEEDED {
            return None;
        }
        let mut sorted = self.gaps;
        let sorted = &mut sorted[..known];
        sorted.sort_unstable();
        Some(sorted[known / 3])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gaps: impl IntoIterator<Item = u64>) -> Option<Duration> {
        let mut now = Instant::now();
        let mut arrivals = Arrivals::new();
        arrivals.note(now, 1);
        for gap in gaps {
            now += Duration::from_micros(gap);
            arrivals.note(now, 1);
        }
        arrivals.expected_gap()
    }

    #[test]
    fn bursts_are_known_by_their_short_gaps() {
        let bursts = (0..40).map(|at| if at % 2 == 0 { 50 } else { 5_000 });
        assert_eq!(after(bursts), Some(Duration::from_micros(50)));
        assert_eq!(after([5_000; 20]), Some(Duration::from_millis(5)));
    }

    #[test]
    fn a_few_arrivals_and_rows_of_one_request_say_nothing() {
        assert_eq!(after([50, 50, 50]), None);
        assert_eq!(after([0; 100]), None);
    }

    #[test]
    fn the_peak_is_forgotten_after_a_few_batches() {
        let mut arrivals = Arrivals::new();
        let now = Instant::now();
        arrivals.note(now, 32);
        for batch in 0..BATCHES {
            assert_eq!(arrivals.peak(), 32, "after {batch} batches");
            arrivals.note_done(now);
            arrivals.note(now, 1);
        }
        assert_eq!(arrivals.peak(), 1);
    }
}
