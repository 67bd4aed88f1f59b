//! Structured output: which tokens may come next, so that an answer is of the form that was asked
//! for, whatever the model would rather say.
//!
//! The grammars are `llguidance`'s work. A constraint comes from a caller and is not trusted: its
//! size, and the work to compile and to follow it, are bounded.

mod grammar;
mod state;

use std::{fmt, sync::Arc};

use llguidance::{
    Matcher, ParserFactory,
    api::ParserLimits,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};

pub use grammar::Constraint;
pub use state::ConstraintState;

use super::token_table::TokenTable;

/// Bytes that a token may have to be used; longer ones are never chosen. The trie of tokens takes
/// no more than 1,024.
const MAX_TOKEN_BYTES: usize = 1000;

/// Why an output can't be constrained.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConstraintError {
    /// The model has no token to end an output with.
    #[error("the model has no end-of-text token, so its output can't be held to a form")]
    NoEnd,
    /// The tables for the vocabulary can't be built.
    #[error("can't prepare the vocabulary for structured output: {0}")]
    Vocabulary(String),
    /// The constraint is too large.
    #[error("the {kind} has {found} bytes; at most {allowed} allowed")]
    TooLarge {
        /// What it is.
        kind: &'static str,
        /// Its bytes.
        found: usize,
        /// Bytes allowed.
        allowed: usize,
    },
    /// The constraint isn't valid, or asks for something that can't be done.
    #[error("can't follow the {kind}: {reason}")]
    Invalid {
        /// What it is.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Following it failed; the output can't go on.
    #[error("the constraint on the output failed: {0}")]
    Failed(String),
}

/// Compiles constraints for one vocabulary.
pub struct ConstraintFactory {
    parsers: ParserFactory,
    vocabulary: usize,
}

impl fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintFactory")
            .field("vocabulary", &self.vocabulary)
            .finish_non_exhaustive()
    }
}

impl ConstraintFactory {
    /// For a vocabulary whose outputs end with one of `ends`.
    pub(super) fn new(table: &TokenTable, ends: &[u32]) -> Result<Self, ConstraintError> {
        let &first_end = ends.first().ok_or(ConstraintError::NoEnd)?;
        let words: Vec<Vec<u8>> = (0..table.len() as u32)
            .map(|id| {
                let bytes = table.bytes(id);
                if bytes.len() > MAX_TOKEN_BYTES {
                    return Vec::new();
                }
                // A byte that no text has keeps control tokens apart from text that reads the same.
                let mark = table
                    .is_control(id)
                    .then_some(TokTrie::SPECIAL_TOKEN_MARKER);
                mark.into_iter().chain(bytes.iter().copied()).collect()
            })
            .collect();
        let info = TokRxInfo::new(table.len() as u32, first_end);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut parsers = ParserFactory::new(
            &environment,
            InferenceCapabilities::default(),
            &llguidance::earley::SlicedBiasComputer::general_slices(),
        )
        .map_err(|error| ConstraintError::Vocabulary(error.to_string()))?;
        parsers.quiet();
        *parsers.limits_mut() = limits();
        Ok(Self {
            parsers,
            vocabulary: table.len(),
        })
    }

    /// Prepares to hold one output to `constraint`. Takes from less than a millisecond up to some
    /// tens of them.
    ///
    /// # Errors
    /// [`ConstraintError`] when it is too large, not valid, or can't be done.
    pub fn compile(&self, constraint: &Constraint) -> Result<ConstraintState, ConstraintError> {
        let kind = constraint.kind();
        let grammar = constraint.grammar()?;
        let matcher = Matcher::new(self.parsers.create_parser(grammar));
        match matcher.get_error() {
            None => Ok(ConstraintState::new(matcher, self.vocabulary)),
            Some(reason) => Err(ConstraintError::Invalid { kind, reason }),
        }
    }
}

/// What one constraint may cost. The defaults suffice for the largest schemas known, but many
/// sequences run at once: an ambiguous grammar would hold them all up for 0.3 s at each token, and
/// lexer states take memory.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 1_000,
        step_max_items: 10_000,
        max_lexer_states: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

#[cfg(test)]
mod tests;
