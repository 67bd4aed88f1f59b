//! What the scheduler decides, case by case; `property_tests` has random traffic.

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
