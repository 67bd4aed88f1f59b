//! Kernel SHAP as the Python `shap` package samples and solves it (`KernelExplainer`).
//!
//! A subset of `s` of `M` words weighs `(M − 1) / (C(M, s) · s · (M − s))`. Sizes are taken whole, from
//! both ends inwards, as long as the samples last; what is left of them is drawn from the other sizes,
//! each subset with its complement. Then the weighted line through the answers is found, with its
//! coefficients held to sum to `v(all) − v(none)` by solving for the last one from the others.

use std::collections::HashMap;

use super::{Mask, least_squares::solve_weighted};
use crate::quality::draws::Draws;

/// Chosen subsets.
pub(super) struct Subsets {
    pub(super) masks: Vec<Mask>,
    pub(super) weights: Vec<f64>,
    /// Whether they are all there are.
    pub(super) exact: bool,
}

/// Subsets of `features` words that are neither empty nor full; as many as a number holds.
pub(super) fn subsets(features: usize) -> usize {
    match u32::try_from(features) {
        Ok(shift @ 0..=40) => (1_usize << shift).saturating_sub(2),
        _ => usize::MAX,
    }
}

/// Chooses about `samples` subsets and their weights.
pub(super) fn choose(features: usize, samples: usize, draws: &mut Draws) -> Subsets {
    let mut chosen = Subsets {
        masks: Vec::new(),
        weights: Vec::new(),
        exact: false,
    };
    if features < 2 {
        chosen.exact = true;
        return chosen;
    }
    // Sizes up to half; those that have a complement of another size count for both.
    let sizes = features / 2;
    let paired = (features - 1) / 2;
    let mut share: Vec<f64> = (1..=sizes)
        .map(|size| {
            let kernel = (features - 1) as f64 / (size * (features - size)) as f64;
            if size <= paired { 2.0 * kernel } else { kernel }
        })
        .collect();
    let sum: f64 = share.iter().sum();
    for share in &mut share {
        *share /= sum;
    }

    let mut left = samples as f64;
    let mut remaining = share.clone();
    let mut whole = 0;
    for size in 1..=sizes {
        let sides = if size <= paired { 2.0 } else { 1.0 };
        let count = binomial(features, size) * sides;
        if left * remaining[size - 1] / count < 1.0 - 1e-8 {
            break;
        }
        whole += 1;
        left -= count;
        if remaining[size - 1] < 1.0 {
            let rest = 1.0 - remaining[size - 1];
            for share in &mut remaining {
                *share /= rest;
            }
        }
        let weight = share[size - 1] / count;
        each_subset(features, size, &mut |mask: Mask| {
            if size <= paired {
                chosen.push(mask.iter().map(|here| !here).collect(), weight);
            }
            chosen.push(mask, weight);
        });
    }
    chosen.exact = whole == sizes;
    if !chosen.exact {
        chosen.draw(features, (whole, paired), &share, left as usize, draws);
    }
    chosen
}

impl Subsets {
    fn push(&mut self, mask: Mask, weight: f64) {
        self.masks.push(mask);
        self.weights.push(weight);
    }

    /// Draws `left` further subsets of the sizes above `whole`, each time with the complement.
    fn draw(
        &mut self,
        features: usize,
        (whole, paired): (usize, usize),
        share: &[f64],
        left: usize,
        draws: &mut Draws,
    ) {
        let fixed = self.masks.len();
        let mut odds: Vec<f64> = share
            .iter()
            .enumerate()
            .map(|(at, share)| if at < paired { share / 2.0 } else { *share })
            .collect();
        odds.drain(..whole);
        let sum: f64 = odds.iter().sum();
        let mut places: HashMap<Mask, usize> = HashMap::new();
        let mut order: Vec<usize> = (0..features).collect();
        let mut left = left;
        // Subsets that come again weigh more and take no sample, so tries have a bound of their own.
        for _ in 0..4 * left {
            if left == 0 {
                break;
            }
            let mut at = draws.unit() * sum;
            let mut size = whole;
            for odds in &odds {
                size += 1;
                at -= odds;
                if at < 0.0 {
                    break;
                }
            }
            draws.shuffle(&mut order);
            let mut mask = vec![false; features];
            for &word in &order[..size] {
                mask[word] = true;
            }
            let complement: Option<Mask> =
                (size <= paired).then(|| mask.iter().map(|here| !here).collect());
            for mask in std::iter::once(mask).chain(complement) {
                if let Some(&place) = places.get(&mask) {
                    self.weights[place] += 1.0;
                } else if left > 0 {
                    left -= 1;
                    places.insert(mask.clone(), self.masks.len());
                    self.push(mask, 1.0);
                }
            }
        }
        // Together they weigh what their sizes do.
        let drawn: f64 = self.weights[fixed..].iter().sum();
        let due: f64 = share[whole..].iter().sum();
        for weight in &mut self.weights[fixed..] {
            *weight *= due / drawn;
        }
    }
}

