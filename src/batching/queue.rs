//! The batching queue: rows board in order of priority and fairness; a batch leaves when it is
//! full or when its time has come.
//!
//! A batch leaves
//! 1. when the row or token budget is reached by what waits, even while every executor is busy;
//! 2. else only to an idle executor, when
//!    - the oldest row has waited for it `max_queue_delay` while there was an idle executor, or
//!    - a deadline, less the predicted run time, is about to pass, or
//!    - the policy is eager and waiting would not pay.
//!
//! *Would waiting pay?* One more batch costs the executor its fixed time `a` (from the run time
//! model), which everything behind it waits for; waiting for one more row costs those that wait
//! the gap `g` until it comes. So waiting pays while `g < a` and more rows are to be expected, and
//! it is given up when the next row is late by another gap.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    time::{Duration, Instant},
};

use super::{
    arrivals::Arrivals,
    lines::{Lines, Place},
    policy::BatchPolicy,
    row::{Batch, FlushReason, Priority, Row, RowId},
    run_time::RunTimeModel,
};

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<T> {
    /// Run this.
    Flush(Batch<T>),
    /// Nothing leaves before this instant, which is later than `now`, unless a row comes or an
    /// executor becomes idle.
    WaitUntil(Instant),
    /// Nothing leaves until a row comes or an executor becomes idle.
    Empty,
}

/// Why a row can't wait here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// As many rows wait as may.
    #[error("{limit} rows wait already")]
    QueueFull {
        /// Rows that may wait.
        limit: usize,
    },
    /// No batch could ever carry it.
    #[error("a row of {tokens} tokens; a batch holds {limit}")]
    RowTooLarge {
        /// The row's length.
        tokens: u32,
        /// The batch's token budget.
        limit: usize,
    },
    /// A row of this id waits already.
    #[error("a row of the same id waits already")]
    DuplicateId,
}

/// A row that was not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected<T> {
    /// The row, given back.
    pub row: Row<T>,
    /// Why.
    pub reason: RejectReason,
}

/// How much work waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Tokens of the rows.
    pub tokens: usize,
    /// Sum of their squared lengths.
    pub sum_len_squared: u64,
}

/// The rows that wait for one engine.
#[derive(Debug)]
pub struct BatchQueue<T> {
    policy: BatchPolicy,
    rows: HashMap<RowId, Row<T>>,
    levels: [Lines<RowId>; Priority::LEVELS],
    by_arrival: BTreeSet<(Instant, RowId)>,
    by_deadline: BTreeSet<(Instant, RowId)>,
    /// Rows whose deadline has passed, until they are taken.
    expired: Vec<Row<T>>,
    /// Tokens and squared lengths of what waits, by level.
    waiting: [Waiting; Priority::LEVELS],
    /// Since when there has been an idle executor, if there is one.
    idle_since: Option<Instant>,
    /// Rows that left and have not been noted done.
    out: usize,
    arrivals: Arrivals,
    run_time: RunTimeModel,
}

impl<T> BatchQueue<T> {
    /// An empty queue. A budget of 0 counts as 1.
    pub fn new(mut policy: BatchPolicy) -> Self {
        policy.max_rows = policy.max_rows.max(1);
        policy.max_tokens = policy.max_tokens.max(1);
        // A sixteenth of a batch: fine enough for fairness within one batch.
        let quantum = policy.max_tokens / 16;
        Self {
            policy,
            rows: HashMap::new(),
            levels: std::array::from_fn(|_| Lines::new(quantum)),
            by_arrival: BTreeSet::new(),
            by_deadline: BTreeSet::new(),
            expired: Vec::new(),
            waiting: [Waiting::default(); Priority::LEVELS],
            idle_since: None,
            out: 0,
            arrivals: Arrivals::new(),
            run_time: RunTimeModel::new(),
        }
    }

