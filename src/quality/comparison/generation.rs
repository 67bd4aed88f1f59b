//! Generation: where greedy texts part, and what both sides make of a given text.
//!
//! Texts that two good models generate part soon, at a token where two were about as likely, and what
//! comes after says nothing. A *given* text, scored token by token (teacher-forced), has no such
//! point: its figures are the ones to put a threshold on.

use serde::Serialize;

use super::{Distribution, Quantiles};

/// Two models' continuations of the same prompts, and their scores of the same texts.
#[derive(Debug, Clone, Default)]
pub struct GenerationComparison {
    texts: u64,
    exact: u64,
    parted: Distribution,
    shared: Distribution,
    generated: [Likelihood; 2],
    given: [Likelihood; 2],
    given_bytes: u64,
    same_top: u64,
    tops: u64,
    logprob_difference: Distribution,
    kl: Distribution,
    incomparable: u64,
}

/// A generated text: its tokens and the logarithm of each one's probability, where it is known.
#[derive(Debug, Clone, Copy)]
pub struct GeneratedText<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// As many logarithms, or none.
    pub logprobs: &'a [f32],
}

/// A token of a given text, as one model scores it.
#[derive(Debug, Clone, Copy)]
pub struct GivenToken<'a> {
    /// The logarithm of its probability.
    pub logprob: f32,
    /// The most likely tokens in its place, best first, with theirs; may be empty.
    pub top: &'a [(u32, f32)],
}

/// What both sides' texts and scores have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationFigures {
    /// Prompts continued.
    pub texts: u64,
    /// Share of continuations that are the same to the end.
    pub exact_match: Option<f64>,
    /// Tokens generated alike, as a share of the longer continuation.
    pub shared_prefix: Option<Quantiles>,
    /// Where those that part do: tokens before the first that differs.
    pub first_divergence: Option<Quantiles>,
    /// The reference's perplexity of what it generated.
    pub reference_generated_perplexity: Option<f64>,
    /// The candidate's perplexity of what it generated.
    pub candidate_generated_perplexity: Option<f64>,
    /// Tokens of the given texts, as the reference counts them.
    pub given_tokens: u64,
    /// The reference's perplexity of the given texts.
    pub reference_perplexity: Option<f64>,
    /// The candidate's.
    pub candidate_perplexity: Option<f64>,
    /// Bits a byte of the given texts, by the reference: comparable between tokenizers.
    pub reference_bits_per_byte: Option<f64>,
    /// The same, by the candidate.
    pub candidate_bits_per_byte: Option<f64>,
    /// Candidate's perplexity over the reference's. Where the sides cut texts into different tokens,
    /// e to the difference of their nats a byte, times the bytes of a token of the reference.
    pub perplexity_ratio: Option<f64>,
    /// Share of the given texts' tokens in whose place the most likely token is the same.
    pub token_agreement: Option<f64>,
    /// Candidate's logarithm of a given token's probability less the reference's.
    pub logprob_difference: Option<Quantiles>,
    /// Kullback-Leibler divergence of the candidate's next token from the reference's, in nats, over
    /// the tokens that both sides named, all others being one: a lower bound of the whole.
    pub kl: Option<Quantiles>,
    /// Given texts that the sides cut into different tokens: they count for perplexity, not token by
    /// token.
    pub incomparable: u64,
}

/// A sum of log-probabilities.
#[derive(Debug, Clone, Copy, Default)]
struct Likelihood {
    nats: f64,
    tokens: u64,
}

impl GenerationComparison {
    /// Takes both sides' continuations of a prompt in.
    pub fn observe_generated(&mut self, reference: GeneratedText, candidate: GeneratedText) {
        let (ours, theirs) = (reference.tokens, candidate.tokens);
        let shared = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
        let longer = ours.len().max(theirs.len());
        self.texts += 1;
        if shared == longer {
            self.exact += 1;
        } else {
            self.parted.observe(shared as f64);
        }
        let share = if longer == 0 {
            1.0
        } else {
            shared as f64 / longer as f64
        };
        self.shared.observe(share);
        for (sum, side) in self.generated.iter_mut().zip([reference, candidate]) {
            for logprob in side.logprobs {
                sum.add(*logprob);
            }
        }
    }

