//! From the logits of a row to its next token.
//!
//! The raw logits `l` become `z`: for each token that occurs in the prompt or was generated,
//! `l / r` if positive, else `l · r` (repetition penalty); less `f · n + p` for one generated `n`
//! times (frequency and presence penalty); plus its bias. Tokens that the mask forbids are out.
//! Temperature 0 takes the largest `z`. Else tokens are filtered one after the other, each filter
//! by the probabilities `softmax(z / T)` of those that the one before left: `top_k`, `typical_p`,
//! `top_p`, `min_p`; and one is drawn. Ties go to the lower id.
//!
//! What is reported is of the model, not of the filters: `logprob = l - log_sum_exp(l)`.
//!
//! Nothing is copied or sorted as a whole: penalties and biases are a sparse list beside the
//! logits, filters collect the few candidates that can matter and widen when they don't suffice.

mod filters;
mod parameters;
mod penalties;
mod random;
mod sampler;
mod scan;

#[cfg(test)]
mod reference_tests;

pub use parameters::{InvalidParameter, MAX_TOP_LOGPROBS, SamplingParameters};
pub use random::Random;
pub use sampler::{RowStatistics, SampleError, Sampled, Sampler};

/// A grammar that the tokens of a sequence must follow.
pub trait TokenConstraint: std::fmt::Debug + Send {
    /// The tokens that may come next: bit `token % 32` of word `token / 32`. Tokens beyond the last
    /// word may not.
    ///
    /// # Errors
    /// What is wrong with the grammar, in words.
    fn mask(&mut self) -> Result<&[u32], String>;

    /// Notes that `token` came.
    ///
    /// # Errors
    /// When it may not come here, or what is wrong with the grammar, in words.
    fn accept(&mut self, token: u32) -> Result<(), String>;

    /// Whether nothing may come any more, so that the sequence ends.
    fn is_complete(&self) -> bool;
}