    /// Puts a row in line.
    ///
    /// # Errors
    /// [`Rejected`] gives the row back when the queue is full, the row is longer than a batch, or
    /// its id is taken.
    pub fn push(&mut self, row: Row<T>, now: Instant) -> Result<(), Rejected<T>> {
        let limit = self.policy.max_waiting_rows;
        if self.rows.len() >= limit {
            let reason = RejectReason::QueueFull { limit };
            return Err(Rejected { row, reason });
        }
        let limit = self.policy.max_tokens;
        if row.tokens as usize > limit {
            let tokens = row.tokens;
            let reason = RejectReason::RowTooLarge { tokens, limit };
            return Err(Rejected { row, reason });
        }
        let Entry::Vacant(entry) = self.rows.entry(row.id) else {
            let reason = RejectReason::DuplicateId;
            return Err(Rejected { row, reason });
        };
        let place = Place {
            id: row.id,
            tokens: row.tokens,
        };
        self.levels[row.priority.level()].push(&row.tenant, place);
        self.by_arrival.insert((row.arrived, row.id));
        if let Some(deadline) = row.deadline {
            self.by_deadline.insert((deadline, row.id));
        }
        let waiting = &mut self.waiting[row.priority.level()];
        waiting.tokens += row.tokens as usize;
        waiting.sum_len_squared += squared(row.tokens);
        entry.insert(row);
        self.arrivals.note(now, self.rows.len() + self.out);
        Ok(())
    }

    /// Takes a waiting row out of the queue; `None` when no row of that id waits.
    pub fn cancel(&mut self, id: RowId) -> Option<Row<T>> {
        let row = self.forget(id)?;
        self.levels[row.priority.level()].remove(&row.tenant, id);
        Some(row)
    }

    /// Takes the rows out whose deadline is `now` or earlier. They never board.
    pub fn take_expired(&mut self, now: Instant) -> Vec<Row<T>> {
        self.expire(now);
        std::mem::take(&mut self.expired)
    }

    /// Decides what leaves now. With `executor_idle` false only a full batch does, and the
    /// [`Decision::WaitUntil`] names the next deadline.
    pub fn poll(&mut self, now: Instant, executor_idle: bool) -> Decision<T> {
        self.expire(now);
        if !executor_idle {
            self.idle_since = None;
        }
        let idle_since = executor_idle.then(|| *self.idle_since.get_or_insert(now));
        let Some(&(oldest, _)) = self.by_arrival.first() else {
            return Decision::Empty;
        };
        if self.rows.len() >= self.policy.max_rows
            || self.all_waiting().tokens >= self.policy.max_tokens
        {
            return Decision::Flush(self.board(FlushReason::Full));
        }
        let next_deadline = self.next_deadline();
        let Some(idle_since) = idle_since else {
            return next_deadline.map_or(Decision::Empty, Decision::WaitUntil);
        };
        // Less than a full batch waits, so all of it would leave together.
        let longest_wait = oldest
            .max(idle_since)
            .checked_add(self.policy.max_queue_delay);
        if longest_wait.is_some_and(|until| until <= now) {
            return Decision::Flush(self.board(FlushReason::QueueDelay));
        }
        let leave_by = next_deadline.map(|deadline| self.leave_by(deadline, now));
        if leave_by.is_some_and(|leave_by| leave_by <= now) {
            return Decision::Flush(self.board(FlushReason::Deadline));
        }
        let patience = self.policy.eager.then(|| self.patience(now));
        if patience.is_some_and(|until| until <= now) {
            return Decision::Flush(self.board(FlushReason::Idle));
        }
        let wake = [longest_wait, leave_by, patience]
            .into_iter()
            .flatten()
            .min();
        wake.map_or(Decision::Empty, Decision::WaitUntil)
    }

    /// The next batch, without waiting for company: for emptying the queue. `None` when nothing
    /// waits.
    pub fn drain(&mut self, now: Instant) -> Option<Batch<T>> {
        self.expire(now);
        (!self.rows.is_empty()).then(|| self.board(FlushReason::Drain))
    }

    /// Notes that a batch of `rows` rows that left this queue has ended.
    pub fn note_done(&mut self, rows: usize, now: Instant) {
        self.out = self.out.saturating_sub(rows);
        self.arrivals.note_done(now);
    }

    /// Teaches the run time model how long a batch ran.
    pub fn observe(&mut self, tokens: usize, sum_len_squared: u64, elapsed: Duration) {
        self.run_time.observe(tokens, sum_len_squared, elapsed);
    }

    /// What the queue knows of its engine's run times.
    pub fn run_time(&self) -> &RunTimeModel {
        &self.run_time
    }