    /// Takes both sides' scores of a given text of `bytes` bytes in: its tokens from the second on, or
    /// from the first where the model has a token to begin texts with.
    pub fn observe_given(
        &mut self,
        bytes: usize,
        reference: &[GivenToken],
        candidate: &[GivenToken],
    ) {
        for (sum, side) in self.given.iter_mut().zip([reference, candidate]) {
            for token in side {
                sum.add(token.logprob);
            }
        }
        self.given_bytes += bytes as u64;
        if reference.len() != candidate.len() {
            self.incomparable += 1;
            return;
        }
        for (ours, theirs) in reference.iter().zip(candidate) {
            let difference = f64::from(theirs.logprob) - f64::from(ours.logprob);
            self.logprob_difference.observe(difference);
            if let ([our, ..], [their, ..]) = (ours.top, theirs.top) {
                self.tops += 1;
                self.same_top += u64::from(our.0 == their.0);
                self.kl.observe(divergence_of_named(ours.top, theirs.top));
            }
        }
    }

    /// Takes another comparison in.
    pub fn merge(&mut self, other: Self) {
        self.texts += other.texts;
        self.exact += other.exact;
        self.parted.merge(other.parted);
        self.shared.merge(other.shared);
        for (mine, theirs) in self.generated.iter_mut().zip(other.generated) {
            mine.merge(theirs);
        }
        for (mine, theirs) in self.given.iter_mut().zip(other.given) {
            mine.merge(theirs);
        }
        self.given_bytes += other.given_bytes;
        self.same_top += other.same_top;
        self.tops += other.tops;
        self.logprob_difference.merge(other.logprob_difference);
        self.kl.merge(other.kl);
        self.incomparable += other.incomparable;
    }

    /// Where texts parted, in tokens; a uniform sample where there were more than 4096.
    pub fn divergences_seen(&self) -> &[f64] {
        self.parted.sample()
    }

    /// Differences of the given tokens' log-probabilities; a uniform sample likewise.
    pub fn logprob_differences(&self) -> &[f64] {
        self.logprob_difference.sample()
    }

    /// Share of the given texts' tokens in whose place the most likely token is the same; where no text
    /// was given, the mean share of tokens generated alike.
    pub(super) fn agreement(&self) -> Option<f64> {
        self.token_agreement().or_else(|| self.shared.mean())
    }

    /// What was seen so far.
    pub fn figures(&self) -> GenerationFigures {
        let [reference, candidate] = self.given;
        let bits = |side: Likelihood| {
            let any = side.tokens > 0 && self.given_bytes > 0;
            any.then(|| -side.nats / std::f64::consts::LN_2 / self.given_bytes as f64)
        };
        GenerationFigures {
            texts: self.texts,
            exact_match: (self.texts > 0).then(|| self.exact as f64 / self.texts as f64),
            shared_prefix: self.shared.quantiles(),
            first_divergence: self.parted.quantiles(),
            reference_generated_perplexity: self.generated[0].perplexity(),
            candidate_generated_perplexity: self.generated[1].perplexity(),
            given_tokens: reference.tokens,
            reference_perplexity: reference.perplexity(),
            candidate_perplexity: candidate.perplexity(),
            reference_bits_per_byte: bits(reference),
            candidate_bits_per_byte: bits(candidate),
            perplexity_ratio: (reference.tokens > 0 && candidate.tokens > 0)
                .then(|| ((reference.nats - candidate.nats) / reference.tokens as f64).exp()),
            token_agreement: self.token_agreement(),
            logprob_difference: self.logprob_difference.quantiles(),
            kl: self.kl.quantiles(),
            incomparable: self.incomparable,
        }
    }

    fn token_agreement(&self) -> Option<f64> {
        (self.tops > 0).then(|| self.same_top as f64 / self.tops as f64)
    }
}

