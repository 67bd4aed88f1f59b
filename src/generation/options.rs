//! The bounds of the scheduler, and why a sequence is not taken.

/// What one scheduler has to share out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Positions of a KV cache block.
    pub block_size: usize,
    /// Blocks of the KV cache.
    pub blocks: usize,
    /// Tokens of one step, at most; no less than `max_running`, so that every running sequence can
    /// have its next token in each step.
    pub max_step_tokens: usize,
    /// Rows of one step, at most.
    pub max_running: usize,
    /// New sequences that may wait.
    pub max_waiting: usize,
    /// Tokens of a sequence, prompt and new ones together, at most: the model's context.
    pub max_sequence_tokens: usize,
    /// Prompt tokens of one step whose logits are asked for with [`NewSequence::all_logits`], at
    /// most. Logits of a step are `[rows, vocabulary]`, so this bounds memory.
    ///
    /// [`NewSequence::all_logits`]: super::NewSequence::all_logits
    pub max_prompt_logits: usize,
    /// Whether sequences that begin the same share blocks.
    pub share_prefixes: bool,
}

/// Options under which nothing could run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// A bound is 0.
    #[error("{0} is 0; at least 1 needed")]
    Zero(&'static str),
    /// Blocks and positions are numbered by `u32`.
    #[error("{name} is {found}; at most {limit}")]
    TooLarge {
        /// The option's name.
        name: &'static str,
        /// Its value.
        found: usize,
        /// The largest possible.
        limit: usize,
    },
    /// A step has less tokens than rows.
    #[error("max_step_tokens is {max_step_tokens}; at least max_running, {max_running}, needed")]
    StepTooSmall {
        /// Tokens of a step.
        max_step_tokens: usize,
        /// Rows of a step.
        max_running: usize,
    },
}

impl SchedulerOptions {
    /// Checks that sequences can run under these options.
    ///
    /// # Errors
    /// [`OptionsError`] naming the option that is wrong.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let limit = i32::MAX as usize;
        for (found, name) in [
            (self.block_size, "block_size"),
            (self.blocks, "blocks"),
            (self.max_step_tokens, "max_step_tokens"),
            (self.max_running, "max_running"),
            (self.max_waiting, "max_waiting"),
            (self.max_sequence_tokens, "max_sequence_tokens"),
            (self.max_prompt_logits, "max_prompt_logits"),
        ] {
            if found == 0 {
                return Err(OptionsError::Zero(name));
            }
            if found > limit {
                return Err(OptionsError::TooLarge { name, found, limit });
            }
        }
        if self.max_step_tokens < self.max_running {
            return Err(OptionsError::StepTooSmall {
                max_step_tokens: self.max_step_tokens,
                max_running: self.max_running,
            });
        }
        Ok(())
    }
}

/// Why a sequence is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many sequences wait as may; the same one may be taken later.
    #[error("{limit} sequences wait already")]
    Full {
        /// Sequences that may wait.
        limit: usize,
    },
    /// The prompt and the new tokens are more than a sequence may have, or than the whole cache
    /// holds.
    #[error("a prompt of {prompt} tokens and {new} new ones; together at most {limit}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens asked for.
        new: usize,
        /// The most that both may be.
        limit: usize,
    },
    /// The prompt has no token.
    #[error("the prompt has no token; at least 1 needed")]
    Empty,
    /// A sequence of this id is here already.
    #[error("a sequence of the same id is here already")]
    DuplicateId,
}
