//! Which words an answer hangs on: the model is asked again with words left out, and each word gets a
//! share of the difference. **Pure**: a [`Plan`] says which words to leave out, the caller asks, and
//! [`Plan::attribute`] makes the shares of the answers.
//!
//! - *Occlusion* leaves out one word at a time: `φ_i = v(all) − v(all but i)`.
//! - *LIME* (Ribeiro et al. 2016) leaves out random words and fits a line to what comes, weighted by
//!   how much was left (as in lime's text explainer).
//! - *Kernel SHAP* (Lundberg and Lee 2017) fits the line whose coefficients are Shapley values: they
//!   sum to `v(all) − v(none)` exactly. With few enough words every subset is asked, and they are the
//!   Shapley values themselves.
//!
//! *Integrated gradients* leave nothing out: they follow the answer's slope ([`Objective`]) from a text
//! without words to the text.

mod integrated;
mod kernel_shap;
mod least_squares;
mod lime;
#[cfg(test)]
mod reference_tests;
mod words;

pub use integrated::{DEFAULT_POINTS, Objective, gather, gauss_legendre};
pub use words::{Feature, Perturbed, features};

use super::draws::Draws;

/// Subsets asked about in one explanation, at most.
pub const MAX_SAMPLES: usize = 4096;
/// Features of one explanation, at most; more words are taken together.
pub const MAX_FEATURES: usize = 128;
/// Features where a request doesn't say.
pub const DEFAULT_FEATURES: usize = 64;

/// How shares are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explainer {
    /// One word left out at a time.
    Occlusion,
    /// A weighted line through random subsets.
    Lime,
    /// Shapley values.
    KernelShap,
}

impl Explainer {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Occlusion => "occlusion",
            Self::Lime => "lime",
            Self::KernelShap => "kernel_shap",
        }
    }
}

/// Which words are there; a mask of `[features]`.
pub type Mask = Vec<bool>;

/// The subsets to ask about.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    explainer: Explainer,
    /// The first has every word, the second none.
    masks: Vec<Mask>,
    /// Of each mask; not used by occlusion.
    weights: Vec<f64>,
    /// Whether the shares are exact, not estimated from a sample of the subsets.
    exact: bool,
}

/// The shares that an answer's words have in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribution {
    /// `[features]`.
    pub shares: Vec<f64>,
    /// What the answer is without any of the words; for LIME, the line's intercept.
    pub base: f64,
    /// What it is with all of them.
    pub value: f64,
    /// How far base and shares together are from the value.
    pub additivity_error: f64,
    /// Whether the shares are exact, not estimated from a sample of the subsets.
    pub exact: bool,
}

impl Plan {
    /// Chooses at most `samples` subsets of `features` words (0: as many as usual), random ones by
    /// `seed`. The same arguments, the same plan.
    ///
    /// # Errors
    /// The least number of samples, where they are too few for that many words.
    pub fn new(
        explainer: Explainer,
        features: usize,
        samples: usize,
        seed: u64,
    ) -> Result<Self, usize> {
        debug_assert!(features > 0);
        let all = vec![true; features];
        let none = vec![false; features];
        let samples = match samples {
            0 => usual_samples(explainer, features),
            samples => samples.min(MAX_SAMPLES),
        };
        let mut draws = Draws::new(seed);
        let (further, weights, exact) = match explainer {
            Explainer::Occlusion => {
                let without = |at: usize| {
                    let mut mask = all.clone();
                    mask[at] = false;
                    mask
                };
                ((0..features).map(without).collect(), Vec::new(), true)
            }
            Explainer::Lime => {
                let least = features + 2;
                if samples < least {
                    return Err(least);
                }
                let masks = lime::draw(features, samples, &mut draws);
                let weights = masks.iter().map(|mask| lime::weight(mask)).collect();
                (masks, weights, false)
            }
            Explainer::KernelShap => {
                let least = (2 * features).min(kernel_shap::subsets(features));
                if samples < least {
                    return Err(least);
                }
                let found = kernel_shap::choose(features, samples, &mut draws);
                (found.masks, found.weights, found.exact)
            }
        };
        let mut masks: Vec<Mask> = vec![all, none];
        masks.extend(further);
        Ok(Self {
            explainer,
            masks,
            weights,
            exact,
        })
    }

    /// The subsets to ask about.
    pub fn masks(&self) -> &[Mask] {
        &self.masks
    }

