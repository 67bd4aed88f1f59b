//! The sampler of one sequence.

use super::{
    filters::{keep_above, keep_likeliest, keep_typical, weight_of},
    parameters::SamplingParameters,
    penalties::Penalties,
    random::Random,
    scan::{Candidate, Logits, beats, weight},
};

/// What one fused pass over the raw logits of a row tells; the caller's to compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowStatistics {
    /// The token of the largest logit, of equal ones the lowest.
    pub argmax: u32,
    /// The largest logit.
    pub max: f32,
    /// ln Σ exp(logit). Not finite when a logit is NaN or +∞, or all are -∞.
    pub log_sum_exp: f32,
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log probability by the model, before penalties, temperature and filters.
    pub logprob: f32,
    /// The model's likeliest tokens with their log probabilities, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The model failed.
    #[error("the model's logits are not finite (log-sum-exp {log_sum_exp})")]
    NotFinite {
        /// What their log-sum-exp is.
        log_sum_exp: f32,
    },
    /// The constraint leaves none, or only tokens of logit -∞.
    #[error("no token is allowed here")]
    NoneAllowed,
    /// The statistics are of other logits.
    #[error("the most likely token is {argmax}, of a vocabulary of {vocabulary}")]
    WrongStatistics {
        /// The token that is said to be the most likely.
        argmax: u32,
        /// How many logits there are.
        vocabulary: usize,
    },
}

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    parameters: SamplingParameters,
    penalties: Penalties,
    random: Random,
    changed: Vec<(u32, f32)>,
    candidates: Vec<Candidate>,
    group_sums: Vec<f64>,
}

/// How far below the largest `z / T` a token may be to be looked at first for `top_p`; then all are.
const CUTOFFS: [f32; 3] = [7.0, 14.0, f32::INFINITY];

impl Sampler {
    /// The sampler of a sequence; draws depend on nothing but `seed` and how many there were.
    /// `parameters` must have been validated. The parameters' own seed is the caller's to pass, or
    /// to derive one from for each of several completions.
    pub fn new(parameters: &SamplingParameters, seed: u64) -> Self {
        Self {
            penalties: Penalties::new(parameters),
            parameters: parameters.clone(),
            random: Random::new(seed),
            changed: Vec::new(),
            candidates: Vec::new(),
            group_sums: Vec::new(),
        }
    }

    /// Notes the prompt, for the repetition penalty. Once, before the first token.
    pub fn accept_prompt(&mut self, prompt: &[u32]) {
        self.penalties.accept_prompt(prompt);
    }

    /// Notes a token that was generated, for the penalties.
    pub fn accept(&mut self, token: u32) {
        self.penalties.accept(token);
    }

    /// Chooses the next token. `logits` are the model's, `[vocabulary]`, `statistics` theirs; `mask`
    /// has a bit for each token that is allowed, as [`TokenConstraint::mask`] gives it.
    ///
    /// Greedy without penalties, biases and mask reads nothing but `statistics` (and the logits for
    /// `top_logprobs` above 1).
    ///
    /// # Errors
    /// [`SampleError`] when there is no token to choose.
    ///
    /// [`TokenConstraint::mask`]: super::TokenConstraint::mask
    pub fn sample(
        &mut self,
        logits: &[f32],
        statistics: RowStatistics,
        mask: Option<&[u32]>,
    ) -> Result<Sampled, SampleError> {
        let RowStatistics {
            argmax,
            max,
            log_sum_exp,
        } = statistics;
        if !log_sum_exp.is_finite() || !max.is_finite() {
            return Err(SampleError::NotFinite { log_sum_exp });
        }
        if argmax as usize >= logits.len() {
            return Err(SampleError::WrongStatistics {
                argmax,
                vocabulary: logits.len(),
            });
        }
        let mut changed = std::mem::take(&mut self.changed);
        self.penalties.apply(logits, &mut changed);
        let view = Logits {
            raw: logits,
            changed: &changed,
            mask,
        };
        let best = best(view, statistics);
        let token = best.and_then(|best| {
            if self.parameters.is_greedy() {
                return Some(best.0);
            }
            self.draw(view, best.1, log_sum_exp)
        });
        self.changed = changed;
        let token = token.ok_or(SampleError::NoneAllowed)?;
        Ok(Sampled {
            token,
            logprob: logits[token as usize] - log_sum_exp,
            top: self.top_logprobs(logits, statistics),
        })
    }

