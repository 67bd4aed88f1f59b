//! One sequence: its tokens, how many of them are computed, the blocks they are in, its state.

use std::{sync::Arc, time::Instant};

use crate::batching::Priority;

use super::blocks::{BlockPool, ContentId, PrefixHash};

/// Names a sequence for as long as it is in the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

impl SequenceId {
    /// The sequence numbered `id`.
    pub fn new(id: u64) -> Self {
        Self(id)
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// A sequence that asks to be generated. Several completions of one prompt are as many sequences,
/// added one after another; they share the prompt's blocks.
#[derive(Debug, Clone)]
pub struct NewSequence {
    /// Its name; no two sequences in the scheduler share one.
    pub id: SequenceId,
    /// The tokens to continue; at least one.
    pub prompt: Vec<u32>,
    /// New tokens, at most; with 0 only the prompt is computed.
    pub max_new_tokens: u32,
    /// When it leaves unfinished.
    pub deadline: Option<Instant>,
    /// How urgent it is.
    pub priority: Priority,
    /// Whose it is; inside a level, tenants are admitted evenly by tokens.
    pub tenant: Arc<str>,
    /// Whether the logits of every prompt token are wanted, not only of the last. Such a prompt is
    /// computed even where its blocks are known.
    pub all_logits: bool,
}

/// Where a sequence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceState {
    /// In line for its first step, or again after a preemption. Holds no blocks.
    Waiting,
    /// More than its last token is to be computed. `turn` is the order of admission.
    Prefilling {
        /// Lower turns come first.
        turn: u64,
    },
    /// All but its last token is computed, or it waits for a token to be appended.
    Decoding,
    /// Its reader is slow. Holds its blocks until others need them.
    Paused,
    /// It has as many tokens as it may. Holds no blocks, waits to be finished.
    Done,
}

/// A sequence's rank among those that run: urgent first, then the one that came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub level: usize,
    /// Order of arrival.
    pub age: u64,
    pub id: SequenceId,
}

/// A sequence in the scheduler.
#[derive(Debug)]
pub struct Sequence {
    pub(super) rank: Rank,
    pub(super) tenant: Arc<str>,
    pub(super) deadline: Option<Instant>,
    pub(super) state: SequenceState,
    /// What its place in line costs: its prompt the first time, nothing after a preemption.
    pub(super) cost: u32,
    /// Prompt and generated.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    max_tokens: usize,
    /// Positions `0..computed` are in the cache.
    computed: usize,
    /// The first position of the prompt whose logits are wanted and were not given; from there on
    /// it must be computed, not found. `None` when there is none, as after the prompt.
    logits_from: Option<usize>,
    blocks: Vec<u32>,
    /// Of each full block of tokens, as far as was needed yet.
    hashes: Vec<PrefixHash>,
    /// Content of the blocks that are published, the first of the table. `None` at its end when
    /// a block could not be published: then neither is what follows.
    published: usize,
    content: Option<ContentId>,
    /// The most positions that ever were computed, and how many of them were found instead.
    reached: usize,
    shared: usize,
}

impl Sequence {
    pub(super) fn new(new: NewSequence, age: u64) -> Self {
        let prompt_tokens = new.prompt.len();
        Self {
            rank: Rank {
                level: new.priority.level(),
                age,
                id: new.id,
            },
            tenant: new.tenant,
            deadline: new.deadline,
            state: SequenceState::Waiting,
            cost: prompt_tokens as u32,
            tokens: new.prompt,
            prompt_tokens,
            max_tokens: prompt_tokens + new.max_new_tokens as usize,
            computed: 0,
            logits_from: new.all_logits.then_some(0),
            blocks: Vec::new(),
            hashes: Vec::new(),
            published: 0,
            content: Some(ContentId::START),
            reached: 0,
            shared: 0,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> SequenceState {
        self.state
    }

    /// The tokens it began with.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_tokens]
    }

    /// The tokens appended since.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_tokens..]
    }

