//! How a version's requests end and how long they take: for draining, for finding what nobody uses,
//! and for judging a canary by the difference of two readings.
//!
//! Latencies are counted in buckets of an eighth of an octave, so that a percentile is known to
//! within 7 %; a request costs a handful of relaxed additions.

use std::{
    sync::atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::Outcome;

/// Buckets of an octave.
const STEPS: u32 = 8;
/// From 1 µs to 2^36 µs, 19 hours.
const OCTAVES: u32 = 36;
const BUCKETS: usize = (STEPS * OCTAVES) as usize;

/// The traffic of one loaded version.
#[derive(Debug)]
pub struct Traffic {
    in_flight: AtomicUsize,
    last_used_ms: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    latency: Box<[AtomicU64]>,
}

/// A reading of [`Traffic`], or the difference of two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficReading {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed by the server's fault.
    pub failed: u64,
    /// Answered requests, by their time.
    latency: Vec<u64>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            last_used_ms: AtomicU64::new(now_ms()),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latency: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Traffic {
    /// Counts a request that came in.
    pub fn open(&self) {
        self.in_flight.fetch_add(1, Relaxed);
        self.last_used_ms.store(now_ms(), Relaxed);
    }

    /// Counts how a request that came in ended, after `total`.
    pub fn close(&self, outcome: Outcome, total: Duration) {
        match outcome {
            Outcome::Ok => {
                self.latency[bucket(total)].fetch_add(1, Relaxed);
                self.answered.fetch_add(1, Relaxed);
            }
            Outcome::Internal | Outcome::Unavailable => {
                self.failed.fetch_add(1, Relaxed);
            }
            // The caller's fault or choice, or the load's: no sign that the version is bad.
            Outcome::Invalid
            | Outcome::Overloaded
            | Outcome::DeadlineExceeded
            | Outcome::Cancelled => {}
        }
        self.in_flight.fetch_sub(1, Release);
    }

    /// Counts the end of a request for which nothing was run. It says nothing of how good or fast the
    /// version is, and would make one with many answers kept look faster than its candidate.
    pub fn close_unrun(&self) {
        self.in_flight.fetch_sub(1, Release);
    }

    /// Requests that came in and have not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Acquire)
    }

    /// When the last request came in, in milliseconds since 1970.
    pub fn last_used_ms(&self) -> u64 {
        self.last_used_ms.load(Relaxed)
    }

    /// What was counted so far.
    pub fn read(&self) -> TrafficReading {
        TrafficReading {
            answered: self.answered.load(Relaxed),
            failed: self.failed.load(Relaxed),
            latency: self
                .latency
                .iter()
                .map(|count| count.load(Relaxed))
                .collect(),
        }
    }
}

impl TrafficReading {
    /// What was counted between `earlier` and this.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            answered: self.answered.saturating_sub(earlier.answered),
            failed: self.failed.saturating_sub(earlier.failed),
            latency: self
                .latency
                .iter()
                .enumerate()
                .map(|(at, count)| {
                    count - earlier.latency.get(at).copied().unwrap_or(0).min(*count)
                })
                .collect(),
        }
    }

    /// Requests that ended, other than by the caller's doing.
    pub fn ended(&self) -> u64 {
        self.answered + self.failed
    }

    /// Requests of one that failed; 0 of none.
    pub fn error_rate(&self) -> f64 {
        self.failed as f64 / self.ended().max(1) as f64
    }

    /// The time that `share` of the answered requests did not exceed; `None` of none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let total: u64 = self.latency.iter().sum();
        let rank = ((total as f64 * share).ceil() as u64).clamp(1, total.max(1));
        let mut seen = 0;
        for (at, count) in self.latency.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(middle(at));
            }
        }
        None
    }
}

/// The bucket of a latency.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros())
        .unwrap_or(u64::MAX)
        .max(1);
    let octave = micros.ilog2().min(OCTAVES - 1);
    let step = ((u128::from(micros) * u128::from(STEPS)) >> octave) as u64 - u64::from(STEPS);
    (octave * STEPS) as usize + step.min(u64::from(STEPS) - 1) as usize
}

/// The middle of a bucket.
fn middle(bucket: usize) -> Duration {
    let (octave, step) = (bucket as u32 / STEPS, bucket as u32 % STEPS);
    let micros = f64::from(octave).exp2() * (1.0 + (f64::from(step) + 0.5) / f64::from(STEPS));
    Duration::from_nanos((micros * 1e3) as u64)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_known_says_nothing_of_how_fast_a_version_is() {
        let traffic = Traffic::default();
        traffic.open();
        traffic.close_unrun();
        assert_eq!((traffic.in_flight(), traffic.read().answered), (0, 0));
    }

    #[test]
    fn a_percentile_is_known_to_within_seven_percent() {
        for micros in [1_u64, 7, 63, 999, 4_096, 123_456, 9_999_999, 3_600_000_000] {
            let exact = Duration::from_micros(micros);
            let found = middle(bucket(exact)).as_secs_f64() / exact.as_secs_f64();
            assert!(
                micros < 8 || (0.93..=1.07).contains(&found),
                "{micros}: {found}"
            );
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn readings_are_told_apart_by_their_difference() {
        let traffic = Traffic::default();
        for ms in 1..=100 {
            traffic.open();
            traffic.close(Outcome::Ok, Duration::from_millis(ms));
        }
        let before = traffic.read();
        traffic.open();
        assert_eq!(traffic.in_flight(), 1);
        traffic.close(Outcome::Internal, Duration::ZERO);
        for outcome in [Outcome::Invalid, Outcome::Cancelled] {
            traffic.open();
            traffic.close(outcome, Duration::ZERO);
        }
        assert_eq!(traffic.in_flight(), 0);
        let since = traffic.read().since(&before);
        assert_eq!((since.answered, since.failed), (0, 1));
        assert_eq!(since.quantile(0.99), None);
        let p99 = before.quantile(0.99).unwrap().as_secs_f64();
        assert!((p99 / 0.099 - 1.0).abs() < 0.07, "{p99}");
        assert!(before.error_rate() < f64::EPSILON && since.error_rate() > 0.9);
    }
}
