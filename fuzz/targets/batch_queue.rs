//! The batching queue under any calls, at times that may go back: every row leaves once, and the
//! queue's own invariants hold after each call.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use ferry::batching::{BatchPolicy, BatchQueue, Decision, Priority, Row, RowId};

use super::bytes::Bytes;

const LEVELS: [Priority; Priority::LEVELS] = [Priority::HIGH, Priority::NORMAL, Priority::LOW];

/// The policy, then calls.
pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let policy = BatchPolicy {
        max_rows: input.below(12),
        max_tokens: input.below(300),
        max_queue_delay: Duration::from_micros(input.below(20_000) as u64),
        max_waiting_rows: input.below(64),
        eager: input.coin(),
    };
    let (most_rows, most_tokens) = (policy.max_rows.max(1), policy.max_tokens.max(1));
    let start = Instant::now();
    let mut now = start;
    let mut queue = BatchQueue::new(policy);
    let mut waiting = BTreeSet::new();
    let mut pushed = 0;
    while !input.is_empty() {
        let mut left = Vec::new();
        match input.byte() % 9 {
            0..=2 => {
                // Now and then under the id of one that came before.
                let id = if input.byte() == 0 {
                    pushed / 2
                } else {
                    pushed
                };
                let row = Row {
                    id: RowId::new(id),
                    tokens: input.below(320) as u32,
                    arrived: now,
                    deadline: input
                        .coin()
                        .then(|| now + Duration::from_micros(input.below(30_000) as u64)),
                    priority: LEVELS[input.below(3)],
                    tenant: Arc::from(format!("tenant {}", input.below(4))),
                    payload: pushed,
                };
                match queue.push(row, now) {
                    Ok(()) => assert!(waiting.insert(pushed)),
                    Err(rejected) => assert_eq!(rejected.row.payload, pushed),
                }
                pushed += 1;
            }
            3 => {
                let id = input.below(pushed as usize + 1) as u64;
                left.extend(queue.cancel(RowId::new(id)));
            }
            4 => left = queue.take_expired(now),
            5 => {
                let idle = input.coin();
                match queue.poll(now, idle) {
                    Decision::Flush(batch) => {
                        assert!((1..=most_rows).contains(&batch.rows.len()));
                        assert!(batch.tokens <= most_tokens);
                        left = batch.rows;
                    }
                    Decision::WaitUntil(until) => assert!(until > now),
                    Decision::Empty => assert!(!idle || queue.is_empty()),
                }
            }
            6 => {
                queue.note_done(input.below(16), now);
                let (tokens, run) = (input.below(300), input.below(50_000) as u64);
                queue.observe(tokens, (tokens * 7) as u64, Duration::from_micros(run));
            }
            7 => {
                let step = Duration::from_micros(input.below(40_000) as u64);
                now = if input.byte() < 32 {
                    now.checked_sub(step).unwrap_or(now)
                } else {
                    now + step
                };
            }
            _ => left.extend(queue.drain(now).into_iter().flat_map(|batch| batch.rows)),
        }
        queue.check_invariants();
        for row in left {
            assert!(waiting.remove(&row.payload), "left twice, or never came");
        }
        // Those that expired under a poll or a drain are kept until they are taken.
        assert!(queue.len() <= waiting.len());
    }
    let mut last = queue.take_expired(start);
    while let Some(batch) = queue.drain(start) {
        last.extend(batch.rows);
    }
    last.extend(queue.take_expired(start));
    for row in last {
        assert!(waiting.remove(&row.payload), "left twice, or never came");
    }
    assert!(waiting.is_empty(), "rows that never left: {waiting:?}");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let policy = [0, 4, 0, 200, 4, 0, 0, 32, 1];
    let push = [0, 9, 0, 50, 1, 2, 0, 0, 1, 0, 0];
    let busy: Vec<u8> = std::iter::repeat_n(push, 9).flatten().collect();
    let poll = [5, 1, 7, 200, 3, 0, 6, 0, 2, 0, 90, 9, 9, 5, 1];
    vec![
        [&policy[..], &push, &push, &poll, &push, &[8]].concat(),
        [&policy[..], &busy, &poll, &poll, &[3, 0, 2, 4, 5, 0]].concat(),
    ]
}