    /// The next deadline of a row that waits.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.by_deadline.first().map(|&(deadline, _)| deadline)
    }

    /// Rows that wait.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no row waits.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The work that waits in the levels down to `priority`: what a row of it boards behind.
    pub fn waiting_down_to(&self, priority: Priority) -> Waiting {
        let levels = &self.waiting[..=priority.level()];
        levels
            .iter()
            .fold(Waiting::default(), |sum, level| Waiting {
                tokens: sum.tokens + level.tokens,
                sum_len_squared: sum.sum_len_squared + level.sum_len_squared,
            })
    }

    fn all_waiting(&self) -> Waiting {
        self.waiting_down_to(Priority::LOW)
    }

    /// Asserts everything that must hold between calls.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_invariants(&self) {
        assert!(self.rows.len() <= self.policy.max_waiting_rows);
        assert_eq!(self.rows.len(), self.by_arrival.len());
        let in_line: usize = self
            .levels
            .iter()
            .map(|lines| lines.check_invariants(self.policy.max_tokens))
            .sum();
        assert_eq!(self.rows.len(), in_line);
        let with_deadline = self.rows.values().filter(|row| row.deadline.is_some());
        assert_eq!(with_deadline.count(), self.by_deadline.len());
        let tokens: usize = self.rows.values().map(|row| row.tokens as usize).sum();
        assert_eq!(tokens, self.all_waiting().tokens);
        let squares: u64 = self.rows.values().map(|row| squared(row.tokens)).sum();
        assert_eq!(squares, self.all_waiting().sum_len_squared);
    }

    /// Fills a batch from the lines, highest level first. A row that doesn't fit closes the batch:
    /// were smaller ones let past, it might wait for ever.
    fn board(&mut self, reason: FlushReason) -> Batch<T> {
        let mut batch = Batch {
            rows: Vec::with_capacity(self.rows.len().min(self.policy.max_rows)),
            tokens: 0,
            reason,
        };
        'levels: for level in 0..Priority::LEVELS {
            while batch.rows.len() < self.policy.max_rows {
                let Some(place) = self.levels[level].head() else {
                    continue 'levels;
                };
                if batch.tokens + place.tokens as usize > self.policy.max_tokens {
                    break 'levels;
                }
                self.levels[level].take();
                batch.tokens += place.tokens as usize;
                batch.rows.extend(self.forget(place.id));
            }
        }
        debug_assert!(!batch.rows.is_empty(), "every row fits an empty batch");
        self.out += batch.rows.len();
        batch
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.by_deadline.first()
            && deadline <= now
        {
            let row = self.cancel(id);
            debug_assert!(row.is_some(), "a deadline without its row");
            self.expired.extend(row);
        }
    }

    /// Drops everything that is known of a row but its place in line.
    fn forget(&mut self, id: RowId) -> Option<Row<T>> {
        let row = self.rows.remove(&id)?;
        self.by_arrival.remove(&(row.arrived, id));
        if let Some(deadline) = row.deadline {
            self.by_deadline.remove(&(deadline, id));
        }
        let waiting = &mut self.waiting[row.priority.level()];
        waiting.tokens -= row.tokens as usize;
        waiting.sum_len_squared -= squared(row.tokens);
        Some(row)
    }

    /// When what waits must leave so that `deadline` is met, as far as predicted.
    fn leave_by(&self, deadline: Instant, now: Instant) -> Instant {
        let waiting = self.all_waiting();
        let predicted = self
            .run_time
            .predict(waiting.tokens, waiting.sum_len_squared);
        if predicted.is_zero() {
            // Nothing is known yet of how long a batch runs; what has a deadline had better leave.
            return now;
        }
        let needed = predicted + self.run_time.margin(predicted);
        deadline.checked_sub(needed).unwrap_or(now)
    }

    /// Until when waiting for one more row pays.
    fn patience(&self, now: Instant) -> Instant {
        if self.rows.len() >= self.arrivals.peak() {
            return now;
        }
        let fixed = self.run_time.fixed();
        match (self.arrivals.expected_gap(), self.arrivals.latest()) {
            (Some(gap), Some(latest)) if gap < fixed => latest + (2 * gap).min(fixed),
            _ => now,
        }
    }
}

