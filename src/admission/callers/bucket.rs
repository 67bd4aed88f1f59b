//! How often a tenant may call: a token bucket in one atomic number, the generic cell rate algorithm
//! (ITU-T I.371, annex A). Pure: time is an argument.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What has been used up of a rate.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When the calls let through so far would have come, had they come at the rate exactly; in
    /// nanoseconds since the same moment as `now`.
    arrival: AtomicU64,
}

/// How many calls may come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Time between two calls in the long run, in nanoseconds.
    interval: u64,
    /// How far ahead of that calls may be, in nanoseconds.
    tolerance: u64,
}

impl Rate {
    /// `per_second` calls in the long run, `burst` of them at once after a quiet time.
    pub fn new(per_second: f64, burst: u32) -> Self {
        let interval = (1e9 / per_second).clamp(1.0, 1e15) as u64;
        Self {
            interval,
            tolerance: interval.saturating_mul(u64::from(burst.max(1)) - 1),
        }
    }
}

impl Bucket {
    /// Lets one call through.
    ///
    /// # Errors
    /// How long the next one has to wait.
    pub fn take(&self, rate: Rate, now: Duration) -> Result<(), Duration> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut wait = 0;
        self.arrival
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |arrival| {
                let due = arrival.max(now);
                wait = due.saturating_sub(now).saturating_sub(rate.tolerance);
                (wait == 0).then_some(due.saturating_add(rate.interval))
            })
            .map(drop)
            .map_err(|_| Duration::from_nanos(wait))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let (bucket, rate) = (Bucket::default(), Rate::new(10.0, 3));
        let second = Duration::from_secs(1);
        for _ in 0..3 {
            assert_eq!(bucket.take(rate, second), Ok(()));
        }
        let wait = bucket.take(rate, second).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        assert_eq!(bucket.take(rate, second + wait), Ok(()));
        assert!(bucket.take(rate, second + wait).is_err());
    }

    proptest! {
        /// In no stretch of time do more pass than the burst and what the rate adds to it; and who
        /// waits as told is let through.
        #[test]
        fn no_more_pass_than_the_rate_allows(
            per_second in 0.5f64..1000.0,
            burst in 1u32..20,
            gaps in proptest::collection::vec(0u64..400_000_000, 1..200),
        ) {
            let (bucket, rate) = (Bucket::default(), Rate::new(per_second, burst));
            let mut now = Duration::from_secs(1);
            let mut passed = Vec::new();
            for gap in gaps {
                now += Duration::from_nanos(gap);
                match bucket.take(rate, now) {
                    Ok(()) => passed.push(now),
                    Err(wait) => {
                        now += wait;
                        prop_assert_eq!(bucket.take(rate, now), Ok(()));
                        passed.push(now);
                    }
                }
            }
            for (first, &from) in passed.iter().enumerate() {
                for (last, &to) in passed.iter().enumerate().skip(first) {
                    let allowed = f64::from(burst) + to.saturating_sub(from).as_secs_f64() * per_second + 1e-3;
                    prop_assert!((last - first + 1) as f64 <= allowed);
                }
            }
        }
    }
}
