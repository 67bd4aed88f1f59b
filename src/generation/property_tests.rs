//! Properties of the scheduler under random traffic, in simulated time.
//!
//! [`Engine`] does what the real one does, with a model that is a pure function: the next token is
//! a hash of all tokens so far. Its cache keeps for each slot of each block which token was written
//! there after which others, and every row checks all positions that it attends to, before and
//! after the writes of its step. So a wrong block table, a block freed or shared too early, or one
//! that two rows write to, is caught where it is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::batching::Priority;

const LEVELS: [Priority; Priority::LEVELS] = [Priority::HIGH, Priority::NORMAL, Priority::LOW];
/// So small that prefixes are often the same by chance.
const VOCABULARY: u64 = 4;

/// A sequence to come.
#[derive(Debug, Clone)]
struct Draft {
    /// Its prompt is `shared` tokens of this family's text, and `own` others.
    family: u64,
    shared: usize,
    own: usize,
    new: u32,
    /// It stops by itself after so many tokens.
    stops_after: usize,
    priority: usize,
    tenant: usize,
    deadline: Option<u64>,
    all_logits: bool,
}

#[derive(Debug, Clone)]
enum Event {
    /// As many sequences of the same prompt.
    Add(Draft, usize),
    Cancel(Index),
    Pause(Index),
    Resume(Index),
    /// So many milliseconds pass.
    Pass(u64),
    Step,
    /// A step whose forward pass fails after some writes.
    FailingStep,
    /// A step during which one of its sequences is cancelled and one is paused.
    DisturbedStep(Index, Index),
}

