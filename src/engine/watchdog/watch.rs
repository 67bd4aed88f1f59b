//! How long a run has lasted, as far as this process was given time to see it; **pure**: time is an
//! argument.
//!
//! A process that is stopped, or a machine that is, wakes up to find every run older than it should
//! be. So the time between two looks counts for no more than two of what it should have been.

use std::time::{Duration, Instant};

use super::bay::Run;

/// When a run is too long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// No run is shorter than this and yet too long.
    pub least: Duration,
    /// Nor is one that takes less than so many times what was expected.
    pub factor: f64,
}

impl Limit {
    /// For a run that is expected to take so long.
    fn of(&self, expected: Duration) -> Duration {
        let scaled = Duration::try_from_secs_f64(expected.as_secs_f64() * self.factor);
        self.least.max(scaled.unwrap_or(Duration::MAX))
    }

    /// How often to look: often enough that a run is found out soon after it is too long.
    pub(super) fn interval(&self) -> Duration {
        (self.least / 16).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}

/// The time that counts between looks.
#[derive(Debug)]
pub(super) struct Looks {
    last: Instant,
    most: Duration,
}

impl Looks {
    pub(super) fn begin(now: Instant, interval: Duration) -> Self {
        Self {
            last: now,
            most: interval * 2,
        }
    }

    /// The time since the last look, as far as it counts.
    pub(super) fn look(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.last);
        self.last = now;
        passed.min(self.most)
    }
}

/// What was seen of one bay.
#[derive(Debug, Default)]
pub(super) struct Seen {
    run: Option<Run>,
    lasted: Duration,
}

impl Seen {
    /// Notes what runs now, `passed` after the last look; returns a run that is too long, with the
    /// time that it was seen to last.
    pub(super) fn note(
        &mut self,
        running: Option<(Run, Duration)>,
        passed: Duration,
        limit: &Limit,
    ) -> Option<(Run, Duration)> {
        let Some((run, expected)) = running else {
            self.run = None;
            return None;
        };
        if self.run != Some(run) {
            // Begun since the last look; when, is not known.
            self.run = Some(run);
            self.lasted = Duration::ZERO;
            return None;
        }
        self.lasted += passed;
        (self.lasted > limit.of(expected)).then_some((run, self.lasted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::watchdog::bay::Bay;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_run_is_too_long_beyond_the_limit_and_beyond_what_was_expected() {
        let limit = Limit {
            least: 10 * SECOND,
            factor: 4.0,
        };
        for (expected_s, found_out_after) in [(0, 11), (2, 11), (5, 21), (u64::MAX >> 30, 3600)] {
            let bay = Bay::default();
            bay.lay(Box::new(()), Duration::from_secs(expected_s));
            let mut seen = Seen::default();
            assert_eq!(seen.note(bay.running(), SECOND, &limit), None);
            let looks = (1..3600).find(|_| seen.note(bay.running(), SECOND, &limit).is_some());
            assert_eq!(looks.unwrap_or(3600), found_out_after, "{expected_s}");
        }
    }

    #[test]
    fn runs_that_follow_each_other_are_not_taken_for_one() {
        let limit = Limit {
            least: 3 * SECOND,
            factor: 1.0,
        };
        let bay = Bay::default();
        let mut seen = Seen::default();
        for _ in 0..100 {
            bay.lay(Box::new(()), Duration::ZERO);
            for _ in 0..3 {
                assert_eq!(seen.note(bay.running(), SECOND, &limit), None);
            }
            bay.take_back();
        }
    }

    #[test]
    fn time_in_which_the_process_stood_still_does_not_count() {
        let began = Instant::now();
        let mut looks = Looks::begin(began, SECOND);
        assert_eq!(looks.look(began + SECOND), SECOND);
        assert_eq!(looks.look(began + 3600 * SECOND), 2 * SECOND);
        assert_eq!(looks.look(began + 3601 * SECOND), SECOND);
        assert_eq!(
            looks.look(began),
            Duration::ZERO,
            "nor a clock that goes back"
        );
    }
}
