//! The scheduler of continuous batching: what comes, what goes, and what is known between steps.
//! What the next step computes is decided in `compose`.
//!
//! The engine's loop is: take messages (`add`, `cancel`, `pause`, `resume`), `take_expired`,
//! `compose`, run the model, `complete` (or `abandon`), then for each row that `samples` one
//! `append` or `finish`. A step in flight must have ended before the next `compose`: blocks that
//! are given back while it runs are given to others no sooner than then, so a cancelled sequence's
//! late writes hit nobody.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    time::Instant,
};

use crate::batching::{Lines, Place, Priority};

use super::{
    blocks::BlockPool,
    options::{OptionsError, Refused, SchedulerOptions},
    sequence::{NewSequence, Rank, Sequence, SequenceId, SequenceState},
    step::{Counts, Step, StepRow},
};

/// The sequences of one model instance, and the blocks of its KV cache.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) options: SchedulerOptions,
    pub(super) pool: BlockPool,
    pub(super) sequences: HashMap<SequenceId, Sequence>,
    /// Those in state Waiting.
    pub(super) levels: [Lines<SequenceId>; Priority::LEVELS],
    waiting: usize,
    /// Those in state Prefilling or Decoding.
    pub(super) running: BTreeSet<Rank>,
    /// Those in state Prefilling, by level and turn.
    pub(super) prefilling: BTreeSet<(usize, u64, SequenceId)>,
    /// Those in state Paused that hold blocks.
    pub(super) paused_holding: BTreeSet<Rank>,
    paused: usize,
    by_deadline: BTreeSet<(Instant, SequenceId)>,
    /// Sequences whose deadline has passed, until they are taken.
    expired: Vec<SequenceId>,
    next_age: u64,
    next_turn: u64,
    preemptions: u64,
    pub(super) shared_tokens: u64,
    computed_tokens: u64,
}

impl Scheduler {
    /// No sequences, all blocks free.
    ///
    /// # Errors
    /// [`OptionsError`] when nothing could run.
    pub fn new(options: SchedulerOptions) -> Result<Self, OptionsError> {
        options.validate()?;
        // A sixteenth of a step: fine enough for fairness within one step.
        let quantum = options.max_step_tokens / 16;
        Ok(Self {
            pool: BlockPool::new(options.blocks, options.block_size),
            sequences: HashMap::new(),
            levels: std::array::from_fn(|_| Lines::new(quantum)),
            waiting: 0,
            running: BTreeSet::new(),
            prefilling: BTreeSet::new(),
            paused_holding: BTreeSet::new(),
            paused: 0,
            by_deadline: BTreeSet::new(),
            expired: Vec::new(),
            next_age: 0,
            next_turn: 0,
            preemptions: 0,
            shared_tokens: 0,
            computed_tokens: 0,
            options,
        })
    }

    /// Puts a sequence in line.
    ///
    /// # Errors
    /// [`Refused`] when as many wait as may, the sequence could never run to its end, has no
    /// prompt, or its id is taken.
    pub fn add(&mut self, new: NewSequence) -> Result<(), Refused> {
        if new.prompt.is_empty() {
            return Err(Refused::Empty);
        }
        let limit = self.longest_sequence();
        let fits =
            new.prompt.len() <= limit && new.max_new_tokens as usize <= limit - new.prompt.len();
        if !fits {
            return Err(Refused::TooLong {
                prompt: new.prompt.len(),
                new: new.max_new_tokens as usize,
                limit,
            });
        }
        if self.waiting >= self.options.max_waiting {
            return Err(Refused::Full {
                limit: self.options.max_waiting,
            });
        }
        let (id, age) = (new.id, self.next_age);
        let Entry::Vacant(entry) = self.sequences.entry(id) else {
            return Err(Refused::DuplicateId);
        };
        self.next_age += 1;
        let sequence = entry.insert(Sequence::new(new, age));
        self.by_deadline
            .extend(sequence.deadline.map(|deadline| (deadline, id)));
        let place = Place {
            id,
            tokens: sequence.cost,
        };
        self.levels[sequence.rank.level].push(&sequence.tenant, place);
        self.waiting += 1;
        Ok(())
    }

    /// The most tokens, prompt and new ones, that a sequence may have: what the model can attend
    /// to, and what fits the whole cache.
    pub fn longest_sequence(&self) -> usize {
        let cache = self.options.blocks.saturating_mul(self.options.block_size);
        self.options.max_sequence_tokens.min(cache)
    }