#[derive(Debug)]
struct Generating {
    draft: Draft,
    prompt: Vec<u32>,
    generated: Vec<u32>,
    reported: BTreeSet<u32>,
    paused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Slot {
    token: u32,
    /// Hash of all tokens up to and including it.
    prefix: u64,
}

struct Engine {
    scheduler: Scheduler,
    options: SchedulerOptions,
    cache: Vec<Option<Slot>>,
    here: BTreeMap<SequenceId, Generating>,
    now: Instant,
    next: u64,
    finished: usize,
    refused: usize,
}

fn after(prefix: u64, token: u32) -> u64 {
    let mut state = (prefix ^ u64::from(token)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

fn prefixes(tokens: &[u32]) -> Vec<u64> {
    tokens
        .iter()
        .scan(0, |prefix, &token| {
            *prefix = after(*prefix, token);
            Some(*prefix)
        })
        .collect()
}

/// The model: what follows a prefix.
fn next_token(prefix: u64) -> u32 {
    (prefix >> 20) as u32 % VOCABULARY as u32
}

/// What a prompt is continued with when it runs alone.
fn alone(prompt: &[u32], new: usize) -> Vec<u32> {
    let mut prefix = *prefixes(prompt).last().unwrap();
    let mut generated = Vec::new();
    for _ in 0..new {
        generated.push(next_token(prefix));
        prefix = after(prefix, generated[generated.len() - 1]);
    }
    generated
}

impl Engine {
    fn new(options: SchedulerOptions) -> Self {
        Self {
            scheduler: Scheduler::new(options.clone()).unwrap(),
            cache: vec![None; options.blocks * options.block_size],
            options,
            here: BTreeMap::new(),
            now: Instant::now(),
            next: 0,
            finished: 0,
            refused: 0,
        }
    }

    fn add(&mut self, draft: &Draft) {
        let id = SequenceId::new(self.next);
        self.next += 1;
        let text =
            |seed: u64, count: usize| (0..count).map(move |at| next_token(after(seed, at as u32)));
        let prompt: Vec<u32> = text(draft.family, draft.shared)
            .chain(text(1000 + draft.own as u64, draft.own))
            .collect();
        let new = NewSequence {
            id,
            prompt: prompt.clone(),
            max_new_tokens: draft.new,
            deadline: draft
                .deadline
                .map(|ms| self.now + Duration::from_millis(ms)),
            priority: LEVELS[draft.priority],
            tenant: Arc::from(format!("tenant {}", draft.tenant)),
            all_logits: draft.all_logits,
        };
        if self.scheduler.add(new).is_err() {
            self.refused += 1;
            return;
        }
        let generating = Generating {
            draft: draft.clone(),
            prompt,
            generated: Vec::new(),
            reported: BTreeSet::new(),
            paused: false,
        };
        self.here.insert(id, generating);
    }

    fn pick(&self, index: Index) -> Option<SequenceId> {
        (!self.here.is_empty())
            .then(|| *self.here.keys().nth(index.index(self.here.len())).unwrap())
    }

    fn cancel(&mut self, id: SequenceId) {
        assert!(self.scheduler.cancel(id));
        assert!(!self.scheduler.cancel(id));
        self.here.remove(&id);
    }

    fn pause(&mut self, id: SequenceId, paused: bool) {
        if paused {
            self.scheduler.pause(id);
        } else {
            self.scheduler.resume(id);
        }
        self.here.get_mut(&id).unwrap().paused = paused;
    }

    fn obey(&mut self, event: &Event) {
        match event {
            Event::Add(draft, copies) => {
                for _ in 0..*copies {
                    self.add(draft);
                }
            }
            Event::Cancel(index) => {
                if let Some(id) = self.pick(*index) {
                    self.cancel(id);
                }
            }
            Event::Pause(index) | Event::Resume(index) => {
                if let Some(id) = self.pick(*index) {
                    self.pause(id, matches!(event, Event::Pause(_)));
                }
            }
            Event::Pass(ms) => {
                self.now += Duration::from_millis(*ms);
                self.drop_expired();
            }
            Event::Step => self.step(|_, _| {}),
            Event::FailingStep => self.failing_step(),
            Event::DisturbedStep(cancel, pause) => self.step(|engine, step| {
                if step.is_empty() {
                    return;
                }
                let pause = step.rows[pause.index(step.rows.len())].id;
                engine.pause(pause, true);
                engine.cancel(step.rows[cancel.index(step.rows.len())].id);
            }),
        }
        self.scheduler.check_invariants();
    }

    fn drop_expired(&mut self) {
        for id in self.scheduler.take_expired(self.now) {
            let gone = self.here.remove(&id).expect("told of once");
            assert!(gone.draft.deadline.is_some());
        }
    }

    /// Composes a step and checks what must hold of every step.
    fn compose(&mut self) -> Step {
        let step = self.scheduler.compose(self.now);
        self.scheduler.check_invariants();
        self.drop_expired();
        let can_run = self.here.values().any(|one| !one.paused);
        assert_eq!(!step.is_empty(), can_run, "whatever can be done is done");
        assert!(step.tokens() <= self.options.max_step_tokens);
        assert!(step.rows.len() <= self.options.max_running);
        let ids: BTreeSet<SequenceId> = step.rows.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), step.rows.len(), "one row a sequence");
        let mut prompt_logits = 0;
        for row in &step.rows {
            let one = &self.here[&row.id];
            assert!(!one.paused);
            assert!(row.tokens > 0 && row.logits <= row.tokens);
            let known = one.prompt.len() + one.generated.len();
            assert_eq!(
                row.samples,
                row.end() as usize == known && one.draft.new > 0
            );
            assert_eq!(self.scheduler.tokens(row).len(), row.tokens as usize);
            let of_prompt =
                one.draft.all_logits && (row.first_position as usize) < one.prompt.len();
            prompt_logits += if of_prompt { row.logits as usize } else { 0 };
        }
        // A decoding row's own logits may be those of a prompt of one token.
        assert!(prompt_logits <= self.options.max_prompt_logits + self.options.max_running);
        step
    }

    /// The cache's slots of a row's sequence, from its first position to the row's end.
    fn slots(&self, row: &StepRow) -> Vec<usize> {
        let size = self.options.block_size;
        let blocks = self.scheduler.blocks(row);
        (0..row.end() as usize)
            .map(|at| blocks[at / size] as usize * size + at % size)
            .collect()
    }

    /// Checks that the cache has `0..count` of the row's sequence.
    fn read(&self, row: &StepRow, slots: &[usize], prefixes: &[u64]) {
        let one = &self.here[&row.id];
        let tokens = one.prompt.iter().chain(&one.generated);
        for ((slot, &token), &prefix) in slots.iter().zip(tokens).zip(prefixes) {
            let expected = Slot { token, prefix };
            assert_eq!(
                self.cache[*slot],
                Some(expected),
                "{row:?} reads what it wrote"
            );
        }
    }

    /// What the model does with a step: for each row the hashes of all its prefixes.
    fn forward(&mut self, step: &Step) -> Vec<Vec<u64>> {
        let rows: Vec<(StepRow, Vec<usize>, Vec<u64>)> = step
            .rows
            .iter()
            .map(|row| {
                let one = &self.here[&row.id];
                let tokens: Vec<u32> = one.prompt.iter().chain(&one.generated).copied().collect();
                let range = row.first_position as usize..row.end() as usize;
                assert_eq!(self.scheduler.tokens(row), &tokens[range]);
                (*row, self.slots(row), prefixes(&tokens))
            })
            .collect();
        for (row, slots, prefixes) in &rows {
            self.read(row, &slots[..row.first_position as usize], prefixes);
        }
        for (row, slots, prefixes) in &rows {
            for (offset, &token) in self.scheduler.tokens(row).iter().enumerate() {
                let at = row.first_position as usize + offset;
                let prefix = prefixes[at];
                self.cache[slots[at]] = Some(Slot { token, prefix });
            }
        }
        for (row, slots, prefixes) in &rows {
            self.read(row, slots, prefixes);
        }
        rows.into_iter().map(|(_, _, prefixes)| prefixes).collect()
    }

    fn step(&mut self, disturb: impl FnOnce(&mut Self, &Step)) {
        let step = self.compose();
        let prefixes = self.forward(&step);
        disturb(self, &step);
        self.scheduler.check_invariants();
        self.scheduler.complete(&step);
        self.scheduler.check_invariants();
        for (row, prefixes) in step.rows.iter().zip(prefixes) {
            let Some(one) = self.here.get_mut(&row.id) else {
                continue;
            };
            if one.draft.all_logits {
                for at in row.end() - row.logits..row.end() {
                    let again = !one.reported.insert(at);
                    assert!(!again, "logits of {at} were given before");
                }
            }
            if row.samples {
                assert!(row.logits >= 1);
                one.generated
                    .push(next_token(prefixes[row.end() as usize - 1]));
                let count = one.generated.len();
                let stops = count >= one.draft.stops_after;
                let token = one.generated[count - 1];
                // The engine that finds a stop doesn't append.
                let goes_on = !stops && self.scheduler.append(row.id, token);
                assert_eq!(goes_on, !stops && count < one.draft.new as usize);
                if !goes_on {
                    self.finish(row.id);
                }
            } else if one.draft.new == 0 && row.end() as usize == one.prompt.len() {
                let state = self.scheduler.sequence(row.id).unwrap().state();
                assert_eq!(state, SequenceState::Done);
                self.finish(row.id);
            }
            self.scheduler.check_invariants();
        }
    }

    fn finish(&mut self, id: SequenceId) {
        let one = self.here.remove(&id).unwrap();
        let count = one.draft.stops_after.min(one.draft.new as usize);
        assert_eq!(
            one.generated,
            alone(&one.prompt, count),
            "as when run alone"
        );
        if one.draft.all_logits {
            let prompt = 0..one.prompt.len() as u32;
            assert!(prompt.into_iter().all(|at| one.reported.contains(&at)));
        }
        assert!(self.scheduler.finish(id));
        self.finished += 1;
    }

    /// The forward pass fails half-way: some of the writes were done, others are garbage.
    fn failing_step(&mut self) {
        let step = self.compose();
        for row in &step.rows {
            let slots = self.slots(row);
            for (at, slot) in slots.into_iter().enumerate() {
                if at >= row.first_position as usize {
                    self.cache[slot] = None;
                }
            }
        }
        self.scheduler.abandon(&step);
    }

    /// Runs until nothing is left, in a bounded number of steps.
    fn run_out(&mut self) {
        for id in self.here.keys().copied().collect::<Vec<_>>() {
            self.pause(id, false);
        }
        let tokens: usize = self
            .here
            .values()
            .map(|one| one.prompt.len() + one.draft.new as usize)
            .sum();
        let mut steps = 0;
        // Each token is computed, or computed again for each sequence that may preempt its own.
        let bound = tokens * (1 + self.here.len());
        while !self.here.is_empty() {
            self.step(|_, _| {});
            steps += 1;
            assert!(steps <= bound, "{steps} steps, {bound} expected at most");
        }
        self.assert_idle();
    }

    fn assert_idle(&self) {
        let counts = self.scheduler.counts();
        assert!(self.scheduler.is_empty());
        assert_eq!((counts.running, counts.waiting, counts.paused), (0, 0, 0));
        assert_eq!(counts.blocks.used, 0, "every block is given back");
        assert_eq!(
            counts.blocks.free + counts.blocks.cached,
            self.options.blocks
        );
    }
}

fn drafts() -> impl Strategy<Value = Draft> {
    (
        (0..3_u64, 0..40_usize, 0..12_usize, 0..16_u32, 1..24_usize),
        (0..Priority::LEVELS, 0..3_usize),
        prop::option::weighted(0.1, 0..40_u64),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(lengths, (priority, tenant), deadline, all_logits)| {
            let (family, shared, own, new, stops_after) = lengths;
            Draft {
                family,
                shared,
                own: own.max(usize::from(shared == 0)),
                new,
                stops_after,
                priority,
                tenant,
                deadline,
                all_logits,
            }
        })
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (drafts(), 1..4_usize).prop_map(|(draft, copies)| Event::Add(draft, copies)),
        1 => any::<Index>().prop_map(Event::Cancel),
        1 => any::<Index>().prop_map(Event::Pause),
        2 => any::<Index>().prop_map(Event::Resume),
        1 => (0..5_u64).prop_map(Event::Pass),
        10 => Just(Event::Step),
        1 => Just(Event::FailingStep),
        1 => any::<(Index, Index)>().prop_map(|(cancel, pause)| Event::DisturbedStep(cancel, pause)),
    ]
}