/// The shares of a line through the answers, held to sum to the difference of `ends`, the answers to
/// none and to all of the words.
pub(super) fn solve(
    features: usize,
    masks: &[Mask],
    weights: &[f64],
    answers: &[f64],
    ends: (f64, f64),
) -> Vec<f64> {
    let whole = ends.1 - ends.0;
    if features < 2 {
        return vec![whole; features];
    }
    let last = features - 1;
    let number = |here: bool| f64::from(u8::from(here));
    let rows: Vec<Vec<f64>> = masks
        .iter()
        .map(|mask| {
            let of_last = number(mask[last]);
            mask[..last]
                .iter()
                .map(|&here| number(here) - of_last)
                .collect()
        })
        .collect();
    let targets: Vec<f64> = masks
        .iter()
        .zip(answers)
        .map(|(mask, answer)| answer - ends.0 - number(mask[last]) * whole)
        .collect();
    let mut shares = solve_weighted(&rows, weights, &targets, 0.0);
    shares.push(whole - shares.iter().sum::<f64>());
    shares
}

fn binomial(n: usize, k: usize) -> f64 {
    (0..k)
        .fold(1.0, |product, at| {
            product * (n - at) as f64 / (at + 1) as f64
        })
        .round()
}

/// Calls `with` for every subset of `size` of `features` words.
fn each_subset(features: usize, size: usize, with: &mut dyn FnMut(Mask)) {
    let mut places: Vec<usize> = (0..size).collect();
    loop {
        let mut mask = vec![false; features];
        for &place in &places {
            mask[place] = true;
        }
        with(mask);
        // The rightmost place that can go on does, and those after it follow.
        let Some(at) = (0..size)
            .rev()
            .find(|&at| places[at] < features - size + at)
        else {
            return;
        };
        places[at] += 1;
        for after in at + 1..size {
            places[after] = places[after - 1] + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_words_are_asked_about_in_every_way() {
        for features in 2..10 {
            let chosen = choose(features, subsets(features), &mut Draws::new(1));
            assert!(chosen.exact);
            assert_eq!(chosen.masks.len(), subsets(features), "{features}");
            let mut distinct = chosen.masks.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), chosen.masks.len());
            assert!((chosen.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn of_many_words_small_and_large_subsets_are_taken_whole_and_the_rest_drawn_in_pairs() {
        let chosen = choose(20, 400, &mut Draws::new(1));
        assert!(!chosen.exact && chosen.masks.len() <= 400);
        let of_size = |size: usize| {
            let count = |mask: &&Mask| mask.iter().filter(|here| **here).count() == size;
            chosen.masks.iter().filter(count).count()
        };
        assert_eq!((of_size(1), of_size(19)), (20, 20));
        assert!((chosen.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        // Those of half the words are drawn alone; the last draw may have had no room for both.
        let alone = chosen
            .masks
            .iter()
            .zip(&chosen.weights)
            .filter(|(mask, weight)| {
                let complement: Mask = mask.iter().map(|here| !here).collect();
                let place = chosen.masks.iter().position(|other| *other == complement);
                let is_half = mask.iter().filter(|here| **here).count() == 10;
                let same = |place: usize| (chosen.weights[place] - **weight).abs() < 1e-12;
                !is_half && !place.is_some_and(same)
            });
        assert!(alone.count() <= 1);
    }
}