fn squared(tokens: u32) -> u64 {
    u64::from(tokens).pow(2)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Line {
        queue: BatchQueue<()>,
        now: Instant,
        next: u64,
    }

    impl Line {
        fn new(policy: BatchPolicy) -> Self {
            let mut line = Self {
                queue: BatchQueue::new(policy),
                now: Instant::now(),
                next: 0,
            };
            assert_eq!(line.queue.poll(line.now, true), Decision::Empty);
            line
        }

        fn row(&mut self, tokens: u32) -> Row<()> {
            self.next += 1;
            Row {
                id: RowId::new(self.next),
                tokens,
                arrived: self.now,
                deadline: None,
                priority: Priority::NORMAL,
                tenant: Arc::from(""),
                payload: (),
            }
        }

        fn push(&mut self, row: Row<()>) -> RowId {
            let id = row.id;
            self.queue.push(row, self.now).unwrap();
            self.queue.check_invariants();
            id
        }

        fn push_tokens(&mut self, tokens: u32) -> RowId {
            let row = self.row(tokens);
            self.push(row)
        }

        fn flush(&mut self, idle: bool) -> (Vec<RowId>, FlushReason) {
            match self.queue.poll(self.now, idle) {
                Decision::Flush(batch) => {
                    self.queue.check_invariants();
                    (batch.rows.iter().map(|row| row.id).collect(), batch.reason)
                }
                other => panic!("a batch was expected, not {other:?}"),
            }
        }
    }

    fn patient() -> BatchPolicy {
        BatchPolicy {
            max_rows: 4,
            max_tokens: 100,
            max_queue_delay: 5 * MS,
            max_waiting_rows: 16,
            eager: false,
        }
    }

    #[test]
    fn a_batch_leaves_when_its_rows_are_full_even_while_executors_are_busy() {
        let mut line = Line::new(patient());
        for _ in 0..5 {
            line.push_tokens(1);
        }
        let (rows, reason) = line.flush(false);
        assert_eq!((rows.len(), reason), (4, FlushReason::Full));
        assert_eq!(line.queue.poll(line.now, false), Decision::Empty);
    }

    #[test]
    fn a_row_that_does_not_fit_is_the_first_of_the_next_batch() {
        let mut line = Line::new(patient());
        let small = line.push_tokens(60);
        let large = line.push_tokens(90);
        let late = line.push_tokens(10);
        assert_eq!(line.flush(true).0, [small]);
        assert_eq!(line.flush(true).0, [large, late]);
    }

    #[test]
    fn a_part_filled_batch_leaves_after_the_longest_queue_delay() {
        let mut line = Line::new(patient());
        line.push_tokens(1);
        let due = line.now + 5 * MS;
        assert_eq!(line.queue.poll(line.now, true), Decision::WaitUntil(due));
        line.now = due;
        assert_eq!(line.flush(true).1, FlushReason::QueueDelay);
    }

    #[test]
    fn a_batch_leaves_early_enough_for_its_deadline() {
        let mut line = Line::new(patient());
        line.queue.observe(10, 100, 2 * MS);
        let mut row = line.row(10);
        let deadline = line.now + 4 * MS;
        row.deadline = Some(deadline);
        line.push(row);
        let Decision::WaitUntil(leave_by) = line.queue.poll(line.now, true) else {
            panic!("too early to leave");
        };
        assert!(leave_by + 19 * MS / 10 <= deadline && leave_by > line.now);
        line.now = leave_by;
        assert_eq!(line.flush(true).1, FlushReason::Deadline);
    }

    #[test]
    fn a_row_waits_for_what_is_as_urgent_or_more() {
        let mut line = Line::new(patient());
        for (tokens, priority) in [
            (1, Priority::LOW),
            (10, Priority::NORMAL),
            (50, Priority::HIGH),
        ] {
            let mut row = line.row(tokens);
            row.priority = priority;
            line.push(row);
        }
        let before = |priority| line.queue.waiting_down_to(priority).tokens;
        let found = [Priority::HIGH, Priority::NORMAL, Priority::LOW].map(before);
        assert_eq!(found, [50, 60, 61]);
    }

    #[test]
    fn an_expired_row_leaves_the_queue_and_never_boards() {
        let mut line = Line::new(patient());
        let mut row = line.row(10);
        row.deadline = Some(line.now + MS);
        let late = line.push(row);
        let fresh = line.push_tokens(10);
        line.now += 6 * MS;
        assert_eq!(line.flush(true).0, [fresh]);
        let expired = line.queue.take_expired(line.now);
        assert_eq!(expired.len(), 1);
        assert_eq!(expired[0].id, late);
    }

    #[test]
    fn urgent_rows_board_first() {
        let mut line = Line::new(patient());
        for priority in [Priority::LOW, Priority::NORMAL, Priority::HIGH] {
            let mut row = line.row(50);
            row.priority = priority;
            line.push(row);
        }
        assert_eq!(line.flush(true).0, [RowId::new(3), RowId::new(2)]);
    }

    #[test]
    fn a_tenant_with_many_rows_does_not_hold_up_another() {
        let mut policy = patient();
        policy.max_rows = 8;
        let mut line = Line::new(policy);
        for _ in 0..12 {
            line.push_tokens(10);
        }
        let mut row = line.row(10);
        row.tenant = Arc::from("small");
        let small = line.push(row);
        assert!(line.flush(true).0.contains(&small));
    }

    #[test]
    fn what_can_not_wait_is_given_back_with_the_reason() {
        let mut line = Line::new(patient());
        let reject = |line: &mut Line, row: Row<()>| {
            let now = line.now;
            line.queue.push(row, now).unwrap_err().reason
        };
        let row = line.row(101);
        assert!(matches!(
            reject(&mut line, row),
            RejectReason::RowTooLarge { .. }
        ));
        let first = line.row(1);
        line.push(first.clone());
        assert_eq!(reject(&mut line, first), RejectReason::DuplicateId);
        for _ in 1..16 {
            line.push_tokens(1);
        }
        let row = line.row(1);
        assert_eq!(
            reject(&mut line, row),
            RejectReason::QueueFull { limit: 16 }
        );
    }

    #[test]
    fn a_cancelled_row_leaves_the_queue() {
        let mut line = Line::new(patient());
        let first = line.push_tokens(1);
        let second = line.push_tokens(1);
        assert_eq!(line.queue.cancel(first).map(|row| row.id), Some(first));
        assert_eq!(line.queue.cancel(first), None);
        line.queue.check_invariants();
        line.now += 5 * MS;
        assert_eq!(line.flush(true).0, [second]);
    }

    /// Closed-loop clients on one executor whose batches cost 1 ms and 1 ms a row. They come first
    /// 3 ms apart; after a batch its clients come back `gap` apart. Returns the sizes of the
    /// batches once things have settled, and the longest time the executor idled.
    fn closed_loop(clients: u32, gap: Duration) -> (Vec<usize>, Duration) {
        let mut line = Line::new(BatchPolicy::default());
        for rows in 1..40_u32 {
            let (tokens, squares) = (rows as usize * 10, u64::from(rows) * 100);
            line.queue.observe(tokens, squares, MS + rows * MS);
        }
        let mut coming: Vec<Instant> = (0..clients).map(|at| line.now + at * 3 * MS).collect();
        let mut running: Option<(Instant, usize)> = None;
        let mut idle_since = line.now;
        let (mut sizes, mut idled) = (Vec::new(), Vec::new());
        while sizes.len() < 60 {
            let now = line.now;
            if let Some((end, rows)) = running
                && end <= now
            {
                line.queue.note_done(rows, now);
                coming.extend((1..=rows as u32).map(|at| now + at * gap));
                (running, idle_since) = (None, now);
            }
            let here = coming.iter().filter(|&&at| at <= now).count();
            coming.retain(|&at| at > now);
            for _ in 0..here {
                line.push_tokens(10);
            }
            let due = match line.queue.poll(now, running.is_none()) {
                Decision::Flush(batch) => {
                    let rows = batch.rows.len();
                    sizes.push(rows);
                    idled.push(now - idle_since);
                    running = Some((now + MS + rows as u32 * MS, rows));
                    None
                }
                Decision::WaitUntil(due) => Some(due),
                Decision::Empty => None,
            };
            let next = coming.iter().copied().min();
            let end = running.map(|(end, _)| end);
            line.now = [due, next, end].into_iter().flatten().min().unwrap();
        }
        let idled = idled.split_off(20).into_iter().max();
        (sizes.split_off(20), idled.unwrap())
    }

    #[test]
    fn a_lone_client_never_waits_for_company() {
        let gap = Duration::from_micros(100);
        let (sizes, idled) = closed_loop(1, gap);
        assert!(sizes.iter().all(|&rows| rows == 1));
        assert_eq!(idled, gap, "it left in the instant it came");
    }

    #[test]
    fn closed_loop_clients_come_to_leave_together() {
        let gap = Duration::from_micros(50);
        for clients in [2, 3, 8, 32] {
            let (sizes, idled) = closed_loop(clients, gap);
            assert!(
                sizes.iter().all(|&rows| rows == clients as usize),
                "{clients} clients left in batches of {sizes:?}"
            );
            assert_eq!(idled, clients * gap, "they left when the last had come");
        }
    }

    #[test]
    fn clients_slower_than_a_batch_costs_are_not_waited_for() {
        let (sizes, idled) = closed_loop(2, 4 * MS);
        assert!(sizes.iter().all(|&rows| rows == 1), "{sizes:?}");
        assert!(idled <= 4 * MS);
    }
}
