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
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    struct Bench {
        scheduler: Scheduler,
        now: Instant,
    }

    fn options() -> SchedulerOptions {
        SchedulerOptions {
            block_size: 4,
            blocks: 64,
            max_step_tokens: 16,
            max_running: 8,
            max_waiting: 32,
            max_sequence_tokens: 128,
            max_prompt_logits: 3,
            share_prefixes: true,
        }
    }

    fn sequence(id: u64, prompt: std::ops::Range<u32>, new: u32) -> NewSequence {
        NewSequence {
            id: SequenceId::new(id),
            prompt: prompt.collect(),
            max_new_tokens: new,
            deadline: None,
            priority: Priority::NORMAL,
            tenant: Arc::from("tenant"),
            all_logits: false,
        }
    }

    impl Bench {
        fn new(options: SchedulerOptions) -> Self {
            Self {
                scheduler: Scheduler::new(options).unwrap(),
                now: Instant::now(),
            }
        }

        fn add(&mut self, new: NewSequence) {
            self.scheduler.add(new).unwrap();
        }

        /// One iteration; its rows as (id, first position, tokens, logits).
        fn step(&mut self) -> Vec<(u64, u32, u32, u32)> {
            let step = self.scheduler.compose(self.now);
            self.scheduler.complete(&step);
            for row in step.rows.iter().filter(|row| row.samples) {
                self.scheduler.append(row.id, 7);
            }
            self.scheduler.check_invariants();
            step.rows
                .iter()
                .map(|row| (row.id.number(), row.first_position, row.tokens, row.logits))
                .collect()
        }

        fn state(&self, id: u64) -> SequenceState {
            let sequence = self.scheduler.sequence(SequenceId::new(id)).unwrap();
            sequence.state()
        }
    }

    #[test]
    fn a_long_prompt_is_split_over_steps_beside_those_that_decode() {
        let mut bench = Bench::new(options());
        bench.add(sequence(1, 0..3, 9));
        assert_eq!(bench.step(), [(1, 0, 3, 1)]);
        bench.add(sequence(2, 100..120, 9));
        assert_eq!(bench.step(), [(1, 3, 1, 1), (2, 0, 15, 0)]);
        assert_eq!(bench.step(), [(1, 4, 1, 1), (2, 15, 5, 1)]);
        assert_eq!(bench.step(), [(1, 5, 1, 1), (2, 20, 1, 1)]);
    }

    #[test]
    fn sequences_of_one_prompt_compute_it_once() {
        let mut bench = Bench::new(options());
        for id in 0..4 {
            bench.add(sequence(id, 0..22, 9));
        }
        // Its last, part-filled block is each one's own.
        assert_eq!(bench.step(), [(0, 0, 16, 0)]);
        assert_eq!(
            bench.step(),
            [(0, 16, 6, 1)],
            "the others wait for its fifth block"
        );
        assert_eq!(
            bench.step(),
            [(0, 22, 1, 1), (1, 20, 2, 1), (2, 20, 2, 1), (3, 20, 2, 1)]
        );
        assert_eq!(bench.scheduler.counts().shared_tokens, 60);
        assert_eq!(bench.scheduler.counts().blocks.used, 5 + 4);
        let third = bench.scheduler.sequence(SequenceId::new(3)).unwrap();
        assert_eq!(third.shared_tokens(), 20);
    }

    #[test]
    fn who_waits_for_a_block_computes_it_when_the_other_is_cancelled() {
        let mut bench = Bench::new(options());
        bench.add(sequence(0, 0..40, 9));
        bench.add(sequence(1, 0..40, 9));
        assert_eq!(bench.step(), [(0, 0, 16, 0)]);
        bench.scheduler.cancel(SequenceId::new(0));
        assert_eq!(bench.step(), [(1, 16, 16, 0)]);
    }

    #[test]
    fn a_released_prompt_is_found_again_but_for_its_last_token() {
        let mut bench = Bench::new(options());
        bench.add(sequence(0, 0..12, 1));
        assert_eq!(bench.step(), [(0, 0, 12, 1)]);
        assert_eq!(bench.state(0), SequenceState::Done);
        bench.scheduler.finish(SequenceId::new(0));
        assert_eq!(bench.scheduler.counts().blocks.used, 0);
        bench.add(sequence(1, 0..12, 1));
        assert_eq!(bench.step(), [(1, 8, 4, 1)]);
    }

    #[test]
    fn logits_of_a_prompt_are_given_a_few_in_each_step_and_nothing_of_it_is_shared() {
        let mut bench = Bench::new(options());
        bench.add(sequence(0, 0..8, 1));
        bench.step();
        let all = NewSequence {
            all_logits: true,
            ..sequence(1, 0..8, 1)
        };
        bench.add(all);
        assert_eq!(bench.step(), [(1, 0, 3, 3)]);
        assert_eq!(bench.step(), [(1, 3, 3, 3)]);
        assert_eq!(bench.step(), [(1, 6, 2, 2)]);
    }

    #[test]
    fn when_blocks_run_out_the_youngest_of_the_lowest_level_gives_its_own_and_comes_again() {
        let mut bench = Bench::new(SchedulerOptions {
            blocks: 8,
            ..options()
        });
        let low = NewSequence {
            priority: Priority::LOW,
            ..sequence(0, 0..7, 20)
        };
        bench.add(low);
        bench.add(sequence(1, 50..57, 20));
        bench.step();
        while bench.scheduler.counts().preemptions == 0 {
            bench.step();
        }
        assert_eq!(bench.state(0), SequenceState::Waiting);
        assert_eq!(bench.state(1), SequenceState::Decoding);
        let generated = bench.scheduler.sequence(SequenceId::new(0)).unwrap();
        assert!(!generated.generated().is_empty(), "what it has is kept");
        while bench.state(1) != SequenceState::Done {
            bench.step();
        }
        while bench.state(0) != SequenceState::Done {
            bench.step();
        }
    }

    #[test]
    fn a_paused_sequence_keeps_its_blocks_until_they_are_needed() {
        let mut bench = Bench::new(SchedulerOptions {
            blocks: 8,
            ..options()
        });
        bench.add(sequence(0, 0..15, 9));
        bench.step();
        bench.scheduler.pause(SequenceId::new(0));
        assert_eq!(bench.step(), []);
        bench.add(sequence(1, 50..58, 2));
        bench.step();
        assert_eq!(bench.scheduler.counts().preemptions, 0);
        bench.add(sequence(2, 100..112, 2));
        bench.step();
        assert_eq!(bench.scheduler.counts().preemptions, 1);
        bench.scheduler.resume(SequenceId::new(0));
        assert_eq!(bench.state(0), SequenceState::Waiting);
        while bench.state(0) != SequenceState::Done {
            bench.step();
        }
    }

    #[test]
    fn an_urgent_sequence_takes_the_place_of_a_lower_one() {
        let mut bench = Bench::new(SchedulerOptions {
            max_running: 1,
            ..options()
        });
        bench.add(sequence(0, 0..4, 9));
        bench.step();
        let urgent = NewSequence {
            priority: Priority::HIGH,
            ..sequence(1, 50..54, 2)
        };
        bench.add(urgent);
        assert_eq!(bench.step(), [(1, 0, 4, 1)]);
        assert_eq!(bench.state(0), SequenceState::Waiting);
        assert_eq!(bench.step(), [(1, 4, 1, 1)]);
        assert_eq!(bench.state(1), SequenceState::Done);
    }

    #[test]
    fn what_passed_its_deadline_leaves_from_wherever_it_is_and_is_told_of_once() {
        let mut bench = Bench::new(options());
        let deadline = bench.now + Duration::from_secs(1);
        for id in 0..3 {
            let late = NewSequence {
                deadline: Some(deadline),
                ..sequence(id, 0..40, 9)
            };
            bench.add(late);
        }
        bench.step();
        bench.scheduler.pause(SequenceId::new(0));
        assert_eq!(bench.scheduler.next_deadline(), Some(deadline));
        assert!(bench.scheduler.take_expired(bench.now).is_empty());
        bench.now = deadline;
        assert_eq!(bench.step(), []);
        assert_eq!(bench.scheduler.take_expired(deadline).len(), 3);
        assert!(bench.scheduler.take_expired(deadline).is_empty());
        assert!(bench.scheduler.is_empty());
    }

    #[test]
    fn what_can_never_run_is_refused() {
        let mut bench = Bench::new(options());
        let mut refused = |new| bench.scheduler.add(new).unwrap_err();
        assert_eq!(refused(sequence(0, 0..0, 9)), Refused::Empty);
        let limit = 128;
        assert_eq!(
            refused(sequence(0, 0..100, 29)),
            Refused::TooLong {
                prompt: 100,
                new: 29,
                limit
            }
        );
        assert!(matches!(
            refused(sequence(0, 0..1, u32::MAX)),
            Refused::TooLong { .. }
        ));
        bench.add(sequence(0, 0..100, 28));
        let again = bench.scheduler.add(sequence(0, 0..1, 1));
        assert_eq!(again, Err(Refused::DuplicateId));
        for id in 1..32 {
            bench.add(sequence(id, 0..1, 1));
        }
        let full = bench.scheduler.add(sequence(99, 0..1, 1));
        assert_eq!(full, Err(Refused::Full { limit: 32 }));
    }
}
