//! What one iteration computes, and how much there is to do.

use super::{blocks::BlockCounts, sequence::SequenceId};

/// One iteration: rows that are computed together. To be given back to the scheduler with
/// `complete`, or `abandon` when it failed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "a step is completed or abandoned"]
pub struct Step {
    /// At most one row a sequence, decoding ones first. Empty when nothing can run.
    pub rows: Vec<StepRow>,
}

/// Consecutive tokens of one sequence. `Scheduler::tokens` and `Scheduler::blocks` lend what they
/// are and where their keys and values go, so nothing of a sequence's length is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRow {
    /// Whose tokens.
    pub id: SequenceId,
    /// Position of the first one in its sequence.
    pub first_position: u32,
    /// How many; at least 1.
    pub tokens: u32,
    /// How many of its last tokens need logits: 0 inside a prompt, 1 at the end of what is known of
    /// the sequence, up to all `tokens` where the prompt's are asked for.
    pub logits: u32,
    /// Whether the row reaches the end of what is known, so that its last logits are those of the
    /// next token: sample it and `append` it, or `finish`. Never for a sequence of no new tokens.
    pub samples: bool,
}

impl StepRow {
    /// The position after its last.
    pub fn end(&self) -> u32 {
        self.first_position + self.tokens
    }
}

impl Step {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens as usize).sum()
    }
}

/// What the scheduler has, for metrics and load reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Sequences that run: in prefill or decoding.
    pub running: usize,
    /// Sequences that wait for their first step, or again after a preemption.
    pub waiting: usize,
    /// Sequences whose reader is slow.
    pub paused: usize,
    /// The cache's blocks.
    pub blocks: BlockCounts,
    /// Sequences that lost their blocks to others, ever.
    pub preemptions: u64,
    /// Positions that were not computed because their blocks were found by content, ever.
    pub shared_tokens: u64,
    /// Positions that were computed, ever.
    pub computed_tokens: u64,
}
