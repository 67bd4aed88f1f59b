//! What one step of a decoder works on, and the limits that the ops rely on.

use super::super::error::ForwardError;
use super::spec::DecoderSpec;

/// The tokens of a step, the rows of different sequences one after the other: whole prompts, pieces
/// of prompts, and single tokens, in any mixture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecoderBatch {
    /// Token ids of all rows, `[tokens]`.
    pub tokens: Vec<u32>,
    /// The rows, in the order of their tokens.
    pub rows: Vec<DecoderRow>,
    /// The tokens after which logits are wanted, as indices into `tokens`, in the order in which
    /// the logits will be.
    pub logit_tokens: Vec<u32>,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecoderRow {
    /// Position of the first token in its sequence; what comes before is in the cache.
    pub first_position: u32,
    /// Number of tokens.
    pub tokens: u32,
    /// The sequence's blocks of the cache, from position 0 on.
    pub blocks: Vec<u32>,
}

impl DecoderBatch {
    /// Checks what the model alone can tell; blocks are checked against the cache.
    pub(super) fn check(&self, spec: &DecoderSpec) -> Result<(), ForwardError> {
        let mut first = 0_usize;
        for (index, row) in self.rows.iter().enumerate() {
            if row.tokens == 0 {
                return Err(ForwardError::EmptyRow { row: index });
            }
            let len = row.first_position as usize + row.tokens as usize;
            if len > spec.context_length {
                return Err(ForwardError::TooLong {
                    row: index,
                    len,
                    max: spec.context_length,
                });
            }
            let end = first + row.tokens as usize;
            let Some(tokens) = self.tokens.get(first..end) else {
                break;
            };
            let vocabulary = spec.vocabulary;
            if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
                return Err(ForwardError::Token {
                    row: index,
                    token,
                    vocabulary,
                });
            }
            first = end;
        }
        let in_rows: usize = self.rows.iter().map(|row| row.tokens as usize).sum();
        let tokens = self.tokens.len();
        if in_rows != tokens {
            return Err(ForwardError::RowSum { in_rows, tokens });
        }
        match self
            .logit_tokens
            .iter()
            .find(|&&token| token as usize >= tokens)
        {
            Some(&token) => Err(ForwardError::LogitToken { token, tokens }),
            None => Ok(()),
        }
    }
}