    /// Positions that were found in the cache, not computed; what came again after a preemption does
    /// not count.
    pub fn shared_tokens(&self) -> usize {
        self.shared
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// Tokens that are known and not computed.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Blocks it lacks for all tokens that are known.
    pub(super) fn lacking(&self, pool: &BlockPool) -> usize {
        pool.blocks_for(self.tokens.len()) - self.blocks.len()
    }

    /// Whether it may have no more tokens.
    pub(super) fn is_full(&self) -> bool {
        self.tokens.len() >= self.max_tokens
    }

    pub(super) fn append(&mut self, token: u32) {
        debug_assert!(!self.is_full());
        self.tokens.push(token);
    }

    pub(super) fn push_block(&mut self, block: u32) {
        self.blocks.push(block);
    }

    /// How many of the last of the tokens `computed..end` need logits.
    pub(super) fn logits_of(&self, end: usize) -> usize {
        match self.logits_from {
            Some(from) => end.saturating_sub(from.max(self.computed)),
            None => usize::from(end == self.tokens.len()),
        }
    }

    /// Whether its next tokens are among those of which all logits are wanted.
    pub(super) fn wants_prompt_logits(&self) -> bool {
        self.logits_from.is_some()
    }

    /// Hash of the block at `index`, when all its tokens are known.
    pub(super) fn hash(&mut self, index: usize, block_size: usize) -> Option<PrefixHash> {
        if (index + 1) * block_size > self.tokens.len() {
            return None;
        }
        while self.hashes.len() <= index {
            let at = self.hashes.len() * block_size;
            let before = self.hashes.last().copied().unwrap_or(PrefixHash::START);
            self.hashes
                .push(before.extended(&self.tokens[at..at + block_size]));
        }
        Some(self.hashes[index])
    }

    /// The first block that can't be shared: the last token is always computed, and so is every
    /// token whose logits are still wanted.
    pub(super) fn shareable_blocks(&self, block_size: usize) -> usize {
        let last = self.tokens.len() - 1;
        self.logits_from.map_or(last, |from| from.min(last)) / block_size
    }

    /// Whether what is computed ends with a whole, published block, so that a known one may follow.
    pub(super) fn at_boundary(&self, block_size: usize) -> bool {
        self.content.is_some()
            && self.blocks.len() == self.published
            && self.computed == self.published * block_size
    }

    /// Calls `found` with each published block that continues what is computed, until one is not
    /// there or may not be shared; with the content id of each.
    pub(super) fn find_known(&mut self, pool: &BlockPool, mut found: impl FnMut(u32, ContentId)) {
        let size = pool.block_size();
        if !self.at_boundary(size) {
            return;
        }
        let mut before = self.content;
        for index in self.published..self.shareable_blocks(size) {
            let hash = self.hash(index, size);
            let tokens = &self.tokens[index * size..(index + 1) * size];
            let known = before
                .zip(hash)
                .and_then(|(before, hash)| pool.find(before, hash, tokens));
            let Some((block, content)) = known else {
                return;
            };
            found(block, content);
            before = Some(content);
        }
    }

    /// Takes the published blocks that continue what is computed; returns their positions.
    pub(super) fn share_known(&mut self, pool: &mut BlockPool) -> usize {
        let mut known = Vec::new();
        self.find_known(pool, |block, content| known.push((block, content)));
        for &(block, content) in &known {
            pool.retain(block);
            self.blocks.push(block);
            self.published += 1;
            self.content = Some(content);
        }
        let positions = known.len() * pool.block_size();
        self.computed += positions;
        self.shared += self.computed.saturating_sub(self.reached);
        self.reached = self.reached.max(self.computed);
        positions
    }

    /// Notes that positions below `end` are computed, and publishes the blocks that are full.
    pub(super) fn complete(&mut self, end: usize, pool: &mut BlockPool, publish: bool) {
        self.computed = end;
        self.reached = self.reached.max(end);
        if let Some(from) = self.logits_from {
            self.logits_from = (end < self.prompt_tokens).then_some(from.max(end));
        }
        let size = pool.block_size();
        while publish && (self.published + 1) * size <= end {
            let Some(before) = self.content else {
                return;
            };
            let index = self.published;
            let Some(hash) = self.hash(index, size) else {
                return;
            };
            let tokens = &self.tokens[index * size..(index + 1) * size];
            let held = pool.publish(self.blocks[index], before, hash, tokens);
            self.content = held.map(|(_, content)| content);
            if let Some((block, _)) = held {
                self.blocks[index] = block;
                self.published += 1;
            }
        }
    }

    /// Gives back the blocks that a step which failed would have filled.
    pub(super) fn release_uncomputed(&mut self, pool: &mut BlockPool) {
        let kept = pool.blocks_for(self.computed);
        for block in self.blocks.drain(kept..).rev() {
            pool.release(block);
        }
    }

    /// Gives back all blocks: everything is to be computed again.
    pub(super) fn release_all(&mut self, pool: &mut BlockPool) {
        for block in self.blocks.drain(..).rev() {
            pool.release(block);
        }
        self.computed = 0;
        self.published = 0;
        self.content = Some(ContentId::START);
    }

    /// Asserts what must hold of a sequence between steps.
    pub(super) fn check_invariants(&self, pool: &BlockPool) {
        let size = pool.block_size();
        assert!(self.computed <= self.tokens.len());
        assert!(self.tokens.len() <= self.max_tokens.max(self.prompt_tokens));
        assert!(self.published <= self.blocks.len() && self.published * size <= self.computed);
        assert!(self.hashes.len() * size <= self.tokens.len());
        assert!(self.logits_from.is_none() || self.tokens.len() == self.prompt_tokens);
        assert!(self.blocks.len() >= pool.blocks_for(self.computed));
        match self.state {
            SequenceState::Waiting | SequenceState::Done => assert!(self.blocks.is_empty()),
            SequenceState::Decoding => assert!(self.remaining() <= 1),
            SequenceState::Prefilling { .. } => assert!(self.remaining() > 0),
            SequenceState::Paused => {}
        }
    }
}
