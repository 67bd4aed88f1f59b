//! Mean, spread and quantiles of a stream of numbers, in bounded memory.

use serde::Serialize;

use super::Reservoir;

/// Numbers kept for the quantiles: exact up to so many; beyond, a quantile's rank has a standard error
/// of `√(p(1−p)/4096)`, a third of a percentage point at p5.
const KEPT: usize = 4096;

/// A stream of finite numbers. Others are not taken.
#[derive(Debug, Clone)]
pub struct Distribution {
    sample: Reservoir<f64>,
    n: u64,
    mean: f64,
    /// Sum of squared distances from the mean (Welford).
    squares: f64,
    least: f64,
    most: f64,
}

/// What a [`Distribution`] looks like.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Numbers.
    pub n: u64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (of the population).
    pub deviation: f64,
    /// The least.
    pub min: f64,
    /// 1 of 100 is below.
    pub p1: f64,
    /// 5 of 100 are below.
    pub p5: f64,
    /// The median.
    pub p50: f64,
    /// 5 of 100 are above.
    pub p95: f64,
    /// 1 of 100 is above.
    pub p99: f64,
    /// The most.
    pub max: f64,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            sample: Reservoir::new(KEPT, 0x5eed),
            n: 0,
            mean: 0.0,
            squares: 0.0,
            least: f64::INFINITY,
            most: f64::NEG_INFINITY,
        }
    }
}

impl Distribution {
    /// Takes a number in.
    pub fn observe(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.n += 1;
        let distance = value - self.mean;
        self.mean += distance / self.n as f64;
        self.squares += distance * (value - self.mean);
        self.least = self.least.min(value);
        self.most = self.most.max(value);
        self.sample.offer(|| value);
    }

    /// Takes another stream in.
    pub fn merge(&mut self, other: Self) {
        if other.n == 0 {
            return;
        }
        let (mine, theirs) = (self.n as f64, other.n as f64);
        let distance = other.mean - self.mean;
        self.n += other.n;
        self.mean += distance * theirs / (mine + theirs);
        self.squares += other.squares + distance * distance * mine * theirs / (mine + theirs);
        self.least = self.least.min(other.least);
        self.most = self.most.max(other.most);
        self.sample.merge(other.sample);
    }

    /// Numbers taken in.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Their mean; `None` of none.
    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then_some(self.mean)
    }

    /// Numbers kept, a uniform sample where there were more than 4096.
    pub fn sample(&self) -> &[f64] {
        self.sample.kept()
    }

    /// What it looks like; `None` of none.
    pub fn quantiles(&self) -> Option<Quantiles> {
        if self.n == 0 {
            return None;
        }
        let mut sorted = self.sample.kept().to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&sorted, share);
        Some(Quantiles {
            n: self.n,
            mean: self.mean,
            deviation: (self.squares / self.n as f64).sqrt(),
            min: self.least,
            p1: at(0.01),
            p5: at(0.05),
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            max: self.most,
        })
    }
}

/// The quantile of sorted numbers, linear between neighbours, as numpy's default; 0 of none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let place = share.clamp(0.0, 1.0) * last as f64;
    let below = place.floor() as usize;
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    low + (high - low) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_numbers_have_no_figures_and_infinite_ones_are_not_taken() {
        let mut stream = Distribution::default();
        stream.observe(f64::NAN);
        stream.observe(f64::INFINITY);
        assert_eq!(stream.quantiles(), None);
        assert_eq!(stream.mean(), None);
    }

    #[test]
    fn two_streams_merged_are_as_one() {
        let (mut one, mut other, mut both) =
            <(Distribution, Distribution, Distribution)>::default();
        for index in 0..1000 {
            let value = f64::from(index % 37).sin();
            if index < 300 { &mut one } else { &mut other }.observe(value);
            both.observe(value);
        }
        one.merge(other);
        let (merged, whole) = (one.quantiles().unwrap(), both.quantiles().unwrap());
        assert!((merged.mean - whole.mean).abs() < 1e-12);
        assert!((merged.deviation - whole.deviation).abs() < 1e-12);
        assert_eq!((merged.n, merged.p5), (whole.n, whole.p5));
        one.merge(Distribution::default());
        assert_eq!(one.n(), 1000);
    }

    #[test]
    fn memory_is_bounded_and_quantiles_stay_close() {
        let mut stream = Distribution::default();
        for index in 0..200_000_u32 {
            stream.observe(f64::from(index.wrapping_mul(2_654_435_761)) / 2_f64.powi(32));
        }
        let found = stream.quantiles().unwrap();
        assert_eq!(stream.sample().len(), KEPT);
        assert!((found.p5 - 0.05).abs() < 0.015, "{}", found.p5);
        assert!((found.p50 - 0.5).abs() < 0.03, "{}", found.p50);
    }
}
