//! When the calls of an open loop are due: at a rate of their own, whatever the server does.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::generation::Random;

/// How calls are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// As many independent callers do: gaps are exponential.
    Poisson,
    /// Equal gaps.
    Constant,
}

/// The times at which calls are due, from the beginning on; endless. The same for the same seed.
#[derive(Debug, Clone)]
pub struct Arrivals {
    spacing: Spacing,
    /// Calls a second.
    rate: f64,
    random: Random,
    count: u64,
    last_s: f64,
}

impl Arrivals {
    /// Calls at `rate` a second, which is above 0.
    pub fn new(spacing: Spacing, rate: f64, seed: u64) -> Self {
        debug_assert!(rate > 0.0);
        Self {
            spacing,
            rate,
            random: Random::new(seed),
            count: 0,
            last_s: 0.0,
        }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.last_s = match self.spacing {
            // From the count, so that rounding does not add up.
            Spacing::Constant => self.count as f64 / self.rate,
            Spacing::Poisson => self.last_s - (1.0 - self.random.unit()).ln() / self.rate,
        };
        self.count += 1;
        Duration::try_from_secs_f64(self.last_s).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_are_equally_apart_and_do_not_drift() {
        let due: Vec<_> = Arrivals::new(Spacing::Constant, 3.0, 0)
            .take(300_001)
            .collect();
        assert_eq!(due[0], Duration::ZERO);
        assert_eq!(due[3], Duration::from_secs(1));
        assert_eq!(due[300_000], Duration::from_secs(100_000));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread_of_exponential_gaps() {
        let due: Vec<_> = Arrivals::new(Spacing::Poisson, 200.0, 7)
            .take(20_000)
            .collect();
        let gaps: Vec<f64> = due
            .windows(2)
            .map(|pair| pair[1].as_secs_f64() - pair[0].as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 200.0 - 1.0).abs() < 0.03, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{variance}");
        // Of exponential gaps, 1/e are longer than the mean.
        let longer = gaps.iter().filter(|gap| **gap > mean).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1.0_f64).exp()).abs() < 0.02, "{longer}");
    }

    #[test]
    fn a_seed_gives_the_same_arrivals_and_another_seed_others() {
        let first = |seed| {
            Arrivals::new(Spacing::Poisson, 50.0, seed)
                .take(100)
                .collect::<Vec<_>>()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }
}
