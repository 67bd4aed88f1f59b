//! What the batching queue costs a row: push, poll, and now and then cancel, in batches of 64.
//!
//! The queue holds `BACKLOG` rows between samples, as under load, and time is simulated. The items
//! counter counts rows, so `1 / (items/s)` is the time a row costs.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use divan::{Bencher, counter::ItemsCount};
use ferry::batching::{BatchPolicy, BatchQueue, Decision, Priority, Row, RowId};

const ROWS: usize = 64;
/// Batches of one sample, so that the timer costs nothing.
const BATCHES: usize = 16;
const BACKLOG: usize = 256;
const TENANTS: [usize; 2] = [1, 64];
/// What the engine keeps with a row is about as large.
type Payload = [u64; 16];

/// A queue under load and the rows that come to it.
struct Load {
    queue: BatchQueue<Payload>,
    tenants: Vec<Arc<str>>,
    deadlines: bool,
    now: Instant,
    next: u64,
}

impl Load {
    fn new(tenants: usize, deadlines: bool) -> Self {
        let mut load = Self {
            queue: BatchQueue::new(BatchPolicy {
                max_rows: ROWS,
                max_tokens: ROWS * 128,
                ..BatchPolicy::default()
            }),
            tenants: (0..tenants)
                .map(|at| format!("tenant {at}").into())
                .collect(),
            deadlines,
            now: Instant::now(),
            next: 0,
        };
        for _ in 0..BACKLOG {
            load.push();
        }
        load
    }

    fn push(&mut self) -> RowId {
        let at = self.next;
        self.next += 1;
        self.now += Duration::from_micros(10);
        let id = RowId::new(at);
        let row = Row {
            id,
            tokens: (at * 53 % 125 + 4) as u32,
            arrived: self.now,
            // Not in the order of arrival, and none is missed.
            deadline: self
                .deadlines
                .then(|| self.now + Duration::from_millis(1000 + at * 37 % 64)),
            priority: Priority::NORMAL,
            tenant: Arc::clone(&self.tenants[at as usize * 31 % self.tenants.len()]),
            payload: [at; 16],
        };
        assert!(self.queue.push(row, self.now).is_ok(), "the queue has room");
        id
    }

    /// As many rows come as leave with a batch.
    fn pass_batch(&mut self) {
        for _ in 0..ROWS {
            self.push();
        }
        self.flush();
    }

    /// As [`Load::pass_batch`], and of four rows that come one more is cancelled.
    fn pass_batch_and_cancel(&mut self) {
        for at in 0..ROWS {
            self.push();
            if at % 4 == 0 {
                let id = self.push();
                black_box(self.queue.cancel(id));
            }
        }
        self.flush();
    }

    fn flush(&mut self) {
        match self.queue.poll(self.now, true) {
            Decision::Flush(batch) => {
                assert_eq!(batch.rows.len(), ROWS);
                self.queue.note_done(ROWS, self.now);
                black_box(batch);
            }
            Decision::WaitUntil(_) | Decision::Empty => unreachable!("more than a batch waits"),
        }
    }
}

fn main() {
    divan::main();
}

fn bench(bencher: Bencher, mut load: Load, rows: usize, pass: fn(&mut Load)) {
    bencher
        .counter(ItemsCount::new(rows * BATCHES))
        .bench_local(|| {
            for _ in 0..BATCHES {
                pass(&mut load);
            }
        });
}

#[divan::bench(args = TENANTS)]
fn push_and_poll(bencher: Bencher, tenants: usize) {
    bench(bencher, Load::new(tenants, false), ROWS, Load::pass_batch);
}

#[divan::bench(args = TENANTS)]
fn push_and_poll_with_deadlines(bencher: Bencher, tenants: usize) {
    bench(bencher, Load::new(tenants, true), ROWS, Load::pass_batch);
}

#[divan::bench(args = TENANTS)]
fn push_poll_and_cancel(bencher: Bencher, tenants: usize) {
    let rows = ROWS + ROWS / 4;
    bench(
        bencher,
        Load::new(tenants, false),
        rows,
        Load::pass_batch_and_cancel,
    );
}

#[divan::bench(args = TENANTS)]
fn push_poll_and_cancel_with_deadlines(bencher: Bencher, tenants: usize) {
    let rows = ROWS + ROWS / 4;
    bench(
        bencher,
        Load::new(tenants, true),
        rows,
        Load::pass_batch_and_cancel,
    );
}