    /// Notes that a step has been computed: its positions are in the cache, its full blocks can be
    /// shared from now on.
    pub fn complete(&mut self, step: &Step) {
        for row in &step.rows {
            let end = row.end() as usize;
            let Some(sequence) = self.sequences.get_mut(&row.id) else {
                continue;
            };
            // One that was cancelled and came again under its id has nothing of this step.
            let stands = sequence.computed() == row.first_position as usize
                && sequence.blocks().len() * self.options.block_size >= end;
            if !stands {
                continue;
            }
            self.computed_tokens += u64::from(row.tokens);
            sequence.complete(end, &mut self.pool, self.options.share_prefixes);
            if sequence.remaining() > 0 {
                continue;
            }
            if let SequenceState::Prefilling { turn } = sequence.state {
                self.prefilling.remove(&(sequence.rank.level, turn, row.id));
                sequence.state = SequenceState::Decoding;
            }
            if sequence.is_full() {
                self.set_done(row.id);
            }
        }
    }

    /// Notes that a step failed: nothing of it is in the cache. Its rows come again, unless their
    /// sequences are cancelled.
    pub fn abandon(&mut self, step: &Step) {
        for row in &step.rows {
            if let Some(sequence) = self.sequences.get_mut(&row.id) {
                sequence.release_uncomputed(&mut self.pool);
                if sequence.blocks().is_empty() {
                    self.paused_holding.remove(&sequence.rank);
                }
            }
        }
    }

