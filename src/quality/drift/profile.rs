//! What rows look like: histograms and moments, in bounded memory.

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
            Outputs::Vector(values) => self.embedding.observe(values),
        }
        if let Some(bin) = row.confidence.and_then(twentieth) {
            count(&mut self.confidence, bin);
        }
        count(&mut self.length, half_octave(row.tokens));
        let share = f64::from(row.unknown) / row.tokens.max(1) as f64;
        let bin = UNKNOWN.iter().position(|&most| share <= most);
        count(&mut self.unknown, bin.unwrap_or(UNKNOWN.len()));
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
fn half_octave(tokens: usize) -> usize {
    let octaves = (tokens.max(1) as f64).log2();
    ((octaves * 2.0) as usize).min(LENGTHS - 1)
}
