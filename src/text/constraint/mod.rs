//! Structured output: which tokens may come next, so that an answer is of the form that was asked
//! for, whatever the model would rather say.
//!
//! The grammars are `llguidance`'s work. A constraint comes from a caller and is not trusted: its
//! size, and the work to compile and to follow it, are bounded.

mod grammar;
mod state;

use std::{fmt, panic::AssertUnwindSafe, sync::Arc};

use llguidance::{
    Logger, Matcher, ParserFactory,
    api::{GrammarInit, ParserLimits},
    earley::SlicedBiasComputer,
    panic_utils,
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
        let failed = |error: &dyn fmt::Display| ConstraintError::Vocabulary(error.to_string());
        // The trie asserts its bounds, which no vocabulary known comes near: 4 million nodes.
        let trie = panic_utils::catch_unwind(AssertUnwindSafe(|| {
            Ok(TokTrie::from(&info, &words).with_eos_tokens(ends))
        }));
        let trie = trie.map_err(|error| failed(&error))?;
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let parsers = ParserFactory::new(
            &environment,
            InferenceCapabilities::default(),
            &SlicedBiasComputer::general_slices(),
        )
        .map_err(|error| failed(&error))?;
        Ok(Self {
            parsers,
            vocabulary: table.len(),
        })
    }

    /// Prepares to hold one output to `constraint`. Takes a millisecond for most, up to a second for
    /// the largest allowed.
    ///
    /// # Errors
    /// [`ConstraintError`] when it is too large, not valid, or can't be done.
    pub fn compile(&self, constraint: &Constraint) -> Result<ConstraintState, ConstraintError> {
        let kind = constraint.kind();
        let grammar = GrammarInit::Serialized(constraint.grammar()?);
        let limits = match constraint {
            Constraint::Lark(_) => grammar_limits(),
            _ => limits(),
        };
        let matcher = Matcher::new(self.parsers.create_parser_from_init_ext(
            grammar,
            Logger::new(0, 0),
            InferenceCapabilities::default(),
            limits,
        ));
        let mut state = match matcher.get_error() {
            None => ConstraintState::new(matcher, self.vocabulary),
            Some(reason) => return Err(ConstraintError::Invalid { kind, reason }),
        };
        // What is too much for the very first token is refused here, before anything is generated.
        let reason = state.mask().err().map(|error| error.to_string());
        reason.map_or(Ok(state), |reason| {
            Err(ConstraintError::Invalid { kind, reason })
        })
    }
}

/// What following a constraint may cost. The defaults suffice for the largest schemas known; but
/// lexer states take memory, and many sequences run at once.
fn limits() -> ParserLimits {
    ParserLimits {
        max_lexer_states: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// A caller's own grammar may be ambiguous, which makes each token dearer than the one before: up
/// to 0.3 s within the defaults. One that a programming language needs stays within these.
fn grammar_limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 200,
        step_max_items: 10_000,
        ..limits()
    }
}

#[cfg(test)]
mod tests;