fn options() -> impl Strategy<Value = SchedulerOptions> {
    (
        (1..6_usize, 4..40_usize),
        (1..8_usize, 0..32_usize),
        (1..20_usize, 8..80_usize, 1..8_usize),
        prop::bool::weighted(0.8),
    )
        .prop_map(
            |((block_size, blocks), (max_running, more), bounds, share_prefixes)| {
                SchedulerOptions {
                    block_size,
                    blocks,
                    max_step_tokens: max_running + more,
                    max_running,
                    max_waiting: bounds.0,
                    max_sequence_tokens: bounds.1,
                    max_prompt_logits: bounds.2,
                    share_prefixes,
                }
            },
        )
}

/// `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig {
        cases: usual.cases.max(512),
        failure_persistence: None,
        ..usual
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_sequence_gets_the_tokens_it_gets_alone_and_gives_its_blocks_back(
        options in options(),
        traffic in vec(events(), 1..80),
    ) {
        let mut engine = Engine::new(options);
        for event in &traffic {
            engine.obey(event);
        }
        engine.run_out();
    }

    #[test]
    fn after_all_are_cancelled_no_block_is_in_use(
        options in options(),
        traffic in vec(events(), 1..40),
    ) {
        let mut engine = Engine::new(options);
        for event in &traffic {
            engine.obey(event);
        }
        for id in engine.here.keys().copied().collect::<Vec<_>>() {
            engine.cancel(id);
            engine.scheduler.check_invariants();
        }
        engine.assert_idle();
    }

    #[test]
    fn inside_a_level_everyone_ends_however_many_come_after(
        options in options(),
        first in drafts(),
        others in vec(drafts(), 1..10),
    ) {
        let mut engine = Engine::new(options);
        let draft = Draft { deadline: None, priority: 1, ..first };
        engine.add(&draft);
        if engine.refused > 0 {
            return Ok(());
        }
        let id = SequenceId::new(0);
        let mut newcomers = others.iter().cycle();
        for _ in 0..2000 {
            // Always more than can run, some of lower level.
            while engine.here.len() < 12 && engine.refused < 5000 {
                let newcomer = newcomers.next().unwrap().clone();
                let priority = newcomer.priority.max(1);
                let before = engine.refused;
                engine.add(&Draft { deadline: None, priority, ..newcomer });
                if engine.refused > before {
                    break;
                }
            }
            engine.step(|_, _| {});
            if !engine.here.contains_key(&id) {
                return Ok(());
            }
        }
        prop_assert!(false, "starved");
    }
}