    /// Appends the token that was sampled from a row's last logits, or several when they are
    /// certain. Returns whether more may follow; when not, its blocks are given back and it waits
    /// to be finished. A token beyond its last, or of an unknown sequence, is dropped.
    pub fn append(&mut self, id: SequenceId, token: u32) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return false;
        };
        if sequence.is_full() {
            return false;
        }
        sequence.append(token);
        if sequence.is_full() {
            self.set_done(id);
            return false;
        }
        if sequence.state == SequenceState::Decoding && sequence.remaining() > 1 {
            self.start_prefill(id);
        }
        true
    }

    /// Takes a sequence out that has all its tokens; its blocks are given back at once. Returns
    /// whether it was there.
    pub fn finish(&mut self, id: SequenceId) -> bool {
        self.leave_state(id);
        let Some(mut sequence) = self.sequences.remove(&id) else {
            return false;
        };
        sequence.release_all(&mut self.pool);
        if let Some(deadline) = sequence.deadline {
            self.by_deadline.remove(&(deadline, id));
        }
        true
    }

    /// Takes a sequence out wherever it stands, as [`Scheduler::finish`] does.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        self.finish(id)
    }

    /// Takes a sequence out of the steps until it is resumed: its reader is slow. It keeps its
    /// blocks until others need them.
    pub fn pause(&mut self, id: SequenceId) {
        let Some(state) = self.sequences.get(&id).map(|sequence| sequence.state) else {
            return;
        };
        if matches!(state, SequenceState::Paused | SequenceState::Done) {
            return;
        }
        self.leave_state(id);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.state = SequenceState::Paused;
            self.paused += 1;
            if !sequence.blocks().is_empty() {
                self.paused_holding.insert(sequence.rank);
            }
        }
    }

    /// Lets a paused sequence go on. Where its blocks were needed, it goes to the head of its
    /// tenant's line.
    pub fn resume(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get(&id) else {
            return;
        };
        if sequence.state != SequenceState::Paused {
            return;
        }
        self.leave_state(id);
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        if sequence.blocks().is_empty() {
            self.wait_at_head(id);
        } else if sequence.remaining() > 1 {
            self.running.insert(sequence.rank);
            self.start_prefill(id);
        } else {
            self.running.insert(sequence.rank);
            sequence.state = SequenceState::Decoding;
        }
    }

    /// The sequences whose deadline has passed, waiting, running or paused. They are out of the
    /// scheduler; each is told of once.
    pub fn take_expired(&mut self, now: Instant) -> Vec<SequenceId> {
        self.expire(now);
        std::mem::take(&mut self.expired)
    }

    /// The next deadline of a sequence that is here.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|&(deadline, _)| deadline)
    }

    /// A sequence that is here.
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// The tokens of a row of the latest step, `[row.tokens]`; empty when its sequence has left.
    pub fn tokens(&self, row: &StepRow) -> &[u32] {
        let range = row.first_position as usize..row.end() as usize;
        self.sequences
            .get(&row.id)
            .and_then(|sequence| sequence.tokens().get(range))
            .unwrap_or_default()
    }

    /// The block table of a row of the latest step: block `i` has the positions from
    /// `i · block_size` on of its sequence, up to the row's end at least. Empty when its sequence
    /// has left.
    pub fn blocks(&self, row: &StepRow) -> &[u32] {
        self.sequences
            .get(&row.id)
            .map_or(&[], |sequence| sequence.blocks())
    }

    /// Whether no sequence is here.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// What is here, and what happened so far.
    pub fn counts(&self) -> Counts {
        Counts {
            running: self.running.len(),
            waiting: self.waiting,
            paused: self.paused,
            blocks: self.pool.counts(),
            preemptions: self.preemptions,
            shared_tokens: self.shared_tokens,
            computed_tokens: self.computed_tokens,
        }
    }

    /// Asserts everything that must hold between calls.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_invariants(&self) {
        let held = self.sequences.values().flat_map(Sequence::blocks).copied();
        self.pool.check_invariants(held);
        let in_line: usize = self
            .levels
            .iter()
            .map(|lines| lines.check_invariants(self.longest_sequence()))
            .sum();
        let (mut waiting, mut running, mut prefilling) = (0, 0, 0);
        let (mut paused, mut holding) = (0, 0);
        for (id, sequence) in &self.sequences {
            assert_eq!(*id, sequence.rank.id);
            sequence.check_invariants(&self.pool);
            match sequence.state {
                SequenceState::Waiting => waiting += 1,
                SequenceState::Prefilling { turn } => {
                    running += 1;
                    prefilling += 1;
                    assert!(self.running.contains(&sequence.rank));
                    let place = (sequence.rank.level, turn, *id);
                    assert!(self.prefilling.contains(&place));
                }
                SequenceState::Decoding => {
                    running += 1;
                    assert!(self.running.contains(&sequence.rank));
                }
                SequenceState::Paused => {
                    paused += 1;
                    let holds = !sequence.blocks().is_empty();
                    holding += usize::from(holds);
                    assert_eq!(self.paused_holding.contains(&sequence.rank), holds);
                }
                SequenceState::Done => assert!(sequence.is_full()),
            }
        }
        assert_eq!((waiting, waiting), (self.waiting, in_line));
        assert_eq!(running, self.running.len());
        assert_eq!(prefilling, self.prefilling.len());
        assert_eq!(paused, self.paused);
        assert_eq!(holding, self.paused_holding.len());
        let with_deadline = self.sequences.values().filter(|one| one.deadline.is_some());
        assert_eq!(with_deadline.count(), self.by_deadline.len());
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.by_deadline.first()
            && deadline <= now
        {
            self.by_deadline.pop_first();
            self.finish(id);
            self.expired.push(id);
        }
    }

    /// Takes a sequence's blocks. It goes to the head of its tenant's line, or stays paused.
    pub(super) fn preempt(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        self.preemptions += 1;
        sequence.release_all(&mut self.pool);
        if sequence.state == SequenceState::Paused {
            self.paused_holding.remove(&sequence.rank);
            return;
        }
        self.leave_state(id);
        self.wait_at_head(id);
    }

    /// Moves the sequence at the head of a level, which `Lines::head` gave, from its line to those
    /// that run.
    pub(super) fn admit(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        debug_assert_eq!(sequence.state, SequenceState::Waiting);
        self.levels[sequence.rank.level].take();
        self.waiting -= 1;
        sequence.cost = 0;
        self.running.insert(sequence.rank);
        self.start_prefill(id);
    }

    fn start_prefill(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            let turn = self.next_turn;
            self.next_turn += 1;
            sequence.state = SequenceState::Prefilling { turn };
            self.prefilling.insert((sequence.rank.level, turn, id));
        }
    }

    fn wait_at_head(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.state = SequenceState::Waiting;
            let place = Place {
                id,
                tokens: sequence.cost,
            };
            self.levels[sequence.rank.level].push_front(&sequence.tenant, place);
            self.waiting += 1;
        }
    }

    fn set_done(&mut self, id: SequenceId) {
        self.leave_state(id);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.release_all(&mut self.pool);
            sequence.state = SequenceState::Done;
        }
    }

    /// Takes a sequence out of the collection of its state; its next state is the caller's to set.
    fn leave_state(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get(&id) else {
            return;
        };
        let rank = sequence.rank;
        match sequence.state {
            SequenceState::Waiting => {
                self.levels[rank.level].remove(&sequence.tenant, id);
                self.waiting -= 1;
            }
            SequenceState::Prefilling { turn } => {
                self.running.remove(&rank);
                self.prefilling.remove(&(rank.level, turn, id));
            }
            SequenceState::Decoding => {
                self.running.remove(&rank);
            }
            SequenceState::Paused => {
                self.paused -= 1;
                self.paused_holding.remove(&rank);
            }
            SequenceState::Done => {}
        }
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
