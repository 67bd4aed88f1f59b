//! What the next step computes.
//!
//! 1. Each decoding sequence gets its next token, the highest rank (level, then age) first.
//! 2. The rest of `max_step_tokens` goes to prompts, in chunks: level by level, first those that
//!    were begun, by turn, then new ones from the level's lines, by deficit round robin between
//!    tenants. A head of line that has no room closes the admission, also for lower levels:
//!    were smaller ones let past, it might wait for ever.
//!
//! *Sharing.* Where a prompt's computed part ends with a whole block, published blocks that continue
//! it are taken instead of computed. When its next block is being computed in this very step by
//! another row, it gets no row: it finds the block in the next step. Nothing is remembered of this,
//! so whatever becomes of the other, each step so waited is one in which that block made progress.
//!
//! *Room.* A sequence is admitted when the blocks of its whole prompt are there, besides those
//! that admitted prompts still lack, and one for each running sequence, so that it isn't preempted
//! at once. Else paused sequences lose their blocks for it, then those of lower levels; those also
//! lose their places when `max_running` have one. When
//! a running sequence needs a block and none is there, paused ones lose theirs, the lowest rank
//! first, then running ones, the lowest rank first, until one is there or it was itself the lowest.
//!
//! *Why nothing starves inside a level* (levels above being quiet). The highest rank that runs is
//! never preempted, for every sequence fits the cache alone; it has a token in each step, since
//! `max_running ≤ max_step_tokens`, or prompts that were begun before it make progress, of which
//! there are finitely many and none is let in between. So it ends after finitely many steps, and
//! so, by induction over ranks, does everything that runs; sequences that come later are of lower
//! rank and only ever preempt lower ones. A head of line is passed by nobody but
//! preempted ones, which are of finite number and length. So it is admitted when those that run
//! have ended, at the latest; and deficit round robin makes everyone a head of line.

use std::{collections::HashSet, time::Instant};

use super::{
    blocks::PrefixHash,
    scheduler::Scheduler,
    sequence::{Rank, Sequence, SequenceId, SequenceState},
    step::{Step, StepRow},
};

/// A step in the making.
struct Draft {
    rows: Vec<StepRow>,
    tokens_left: usize,
    prompt_logits_left: usize,
    /// Blocks that rows of this step work on and that can be shared afterwards.
    computing: HashSet<PrefixHash>,
}

impl Scheduler {
    /// The next step; empty when nothing can run. The one before it must have been completed or
    /// abandoned. Sequences whose deadline is not after `now` leave first, see
    /// [`Scheduler::take_expired`].
    ///
    /// Costs O(rows · log(sequences)) and the blocks of the prompts that are admitted.
    pub fn compose(&mut self, now: Instant) -> Step {
        self.expire(now);
        let mut draft = Draft {
            rows: Vec::with_capacity(self.running.len().min(self.options.max_running)),
            tokens_left: self.options.max_step_tokens,
            prompt_logits_left: self.options.max_prompt_logits,
            computing: HashSet::new(),
        };
        self.compose_decoding(&mut draft);
        let mut admitting = true;
        for level in 0..self.levels.len() {
            self.compose_begun(level, &mut draft);
            while admitting && (self.has_room_for_row(&draft) || self.is_full_of_lower(level)) {
                let Some(place) = self.levels[level].head() else {
                    break;
                };
                if self.make_room(place.id, &mut draft) {
                    self.admit(place.id);
                    self.compose_chunk(place.id, &mut draft);
                } else {
                    admitting = false;
                }
            }
        }
        Step { rows: draft.rows }
    }

    fn has_room_for_row(&self, draft: &Draft) -> bool {
        draft.tokens_left > 0 && draft.rows.len() < self.options.max_running
    }

    /// Whether all places are taken, some of them by lower levels.
    fn is_full_of_lower(&self, level: usize) -> bool {
        let last_place = self.running.iter().nth(self.options.max_running - 1);
        last_place.is_some_and(|rank| rank.level > level)
    }

    fn compose_decoding(&mut self, draft: &mut Draft) {
        // Resumed sequences may be beyond the places; the higher ranks have them.
        let ranks: Vec<Rank> = self
            .running
            .iter()
            .take(self.options.max_running)
            .copied()
            .collect();
        for rank in ranks {
            if !self.has_room_for_row(draft) {
                return;
            }
            // Another may have taken its blocks meanwhile.
            let Some(sequence) = self.sequences.get(&rank.id) else {
                continue;
            };
            if sequence.state == SequenceState::Decoding && sequence.remaining() == 1 {
                let end = sequence.computed() + 1;
                self.push_row(rank.id, end, draft);
            }
        }
    }

    /// Chunks of the level's prompts that were begun.
    fn compose_begun(&mut self, level: usize, draft: &mut Draft) {
        let begun = (level, 0, SequenceId::new(0))..(level + 1, 0, SequenceId::new(0));
        let begun: Vec<SequenceId> = self.prefilling.range(begun).map(|&(_, _, id)| id).collect();
        for id in begun {
            if !self.has_room_for_row(draft) {
                return;
            }
            if matches!(
                self.sequences.get(&id).map(Sequence::state),
                Some(SequenceState::Prefilling { .. })
            ) {
                self.compose_chunk(id, draft);
            }
        }
    }