    /// Makes shares of the answers, one for each of [`Plan::masks`].
    pub fn attribute(&self, answers: &[f64]) -> Attribution {
        debug_assert_eq!(answers.len(), self.masks.len());
        let (value, empty, further) = (answers[0], answers[1], &answers[2..]);
        let masks = &self.masks[2..];
        let (base, shares) = match self.explainer {
            Explainer::Occlusion => {
                let shares = further.iter().map(|without| value - without).collect();
                (empty, shares)
            }
            Explainer::Lime => lime::fit(masks, &self.weights, further, value),
            Explainer::KernelShap => {
                let shares = kernel_shap::solve(
                    self.masks[0].len(),
                    masks,
                    &self.weights,
                    further,
                    (empty, value),
                );
                (empty, shares)
            }
        };
        Attribution {
            additivity_error: (base + shares.iter().sum::<f64>() - value).abs(),
            base,
            value,
            shares,
            exact: self.exact,
        }
    }
}

/// Enough that estimates of usual texts are steady, and few enough to be waited for.
fn usual_samples(explainer: Explainer, features: usize) -> usize {
    match explainer {
        Explainer::Occlusion => features,
        Explainer::Lime => (10 * features).clamp(200, MAX_SAMPLES),
        Explainer::KernelShap => {
            let sampled = (2 * features + 512).min(MAX_SAMPLES);
            sampled.min(kernel_shap::subsets(features).max(1))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A game whose shares are known: a sum, and a bonus for two words together.
    fn play(mask: &[bool]) -> f64 {
        let sum: f64 = mask
            .iter()
            .enumerate()
            .map(|(at, here)| if *here { at as f64 } else { 0.0 })
            .sum();
        let bonus = if mask[0] && mask[1] { 10.0 } else { 0.0 };
        3.0 + sum + bonus
    }

    fn explain(explainer: Explainer, features: usize, samples: usize) -> Attribution {
        let plan = Plan::new(explainer, features, samples, 5).unwrap();
        let answers: Vec<f64> = plan.masks().iter().map(|mask| play(mask)).collect();
        plan.attribute(&answers)
    }

    #[test]
    fn shapley_values_split_what_two_words_do_together() {
        for features in [2, 3, 4, 7, 30] {
            let found = explain(Explainer::KernelShap, features, 0);
            assert_eq!(found.exact, features < 10);
            let expected = |at: usize| at as f64 + if at < 2 { 5.0 } else { 0.0 };
            // A game of pairs is recovered to the last bit by paired samples that cover it.
            let within = if found.exact { 1e-9 } else { 0.6 };
            for (at, share) in found.shares.iter().enumerate() {
                assert!(
                    (share - expected(at)).abs() < within,
                    "{features} {at}: {share}"
                );
            }
            assert!(found.additivity_error < 1e-9, "{found:?}");
        }
    }

    #[test]
    fn one_word_has_all_of_the_difference() {
        let plan = Plan::new(Explainer::KernelShap, 1, 0, 5).unwrap();
        let found = plan.attribute(&[4.0, 1.0]);
        assert_eq!((found.shares, found.base), (vec![3.0], 1.0));
        assert_eq!(plan.masks().len(), 2);
    }

    #[test]
    fn occlusion_counts_a_shared_bonus_twice_and_says_how_far_off_it_is() {
        let found = explain(Explainer::Occlusion, 4, 0);
        let expected = [10.0, 11.0, 2.0, 3.0];
        assert!(
            found
                .shares
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-12)
        );
        assert!((found.additivity_error - 10.0).abs() < 1e-12);
    }

    #[test]
    fn a_seed_is_a_plan() {
        for explainer in [Explainer::Lime, Explainer::KernelShap] {
            let plan = |seed| Plan::new(explainer, 30, 300, seed).unwrap();
            assert_eq!(plan(1), plan(1));
            assert_ne!(plan(1), plan(2));
            let masks = plan(1).masks().len();
            assert!((290..=302).contains(&masks), "{masks}");
        }
    }

    #[test]
    fn too_few_samples_are_refused() {
        assert_eq!(Plan::new(Explainer::KernelShap, 30, 59, 0), Err(60));
        assert_eq!(Plan::new(Explainer::Lime, 30, 31, 0), Err(32));
        assert!(Plan::new(Explainer::KernelShap, 3, 6, 0).is_ok());
    }
}