    fn draw(&mut self, logits: Logits<'_>, max: f32, log_sum_exp: f32) -> Option<u32> {
        let point = self.random.unit();
        let parameters = &self.parameters;
        let all = self.parameters.top_k == 0 || parameters.top_k as usize >= logits.raw.len();
        let filtered =
            parameters.typical_p < 1.0 || parameters.top_p < 1.0 || parameters.min_p > 0.0;
        if all && !filtered {
            return self.draw_from_all(logits, max, point);
        }
        self.collect_candidates(logits, max, log_sum_exp);
        let mut left = point * weight_of(&self.candidates);
        for candidate in &self.candidates {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        // Rounding; the last one that can be drawn at all.
        let drawable = |candidate: &&Candidate| candidate.weight > 0.0;
        self.candidates
            .iter()
            .rfind(drawable)
            .map(|candidate| candidate.token)
    }

    /// Draws with one pass that sums groups, and a look into the group that is hit.
    fn draw_from_all(&mut self, logits: Logits<'_>, max: f32, point: f64) -> Option<u32> {
        let scale = self.parameters.temperature.recip();
        let sums = &mut self.group_sums;
        sums.clear();
        let total = logits.sum_weights(max, scale, |sum| sums.push(sum));
        let mut left = point * total;
        let last = sums.iter().rposition(|&sum| sum > 0.0)?;
        let mut group = 0;
        while group < last && left >= sums[group] {
            left -= sums[group];
            group += 1;
        }
        let mut chosen = None;
        for (token, weight) in logits.group_weights(group, max, scale) {
            if weight > 0.0 {
                chosen = Some(token);
                left -= f64::from(weight);
                if left < 0.0 {
                    break;
                }
            }
        }
        chosen
    }

    /// Leaves in `self.candidates` what passes all filters, in a fixed order.
    pub(super) fn collect_candidates(&mut self, logits: Logits<'_>, max: f32, log_sum_exp: f32) {
        let SamplingParameters {
            top_k,
            top_p,
            min_p,
            typical_p,
            temperature,
            ..
        } = self.parameters;
        let scale = temperature.recip();
        let candidates = &mut self.candidates;
        let weigh = |candidates: &mut Vec<Candidate>| {
            for candidate in candidates {
                candidate.weight = weight(candidate.logit, max, scale);
            }
        };
        let (typical_p, top_p) = (f64::from(typical_p), f64::from(top_p));
        if top_k > 0 && (top_k as usize) < logits.raw.len() {
            logits.collect_likeliest(top_k as usize, candidates);
            weigh(candidates);
        } else if typical_p < 1.0 {
            logits.collect(f32::NEG_INFINITY, candidates);
            weigh(candidates);
        } else if top_p < 1.0 {
            let raw = logits.mask.is_none() && logits.changed.is_empty();
            let raw_total = f64::from(log_sum_exp - max).exp();
            if raw && keep_by_bound(logits, max, raw_total, &self.parameters, candidates) {
                keep_above(candidates, min_p);
                return;
            }
            let total = logits.sum_weights(max, scale, |_| {});
            for cutoff in CUTOFFS {
                logits.collect(max - cutoff * temperature, candidates);
                weigh(candidates);
                if weight_of(candidates) >= top_p * total {
                    break;
                }
            }
            keep_likeliest(candidates, top_p * total);
            keep_above(candidates, min_p);
            return;
        } else {
            // A little below, for the logarithm's rounding; the filter decides.
            let cutoff = min_p.ln() * 1.0001 - 1e-4;
            logits.collect(max + cutoff * temperature, candidates);
            weigh(candidates);
        }
        if typical_p < 1.0 {
            keep_typical(candidates, typical_p);
        }
        if top_p < 1.0 {
            let total = weight_of(candidates);
            keep_likeliest(candidates, top_p * total);
        }
        keep_above(candidates, min_p);
    }

    #[cfg(test)]
    pub(super) fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The model's likeliest tokens with their log probabilities, as many as were asked for.
    pub fn top_logprobs(&mut self, logits: &[f32], statistics: RowStatistics) -> Vec<(u32, f32)> {
        let log_sum_exp = statistics.log_sum_exp;
        match self.parameters.top_logprobs {
            0 => Vec::new(),
            1 => vec![(statistics.argmax, statistics.max - log_sum_exp)],
            count => {
                let raw = Logits {
                    raw: logits,
                    changed: &[],
                    mask: None,
                };
                raw.collect_likeliest(count as usize, &mut self.candidates);
                self.candidates
                    .iter()
                    .map(|candidate| (candidate.token, candidate.logit - log_sum_exp))
                    .collect()
            }
        }
    }
}

/// Filters by `top_p` without a pass over all weights, where a bound of what is below the first
/// cutoff suffices to tell which candidates pass; returns whether it did.
///
/// For T ≤ 1 and the cutoff c, a token of z < max - c·T weighs
/// `exp((z - max)/T) ≤ exp(z - max) · exp(-c·(1 - T))`, and the sum of `exp(z - max)` over those is
/// the model's, which is known, less that of the candidates.
fn keep_by_bound(
    logits: Logits<'_>,
    max: f32,
    raw_total: f64,
    parameters: &SamplingParameters,
    candidates: &mut Vec<Candidate>,
) -> bool {
    let SamplingParameters {
        temperature, top_p, ..
    } = *parameters;
    if temperature > 1.0 {
        return false;
    }
    let cutoff = CUTOFFS[0];
    logits.collect(max - cutoff * temperature, candidates);
    let mut raw_inside = 0.0;
    for candidate in candidates.iter_mut() {
        candidate.weight = weight(candidate.logit, max, temperature.recip());
        raw_inside += f64::from(weight(candidate.logit, max, 1.0));
    }
    // The share is for the rounding of what the caller and we summed.
    let raw_outside = (raw_total - raw_inside).max(0.0) + raw_total * 1e-5;
    let outside = raw_outside * f64::from(-cutoff * (1.0 - temperature)).exp();
    let inside = weight_of(candidates);
    let (least, most) = (
        f64::from(top_p) * inside,
        f64::from(top_p) * (inside + outside),
    );
    if inside < most {
        return false;
    }
    keep_likeliest(candidates, most);
    let last = candidates.last().map_or(0.0, |last| f64::from(last.weight));
    weight_of(candidates) - last < least
}

/// The allowed token of the largest logit, from the statistics where they tell.
fn best(logits: Logits<'_>, statistics: RowStatistics) -> Option<(u32, f32)> {
    let RowStatistics { argmax, max, .. } = statistics;
    let told = logits.mask.is_none()
        && logits
            .changed
            .binary_search_by_key(&argmax, |&(token, _)| token)
            .is_err();
    if !told {
        return logits.best();
    }
    let mut best = (argmax, max);
    for &(token, logit) in logits.changed {
        if beats((token, logit), best) {
            best = (token, logit);
        }
    }
    Some(best)
}
