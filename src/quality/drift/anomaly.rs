//! Single rows far from the baseline: a model that is sure of an answer to something unlike all that it
//! was asked before is not to be trusted as much as its confidence says.
//!
//! A row is far where it lies beyond the baseline's quantiles: its length on either side, its share of
//! unknown tokens, its vector's distance from the centroid. [`Limits`] are made of a baseline once;
//! holding a row against them takes nanoseconds, of a vector one pass over it.

use super::profile::{Profile, half_octave, spread_of, squared_distance, unknown_bin, width_bin};
use crate::config::DriftConfig;

/// In which way a row is far from the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anomaly {
    /// It is longer or shorter than others.
    Length,
    /// More of its tokens are unknown.
    UnknownTokens,
    /// Its vector is far from the centroid.
    Embedding,
}

impl Anomaly {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Length, Self::UnknownTokens, Self::Embedding];

    /// Its name in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::UnknownTokens => "unknown_tokens",
            Self::Embedding => "embedding",
        }
    }
}

/// Some ways of being far; mostly none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Anomalies(u8);

impl Anomalies {
    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Anomaly> {
        Anomaly::ALL
            .into_iter()
            .filter(move |&anomaly| self.0 & bit(anomaly) != 0)
    }

    fn set(&mut self, anomaly: Anomaly, far: bool) {
        if far {
            self.0 |= bit(anomaly);
        }
    }
}

fn bit(anomaly: Anomaly) -> u8 {
    1 << anomaly as u8
}

/// How far rows of a baseline go.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The first and the last bin of usual lengths.
    length: (usize, usize),
    /// The last of usual shares of unknown tokens.
    unknown: usize,
    embedding: Option<Ball>,
    /// From where on a model is sure.
    confidence: f32,
}

/// Where vectors are.
#[derive(Debug, Clone, PartialEq)]
struct Ball {
    centroid: Vec<f64>,
    /// Mean squared distance from it.
    spread: f64,
    /// The last bin of usual distances.
    last: usize,
}

impl Limits {
    /// Those of a baseline; `None` where anomalies are not looked for, or it has too few rows to have
    /// any beyond the quantile.
    pub fn of(baseline: &Profile, config: &DriftConfig) -> Option<Self> {
        let beyond = 1.0 - config.anomaly_quantile;
        if beyond <= 0.0 || (baseline.rows as f64) * beyond < 1.0 {
            return None;
        }
        let highest = |bins: &[u64]| bin_at(bins.iter().copied(), config.anomaly_quantile);
        let bins = baseline.length.len();
        let shortest = bin_at(
            baseline.length.iter().rev().copied(),
            config.anomaly_quantile,
        );
        let moments = &baseline.embedding;
        let known: u64 = baseline.distance.iter().sum();
        let embedding = (moments.n > 1 && known as f64 * beyond >= 1.0).then(|| Ball {
            centroid: moments
                .sum
                .iter()
                .map(|sum| sum / moments.n as f64)
                .collect(),
            spread: spread_of(moments),
            last: highest(&baseline.distance),
        });
        Some(Self {
            length: (bins.saturating_sub(1 + shortest), highest(&baseline.length)),
            unknown: highest(&baseline.unknown),
            embedding,
            confidence: config.anomaly_confidence,
        })
    }

    /// In which ways a row is far: by its tokens, those of them that are unknown, and its vector.
    pub fn far(&self, tokens: usize, unknown: u32, vector: Option<&[f32]>) -> Anomalies {
        let mut far = Anomalies::default();
        let length = half_octave(tokens);
        far.set(
            Anomaly::Length,
            length < self.length.0 || length > self.length.1,
        );
        far.set(
            Anomaly::UnknownTokens,
            unknown_bin(tokens, unknown) > self.unknown,
        );
        if let (Some(ball), Some(vector)) = (&self.embedding, vector)
            && vector.len() == ball.centroid.len()
        {
            let distance = squared_distance(vector, &ball.centroid);
            far.set(
                Anomaly::Embedding,
                width_bin(distance, ball.spread) > ball.last,
            );
        }
        far
    }

    /// Whether so much confidence makes a row that is far an anomaly. A model that tells none is held to
    /// be sure.
    pub fn is_sure(&self, confidence: Option<f32>) -> bool {
        confidence.is_none_or(|confidence| confidence >= self.confidence)
    }
}

/// The first bin with which `quantile` of the counts are reached.
fn bin_at(bins: impl ExactSizeIterator<Item = u64> + Clone, quantile: f64) -> usize {
    let all: u64 = bins.clone().sum();
    let wanted = all as f64 * quantile;
    let mut reached = 0;
    let last = bins.len().saturating_sub(1);
    bins.into_iter()
        .position(|count| {
            reached += count;
            reached as f64 >= wanted
        })
        .unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::drift::{Outputs, Row};

    fn limits(rows: u64, vector: impl Fn(u64) -> Vec<f32>) -> (Profile, Option<Limits>) {
        let mut profile = Profile::default();
        for at in 0..rows {
            let vector = vector(at);
            profile.observe(&Row {
                outputs: Outputs::Vector(&vector),
                confidence: None,
                tokens: 16 + (at % 32) as usize,
                unknown: 0,
                language: None,
            });
        }
        let limits = Limits::of(&profile, &DriftConfig::default());
        (profile, limits)
    }

    /// Points about (3, 0).
    fn about(at: u64) -> Vec<f32> {
        let angle = at as f32 * 2.4;
        vec![3.0 + angle.sin(), angle.cos() * (at % 7) as f32 / 7.0]
    }

    fn kinds(far: Anomalies) -> Vec<&'static str> {
        far.iter().map(Anomaly::name).collect()
    }

    #[test]
    fn rows_beyond_the_baselines_quantiles_are_far_and_those_within_are_not() {
        let (_, limits) = limits(4000, about);
        let limits = limits.unwrap();
        for at in 0..500 {
            let far = limits.far(20, 0, Some(&about(at)));
            assert!(far.is_empty(), "{at} {far:?}");
        }
        assert_eq!(kinds(limits.far(200, 0, None)), ["length"]);
        assert_eq!(kinds(limits.far(2, 0, None)), ["length"]);
        assert_eq!(kinds(limits.far(20, 9, None)), ["unknown_tokens"]);
        assert_eq!(kinds(limits.far(20, 0, Some(&[-3.0, 0.0]))), ["embedding"]);
        let all = limits.far(500, 400, Some(&[90.0, 0.0]));
        assert_eq!(kinds(all), ["length", "unknown_tokens", "embedding"]);
        // A vector of another model says nothing.
        assert!(limits.far(20, 0, Some(&[9.0; 3])).is_empty());
        assert!(limits.is_sure(None) && limits.is_sure(Some(0.95)));
        assert!(!limits.is_sure(Some(0.6)));
    }

    #[test]
    fn a_baseline_without_distances_or_with_few_rows_flags_no_vector() {
        let (mut profile, few) = limits(500, about);
        assert_eq!(few, None);
        profile.rows = 4000;
        profile.distance.clear();
        let limits = Limits::of(&profile, &DriftConfig::default()).unwrap();
        assert!(limits.far(20, 0, Some(&[-90.0, 0.0])).is_empty());
    }
}
