//! Rotary positions: the angle per position of each pair of a head's dimensions, with the ways in
//! which models stretch them over longer contexts.
//!
//! ```text
//! fᵢ = base^(−2i/d)                     i < d/2, d the dimensions that rotate
//! linear     fᵢ / s
//! llama3     fᵢ where its wavelength is below original/high, fᵢ / s where it is above
//!            original/low, in between mixed linearly in original/wavelength
//! yarn       mixed likewise, linearly in i between the pairs that turn β_fast and β_slow times
//!            in the original context; the result times 0.1·ln s + 1
//! factors    fᵢ / sᵢ, as in the file; with LongRoPE the short or the long list, the result times
//!            √(1 + ln s / ln original)
//! ```
//! Su et al. 2021 (arXiv:2104.09864), Peng et al. 2023 (`YaRN`, arXiv:2309.00071), Ding et al. 2024
//! (`LongRoPE`, arXiv:2402.13753).

use crate::ops::{Rope, RopeStyle};

/// How a layer tells positions apart.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Wavelengths grow from 2π to almost 2π·base.
    pub base: f64,
    /// Dimensions of a head that rotate, an even number; the others stay as they are.
    pub dimensions: usize,
    /// Which dimensions make a pair.
    pub style: RopeStyle,
    /// How they are stretched.
    pub scaling: RopeScaling,
    /// The rotated q and k are multiplied by this.
    pub magnitude: f32,
}

/// How positions are stretched beyond what the model was first trained for.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by the same factor.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Low frequencies by a factor, high ones not.
    Llama3 {
        /// By how much.
        factor: f64,
        /// Periods in the original context below which a pair is stretched in full.
        low: f64,
        /// Periods above which it is not.
        high: f64,
        /// Positions of the first training.
        original: f64,
    },
    /// As Llama 3, by turns in the original context.
    Yarn {
        /// By how much.
        factor: f64,
        /// Turns above which a pair is not stretched.
        beta_fast: f64,
        /// Turns below which it is stretched in full.
        beta_slow: f64,
        /// Positions of the first training.
        original: f64,
    },
    /// Each pair by its own factor, `[dimensions / 2]`.
    Factors(Vec<f32>),
}

impl RopeSpec {
    /// The op's tables for positions below `positions`.
    pub(super) fn build(&self, positions: usize) -> candle_core::Result<Rope> {
        Rope::new(self.style, self.frequencies(), self.magnitude, positions)
    }

    /// `[dimensions / 2]`, in radians per position.
    pub(in crate::models) fn frequencies(&self) -> Vec<f32> {
        let pairs = self.dimensions / 2;
        let plain = (0..pairs).map(|i| self.base.powf(-2.0 * i as f64 / self.dimensions as f64));
        let scaled = plain.enumerate().map(|(i, f)| match &self.scaling {
            RopeScaling::None => f,
            RopeScaling::Linear { factor } => f / factor,
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let periods = original * f / std::f64::consts::TAU;
                let kept = ((periods - low) / (high - low)).clamp(0.0, 1.0);
                f * (kept + (1.0 - kept) / factor)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original,
            } => {
                // The pair, as a real number, that turns so often in the original context.
                let pair = |turns: f64| {
                    self.dimensions as f64 * (original / (turns * std::f64::consts::TAU)).ln()
                        / (2.0 * self.base.ln())
                };
                let last = (self.dimensions - 1) as f64;
                let first = pair(*beta_fast).floor().max(0.0);
                let end = pair(*beta_slow).ceil().min(last);
                // Not 0 where both fall on one pair; the same little that transformers takes.
                let width = if end > first { end - first } else { 0.001 };
                let stretched = ((i as f64 - first) / width).clamp(0.0, 1.0);
                f * (1.0 - stretched + stretched / factor)
            }
            RopeScaling::Factors(factors) => f / f64::from(factors[i]),
        });
        scaled.map(|f| f as f32).collect()
    }
}

/// `YaRN`'s magnitude for a stretch by `factor`.
pub(in crate::models) fn yarn_magnitude(factor: f64) -> f32 {
    if factor > 1.0 {
        (0.1 * factor.ln() + 1.0) as f32
    } else {
        1.0
    }
}

/// `LongRoPE`'s magnitude for a context `factor` times as long as the original one.
pub(super) fn long_rope_magnitude(factor: f64, original: f64) -> f32 {
    if factor > 1.0 && original > 1.0 {
        (1.0 + factor.ln() / original.ln()).sqrt() as f32
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(scaling: RopeScaling) -> RopeSpec {
        RopeSpec {
            base: 10_000.0,
            dimensions: 8,
            style: RopeStyle::HalfSplit,
            scaling,
            magnitude: 1.0,
        }
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-6 * b, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn plain_and_linear_frequencies_are_powers_of_the_base() {
        let plain = spec(RopeScaling::None).frequencies();
        close(&plain, &[1.0, 0.1, 0.01, 0.001]);
        let linear = spec(RopeScaling::Linear { factor: 4.0 }).frequencies();
        close(&linear, &[0.25, 0.025, 0.0025, 0.000_25]);
        let factors = RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]);
        close(
            &spec(factors).frequencies(),
            &[1.0, 0.05, 0.0025, 0.000_125],
        );
    }

    #[test]
    fn llama3_keeps_fast_pairs_and_stretches_slow_ones() {
        let found = spec(RopeScaling::Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            original: 1000.0,
        })
        .frequencies();
        // 159, 16, 1.59 and 0.159 periods in the original context.
        let kept = (10.0 / std::f32::consts::TAU - 1.0) / 3.0;
        let mixed = 0.01 * (kept + (1.0 - kept) / 8.0);
        close(&found, &[1.0, 0.1, mixed, 0.001 / 8.0]);
    }

    #[test]
    fn yarn_mixes_between_two_pairs() {
        let found = spec(RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original: 4096.0,
        })
        .frequencies();
        // Pairs 1.3 and 2.8 turn 32 times and once, so the ramp goes from pair 1 to pair 3.
        close(&found, &[1.0, 0.1, 0.01 * (0.5 + 0.5 / 4.0), 0.001 / 4.0]);
        assert!((yarn_magnitude(4.0) - 1.138_629_4).abs() < 1e-6);
        assert!((long_rope_magnitude(32.0, 4096.0) - 1.190_238).abs() < 1e-5);
        assert!((long_rope_magnitude(1.0, 4096.0) - 1.0).abs() < 1e-9);
    }
}