impl Likelihood {
    fn add(&mut self, logprob: f32) {
        // One impossible token would make the sum infinite for good; it counts as very unlikely.
        let logprob = f64::from(logprob);
        self.nats += if logprob.is_nan() {
            -100.0
        } else {
            logprob.max(-100.0)
        };
        self.tokens += 1;
    }

    fn merge(&mut self, other: Self) {
        self.nats += other.nats;
        self.tokens += other.tokens;
    }

    fn perplexity(self) -> Option<f64> {
        (self.tokens > 0).then(|| (-self.nats / self.tokens as f64).exp())
    }
}

/// Divergence over the tokens that both sides name and one that stands for all others. Merging events
/// never makes a divergence larger.
fn divergence_of_named(reference: &[(u32, f32)], candidate: &[(u32, f32)]) -> f64 {
    let (mut p, mut q) = (Vec::new(), Vec::new());
    for (id, logprob) in reference {
        if let Some((_, theirs)) = candidate.iter().find(|(other, _)| other == id) {
            p.push(f64::from(*logprob).exp());
            q.push(f64::from(*theirs).exp());
        }
    }
    let rest = |named: &[f64]| (1.0 - named.iter().sum::<f64>()).max(0.0);
    let (p_rest, q_rest) = (rest(&p), rest(&q));
    p.push(p_rest);
    q.push(q_rest);
    super::kullback_leibler(&p, &q).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(tokens: &'a [u32], logprobs: &'a [f32]) -> GeneratedText<'a> {
        GeneratedText { tokens, logprobs }
    }

    #[test]
    fn texts_part_at_their_first_different_token() {
        let mut comparison = GenerationComparison::default();
        comparison.observe_generated(text(&[1, 2, 3, 4], &[]), text(&[1, 2, 9, 4], &[]));
        comparison.observe_generated(text(&[1, 2], &[]), text(&[1, 2], &[]));
        comparison.observe_generated(text(&[1, 2], &[]), text(&[1, 2, 3, 4], &[]));
        let figures = comparison.figures();
        assert!((figures.exact_match.unwrap() - 1.0 / 3.0).abs() < 1e-12);
        let parted = figures.first_divergence.unwrap();
        assert_eq!((parted.n, parted.min, parted.max), (2, 2.0, 2.0));
        assert!((comparison.agreement().unwrap() - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn perplexity_is_the_inverse_geometric_mean_of_the_probabilities() {
        let mut comparison = GenerationComparison::default();
        let scored = |p: f32| {
            [GivenToken {
                logprob: p.ln(),
                top: &[],
            }; 3]
        };
        comparison.observe_given(6, &scored(0.5), &scored(0.25));
        let figures = comparison.figures();
        assert!((figures.reference_perplexity.unwrap() - 2.0).abs() < 1e-6);
        assert!((figures.candidate_perplexity.unwrap() - 4.0).abs() < 1e-6);
        assert!((figures.perplexity_ratio.unwrap() - 2.0).abs() < 1e-6);
        assert!((figures.reference_bits_per_byte.unwrap() - 0.5).abs() < 1e-6);
        assert_eq!(figures.token_agreement, None);
    }

    #[test]
    fn given_tokens_are_compared_by_the_best_in_their_place() {
        let mut comparison = GenerationComparison::default();
        let (ours, theirs) = ([(1, -0.1), (2, -3.0)], [(2, -0.5), (1, -1.2)]);
        let token = |top| GivenToken { logprob: -0.1, top };
        comparison.observe_given(
            2,
            &[token(&ours), token(&ours)],
            &[token(&ours), token(&theirs)],
        );
        let figures = comparison.figures();
        assert_eq!(figures.token_agreement, Some(0.5));
        let kl = figures.kl.unwrap();
        assert!(kl.min.abs() < 1e-12 && kl.max > 0.5, "{kl:?}");
    }

    #[test]
    fn a_token_that_one_side_holds_impossible_leaves_finite_figures() {
        let mut comparison = GenerationComparison::default();
        let token = |logprob| GivenToken { logprob, top: &[] };
        comparison.observe_given(1, &[token(-1.0)], &[token(f32::NEG_INFINITY)]);
        assert!(comparison.figures().perplexity_ratio.unwrap().is_finite());
    }
}
