//! How far a window is from the baseline.

use super::profile::Moments;
use crate::quality::comparison::jensen_shannon as divergence;

/// Added to each bin's count, so that one that is empty is rare and not impossible.
const SMOOTHING: f64 = 0.5;

/// Counts as shares, smoothed, over the bins that either side has something in.
fn shares(counts: &[u64], other: &[u64]) -> Vec<f64> {
    let at = |counts: &[u64], bin: usize| counts.get(bin).copied().unwrap_or(0);
    let bins: Vec<u64> = (0..counts.len().max(other.len()))
        .filter(|&bin| at(counts, bin) + at(other, bin) > 0)
        .map(|bin| at(counts, bin))
        .collect();
    let all = bins.iter().sum::<u64>() as f64 + SMOOTHING * bins.len() as f64;
    bins.iter()
        .map(|&count| (count as f64 + SMOOTHING) / all)
        .collect()
}

/// Population stability index `Σ (p − q) ln(p / q)` of two histograms' smoothed shares: 0 for equal
/// ones; from 0.1 on commonly a small, from 0.25 on a large change.
pub fn stability_index(baseline: &[u64], window: &[u64]) -> f64 {
    let (q, p) = (shares(baseline, window), shares(window, baseline));
    p.iter().zip(&q).map(|(p, q)| (p - q) * (p / q).ln()).sum()
}

/// Jensen-Shannon divergence in bits of two histograms' smoothed shares, 0 to 1.
pub fn jensen_shannon(baseline: &[u64], window: &[u64]) -> f64 {
    divergence(&shares(baseline, window), &shares(window, baseline))
}

/// How far the window's centroid is from the baseline's, squared, over what chance makes of it:
/// `|m − m'|² / (s² (1/n + 1/n'))`, `s²` being the baseline's mean squared distance from its own
/// centroid. 1 is to be expected where nothing has changed. 0 where either side has too little.
pub fn centroid_shift(baseline: &Moments, window: &Moments) -> f64 {
    let (n, other) = (baseline.n as f64, window.n as f64);
    if baseline.n < 2 || window.n < 1 || baseline.sum.len() != window.sum.len() {
        return 0.0;
    }
    let distance: f64 = baseline
        .sum
        .iter()
        .zip(&window.sum)
        .map(|(a, b)| (a / n - b / other).powi(2))
        .sum();
    let of_centroid: f64 = baseline.sum.iter().map(|sum| (sum / n).powi(2)).sum();
    let spread = (baseline.squares / n - of_centroid) * n / (n - 1.0);
    let by_chance = spread * (1.0 / n + 1.0 / other);
    if by_chance <= f64::EPSILON {
        // The baseline's vectors are all the same: any other is infinitely far; told as very far.
        return if distance > 1e-9 { 1e6 } else { 0.0 };
    }
    distance / by_chance
}

/// The cosine of the two centroids; 1 where either has no direction.
pub fn centroid_cosine(baseline: &Moments, window: &Moments) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = dot(&baseline.sum, &baseline.sum).sqrt() * dot(&window.sum, &window.sum).sqrt();
    if norms <= 0.0 {
        return 1.0;
    }
    dot(&baseline.sum, &window.sum) / norms
}
