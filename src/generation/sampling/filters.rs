//! Filters of candidates: each keeps the fewest of a certain order that together have a certain
//! share of the weight.

use std::cmp::Ordering;

use super::scan::{Candidate, likelier};

/// How many are sorted first; most often enough.
const FIRST: usize = 64;

/// Keeps the likeliest candidates until they weigh `target`; at least one.
pub(super) fn keep_likeliest(candidates: &mut Vec<Candidate>, target: f64) {
    keep_mass(candidates, target, likelier);
}

/// Keeps the candidates whose surprise is nearest to the expected one until they have the share
/// `p` of the weight; at least one. Source: Meister et al., "Locally Typical Sampling" (2022).
pub(super) fn keep_typical(candidates: &mut Vec<Candidate>, p: f64) {
    candidates.retain(|candidate| candidate.weight > 0.0);
    let total = weight_of(candidates);
    // Surprise is ln(total) - ln(weight); the constant cancels in the difference.
    let surprise = |candidate: &Candidate| -f64::from(candidate.weight).ln();
    let expected = candidates
        .iter()
        .map(|candidate| f64::from(candidate.weight) * surprise(candidate))
        .sum::<f64>()
        / total;
    keep_mass(candidates, p * total, |a, b| {
        let a_off = (surprise(a) - expected).abs();
        let b_off = (surprise(b) - expected).abs();
        a_off.total_cmp(&b_off).then_with(|| likelier(a, b))
    });
}

/// Keeps the candidates of at least the share `p` of the largest weight.
pub(super) fn keep_above(candidates: &mut Vec<Candidate>, p: f32) {
    let largest = candidates
        .iter()
        .fold(0.0_f32, |largest, candidate| largest.max(candidate.weight));
    candidates.retain(|candidate| candidate.weight >= p * largest);
}

pub(super) fn weight_of(candidates: &[Candidate]) -> f64 {
    candidates
        .iter()
        .map(|candidate| f64::from(candidate.weight))
        .sum()
}

/// Keeps the first candidates in `order` until they weigh `target`, sorting no more than needed.
fn keep_mass(
    candidates: &mut Vec<Candidate>,
    target: f64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) {
    let mut mass = 0.0;
    let mut sorted = 0;
    let mut next = FIRST;
    while sorted < candidates.len() {
        let end = next.min(candidates.len());
        if end < candidates.len() {
            candidates[sorted..].select_nth_unstable_by(end - sorted, &order);
        }
        candidates[sorted..end].sort_unstable_by(&order);
        for at in sorted..end {
            mass += f64::from(candidates[at].weight);
            if mass >= target {
                candidates.truncate(at + 1);
                return;
            }
        }
        (sorted, next) = (end, end * 4);
    }
}