    /// The next chunk of a prompt, if it need not wait for one of its blocks.
    fn compose_chunk(&mut self, id: SequenceId, draft: &mut Draft) {
        let size = self.options.block_size;
        if !self.has_room_for_row(draft) {
            return;
        }
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        if self.options.share_prefixes {
            self.shared_tokens += sequence.share_known(&mut self.pool) as u64;
            let next = sequence.computed() / size;
            if sequence.at_boundary(size)
                && next < sequence.shareable_blocks(size)
                && let Some(hash) = sequence.hash(next, size)
                && draft.computing.contains(&hash)
            {
                return;
            }
        }
        let first = sequence.computed();
        let mut end = first + sequence.remaining().min(draft.tokens_left);
        if sequence.wants_prompt_logits() {
            let beyond = sequence
                .logits_of(end)
                .saturating_sub(draft.prompt_logits_left);
            end -= beyond;
            draft.prompt_logits_left -= sequence.logits_of(end);
        }
        if end > first && self.push_row(id, end, draft) && self.options.share_prefixes {
            let Some(sequence) = self.sequences.get_mut(&id) else {
                return;
            };
            for block in first / size..end.div_ceil(size) {
                draft.computing.extend(sequence.hash(block, size));
            }
        }
    }

    /// Adds the row that computes up to `end`, with blocks for it. Returns false when there are no
    /// more and the sequence was the one to give its own back.
    fn push_row(&mut self, id: SequenceId, end: usize, draft: &mut Draft) -> bool {
        let needed = self.pool.blocks_for(end);
        loop {
            let Some(sequence) = self.sequences.get_mut(&id) else {
                return false;
            };
            if sequence.blocks().len() >= needed {
                let row = StepRow {
                    id,
                    first_position: sequence.computed() as u32,
                    tokens: (end - sequence.computed()) as u32,
                    logits: sequence.logits_of(end) as u32,
                    samples: end == sequence.tokens().len() && !sequence.is_full(),
                };
                draft.tokens_left -= row.tokens as usize;
                draft.rows.push(row);
                return true;
            }
            if let Some(block) = self.pool.allocate() {
                sequence.push_block(block);
                continue;
            }
            let rank = sequence.rank;
            let lowest = self.paused_holding.last().or(self.running.last());
            let victim = lowest.copied().unwrap_or(rank);
            self.preempt_from(victim.id, draft);
            if victim == rank {
                return false;
            }
        }
    }

    /// Preempts a sequence, and drops its row from the step.
    fn preempt_from(&mut self, id: SequenceId, draft: &mut Draft) {
        self.preempt(id);
        // Seldom, and then mostly the last.
        if let Some(at) = draft.rows.iter().rposition(|row| row.id == id) {
            draft.tokens_left += draft.rows.remove(at).tokens as usize;
        }
    }

    /// Whether the sequence at the head of its line can be admitted; room is made for it where
    /// paused sequences or lower levels have it.
    fn make_room(&mut self, id: SequenceId, draft: &mut Draft) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return false;
        };
        let level = sequence.rank.level;
        loop {
            let slot = self.running.len() < self.options.max_running;
            let missing = self.missing_blocks(id);
            if slot && missing == 0 {
                return true;
            }
            let hopeless = !slot && !self.is_full_of_lower(level);
            if hopeless || self.takeable_blocks(level) < missing {
                return false;
            }
            let lower = self.running.last().filter(|rank| rank.level > level);
            let victim = if slot {
                self.paused_holding.last().or(lower)
            } else {
                lower
            };
            let Some(victim) = victim.copied() else {
                return false;
            };
            self.preempt_from(victim.id, draft);
        }
    }

    /// Blocks that the pool lacks for admitting a waiting sequence.
    fn missing_blocks(&mut self, id: SequenceId) -> usize {
        let mut promised = 0;
        for (_, _, begun) in &self.prefilling {
            promised += self.sequences[begun].lacking(&self.pool);
        }
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return 0;
        };
        let (mut known, mut unheld) = (0, 0);
        if self.options.share_prefixes {
            let pool = &self.pool;
            sequence.find_known(pool, |block, _| {
                known += 1;
                unheld += usize::from(pool.is_unheld(block));
            });
        }
        let needed = sequence.lacking(&self.pool) - known + unheld;
        (needed + promised + self.running.len()).saturating_sub(self.pool.available())
    }

    /// By how many blocks `missing_blocks` falls, at most, when paused sequences and lower levels
    /// have none: what they hold (some may be shared), and what is kept for them.
    fn takeable_blocks(&self, level: usize) -> usize {
        let held = |rank: &Rank| self.sequences[&rank.id].blocks().len();
        let kept = |rank: &Rank| {
            let sequence = &self.sequences[&rank.id];
            match sequence.state {
                SequenceState::Prefilling { .. } => 1 + sequence.lacking(&self.pool),
                _ => 1,
            }
        };
        let lower = self.running.iter().rev();
        let lower = lower.take_while(|rank| rank.level > level);
        self.paused_holding.iter().map(held).sum::<usize>()
            + lower.map(|rank| held(rank) + kept(rank)).sum::<usize>()
    }
}
