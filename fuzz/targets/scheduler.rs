//! The generation scheduler under any calls: its own invariants hold after each, a block is written
//! by one row of a step at most, and all that isn't taken out comes to its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ferry::{
    batching::Priority,
    generation::{NewSequence, Scheduler, SchedulerOptions, SequenceId, Step},
};

use super::bytes::Bytes;

const LEVELS: [Priority; Priority::LEVELS] = [Priority::HIGH, Priority::NORMAL, Priority::LOW];

/// What became of the sequences, as the engine would see it.
struct Engine {
    scheduler: Scheduler,
    block_size: usize,
    most_tokens: usize,
    /// Tokens that each may still have.
    here: BTreeMap<SequenceId, u32>,
    now: Instant,
}

/// The options, then calls.
pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let max_running = 1 + input.below(6);
    let options = SchedulerOptions {
        block_size: 1 + input.below(8),
        blocks: 1 + input.below(24),
        max_step_tokens: max_running + input.below(24),
        max_running,
        max_waiting: 1 + input.below(12),
        max_sequence_tokens: 1 + input.below(64),
        max_prompt_logits: 1 + input.below(16),
        share_prefixes: input.coin(),
    };
    let mut engine = Engine {
        block_size: options.block_size,
        most_tokens: options.max_step_tokens,
        scheduler: Scheduler::new(options).expect("nothing is 0"),
        here: BTreeMap::new(),
        now: Instant::now(),
    };
    let mut next = 0;
    while !input.is_empty() {
        match input.byte() % 8 {
            0 | 1 => {
                engine.add(SequenceId::new(next), &mut input);
                next += 1;
            }
            2 | 3 => {
                engine.step(input.byte() & 7 != 7);
            }
            4 => {
                if let Some(id) = engine.pick(&mut input) {
                    assert!(engine.scheduler.cancel(id));
                    engine.here.remove(&id);
                }
            }
            5 => {
                if let Some(id) = engine.pick(&mut input) {
                    engine.scheduler.pause(id);
                }
            }
            6 => {
                if let Some(id) = engine.pick(&mut input) {
                    engine.scheduler.resume(id);
                }
            }
            _ => {
                engine.now += Duration::from_millis(input.below(50) as u64);
                for id in engine.scheduler.take_expired(engine.now) {
                    assert!(engine.here.remove(&id).is_some(), "told of once");
                }
            }
        }
        engine.scheduler.check_invariants();
    }
    engine.finish();
}

impl Engine {
    fn add(&mut self, id: SequenceId, input: &mut Bytes<'_>) {
        // Of three tokens, so that beginnings are shared.
        let prompt = (0..input.below(40)).map(|_| u32::from(input.byte() % 3));
        let prompt: Vec<u32> = prompt.collect();
        let max_new_tokens = input.below(20) as u32;
        let new = NewSequence {
            id,
            prompt,
            max_new_tokens,
            deadline: (input.byte() < 64)
                .then(|| self.now + Duration::from_millis(input.below(200) as u64)),
            priority: LEVELS[input.below(3)],
            tenant: Arc::from(format!("tenant {}", input.below(3))),
            all_logits: input.byte() < 32,
        };
        if self.scheduler.add(new).is_ok() {
            self.here.insert(id, max_new_tokens);
        }
    }

    fn pick(&self, input: &mut Bytes<'_>) -> Option<SequenceId> {
        let at = input.below(self.here.len());
        self.here.keys().nth(at).copied()
    }

    /// A step that runs, or fails; false when there was nothing to do.
    fn step(&mut self, runs: bool) -> bool {
        let step = self.scheduler.compose(self.now);
        for id in self.scheduler.take_expired(self.now) {
            assert!(self.here.remove(&id).is_some(), "told of once");
        }
        self.check(&step);
        self.scheduler.check_invariants();
        if !runs {
            self.scheduler.abandon(&step);
            return !step.is_empty();
        }
        self.scheduler.complete(&step);
        self.scheduler.check_invariants();
        for row in &step.rows {
            let left = self.here.get_mut(&row.id).expect("it is here");
            let mut more = !row.samples || *left > 0;
            if row.samples {
                *left -= 1;
                more = self.scheduler.append(row.id, row.end() % 3);
                assert_eq!(more, *left > 0, "it has as many tokens as it asked for");
            }
            let is_prompt_only = *left == 0 && !row.samples;
            let done = self
                .scheduler
                .sequence(row.id)
                .is_some_and(|sequence| sequence.state() == ferry::generation::SequenceState::Done);
            if !more || is_prompt_only && done {
                assert!(self.scheduler.finish(row.id));
                self.here.remove(&row.id);
            }
        }
        !step.is_empty()
    }

    fn check(&self, step: &Step) {
        assert!(step.tokens() <= self.most_tokens);
        let mut written = BTreeSet::new();
        for row in &step.rows {
            assert!(row.tokens > 0 && row.logits <= row.tokens);
            assert_eq!(self.scheduler.tokens(row).len(), row.tokens as usize);
            let blocks = self.scheduler.blocks(row);
            for at in row.first_position as usize..row.end() as usize {
                let slot = (blocks[at / self.block_size], at % self.block_size);
                assert!(written.insert(slot), "two rows write {slot:?}");
            }
        }
    }

    fn finish(&mut self) {
        let ids: Vec<_> = self.here.keys().copied().collect();
        for id in ids {
            self.scheduler.resume(id);
        }
        let mut steps = 0;
        while self.step(true) {
            steps += 1;
            assert!(steps < 100_000, "it doesn't end");
        }
        assert!(self.here.is_empty(), "left behind: {:?}", self.here);
        assert!(self.scheduler.is_empty());
        assert_eq!(self.scheduler.counts().blocks.used, 0);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let options = [0, 3, 0, 3, 0, 12, 0, 10, 0, 8, 0, 40, 0, 4, 1];
    let add = [0, 0, 6, 1, 2, 0, 1, 2, 0, 0, 5, 255, 0, 1, 0, 1, 255];
    let late = [0, 0, 3, 1, 2, 0, 0, 9, 3, 0, 40, 0, 0, 0, 2, 3];
    vec![
        [
            &options[..],
            &add,
            &add,
            &[2, 0, 2, 0, 2, 0, 5, 0, 0, 2, 0, 6, 0, 0, 2, 0],
        ]
        .concat(),
        [
            &options[..],
            &add,
            &late,
            &[2, 0, 3, 7, 2, 0, 7, 0, 45, 4, 0, 0, 2, 0],
        ]
        .concat(),
    ]
}
