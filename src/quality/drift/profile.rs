//! What rows look like: histograms and moments, in bounded memory.
//!
//! Fields that baselines of earlier versions lack are empty where they are read from such a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bins of a probability.
const TWENTIETHS: usize = 20;
/// Bins of outputs: the last holds all classes beyond.
const MAX_OUTPUTS: usize = 256;
/// Bins of lengths, two an octave: up to 2^16 tokens.
const LENGTHS: usize = 32;
/// Upper ends of the bins of the share of unknown tokens, the last being all above.
const UNKNOWN: [f64; 6] = [0.0, 0.02, 0.05, 0.1, 0.2, 0.5];
/// Numbers of a vector that are looked at.
const MAX_DIMENSIONS: usize = 8192;
/// Languages told apart; more are one.
const MAX_LANGUAGES: usize = 128;
/// Vectors from which on the centroid is known well enough for distances from it.
const LEAST_VECTORS: u64 = 64;
/// Bins of squared distances, eight an octave: from a sixteenth of the spread to 2^12 of it.
const WIDTHS: usize = 128;

/// What came out for a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outputs<'a> {
    /// The best class.
    Class(usize),
    /// A probability.
    Score(f32),
    /// The best label of each token.
    Labels(&'a [usize]),
    /// A text of so many tokens.
    Generated(usize),
    /// An embedding.
    Vector(&'a [f32]),
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row<'a> {
    /// What came out.
    pub outputs: Outputs<'a>,
    /// How sure the model is, of models that tell.
    pub confidence: Option<f32>,
    /// Tokens that went in.
    pub tokens: usize,
    /// Those that stand for what the vocabulary lacks.
    pub unknown: u32,
    /// Its text's language, where it was told.
    pub language: Option<&'static str>,
}

/// Sums over vectors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moments {
    /// Vectors.
    pub n: u64,
    /// Their sum.
    pub sum: Vec<f64>,
    /// The sum of their squared lengths.
    pub squares: f64,
}

/// What rows look like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Rows.
    pub rows: u64,
    /// Rows, or tokens, by what came out.
    pub output: Vec<u64>,
    /// Rows by how sure the model was, in twentieths.
    pub confidence: Vec<u64>,
    /// Rows by tokens, two bins an octave.
    pub length: Vec<u64>,
    /// Rows by their share of unknown tokens.
    pub unknown: Vec<u64>,
    /// Of vectors.
    pub embedding: Moments,
    /// Vectors by their squared distance from the centroid as far as it was known then, over the spread.
    #[serde(default)]
    pub distance: Vec<u64>,
    /// Rows by their language, as far as it was told.
    #[serde(default)]
    pub language: BTreeMap<String, u64>,
}

impl Profile {
    /// Takes a row in. Numbers that are none are not taken.
    pub fn observe(&mut self, row: &Row<'_>) {
        self.rows += 1;
        match row.outputs {
            Outputs::Class(class) => count(&mut self.output, class.min(MAX_OUTPUTS - 1)),
            Outputs::Score(score) => {
                if let Some(bin) = twentieth(score) {
                    count(&mut self.output, bin);
                }
            }
            Outputs::Labels(labels) => {
                for &label in labels {
                    count(&mut self.output, label.min(MAX_OUTPUTS - 1));
                }
            }
            Outputs::Generated(tokens) => count(&mut self.output, half_octave(tokens)),
            Outputs::Vector(values) => self.observe_vector(values),
        }
        if let Some(bin) = row.confidence.and_then(twentieth) {
            count(&mut self.confidence, bin);
        }
        count(&mut self.length, half_octave(row.tokens));
        count(&mut self.unknown, unknown_bin(row.tokens, row.unknown));
        if let Some(language) = row.language {
            let known = self.language.contains_key(language);
            let name = if known || self.language.len() < MAX_LANGUAGES {
                language
            } else {
                super::language::OTHER
            };
            *self.language.entry(name.to_owned()).or_default() += 1;
        }
    }

    fn observe_vector(&mut self, values: &[f32]) {
        let before = &self.embedding;
        if before.n >= LEAST_VECTORS && before.sum.len() == values.len() {
            let n = before.n as f64;
            let distance: f64 = values
                .iter()
                .zip(&before.sum)
                .map(|(&value, sum)| (f64::from(value) - sum / n).powi(2))
                .sum();
            if distance.is_finite() {
                let bin = width_bin(distance, spread_of(before));
                count(&mut self.distance, bin);
            }
        }
        self.embedding.observe(values);
    }
}

impl Moments {
    fn observe(&mut self, values: &[f32]) {
        let whole = values.len() <= MAX_DIMENSIONS && values.iter().all(|value| value.is_finite());
        if !whole || !self.sum.is_empty() && self.sum.len() != values.len() {
            return;
        }
        self.sum.resize(values.len(), 0.0);
        self.n += 1;
        for (sum, &value) in self.sum.iter_mut().zip(values) {
            *sum += f64::from(value);
            self.squares += f64::from(value).powi(2);
        }
    }
}

/// The mean squared distance of vectors from their centroid.
pub(super) fn spread_of(moments: &Moments) -> f64 {
    let n = moments.n.max(1) as f64;
    let of_centroid: f64 = moments.sum.iter().map(|sum| (sum / n).powi(2)).sum();
    (moments.squares / n - of_centroid).max(0.0)
}

/// The squared distance of a vector from a centroid of as many values.
pub(super) fn squared_distance(vector: &[f32], centroid: &[f64]) -> f64 {
    let pairs = vector.iter().zip(centroid);
    pairs.map(|(&x, y)| (f64::from(x) - y).powi(2)).sum()
}

/// The bin of a squared distance, eight an octave.
pub(super) fn width_bin(distance: f64, spread: f64) -> usize {
    if distance <= 0.0 {
        return 0;
    }
    // Nearer than a sixteenth is as near as can be; vectors that are all the same have no spread.
    let octaves = (distance / spread.max(1e-12)).log2() + 4.0;
    ((octaves * 8.0).max(0.0) as usize).min(WIDTHS - 1)
}

/// The bin of a row's share of unknown tokens.
pub(super) fn unknown_bin(tokens: usize, unknown: u32) -> usize {
    let share = f64::from(unknown) / tokens.max(1) as f64;
    let bin = UNKNOWN.iter().position(|&most| share <= most);
    bin.unwrap_or(UNKNOWN.len())
}

fn count(bins: &mut Vec<u64>, bin: usize) {
    if bins.len() <= bin {
        bins.resize(bin + 1, 0);
    }
    bins[bin] += 1;
}

fn twentieth(probability: f32) -> Option<usize> {
    let bin = probability.clamp(0.0, 1.0) * TWENTIETHS as f32;
    probability
        .is_finite()
        .then(|| (bin as usize).min(TWENTIETHS - 1))
}

/// The bin of a length: 1, 1.4, 2, 2.8, 4, … tokens.
pub(super) fn half_octave(tokens: usize) -> usize {
    let octaves = (tokens.max(1) as f64).log2();
    ((octaves * 2.0) as usize).min(LENGTHS - 1)
}
