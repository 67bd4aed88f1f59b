//! Properties of the batching queue under random traffic, in simulated time.
//!
//! [`Engine`] does what `engine::dispatcher` does, without threads: it boards and cancels, lets
//! batches leave, stages one full batch while all executors are busy, and drains at the end. After
//! every step the queue checks its invariants; what happened goes into a [`Log`], which each
//! property reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ferry::batching::{
    Batch, BatchPolicy, BatchQueue, Decision, FlushReason, Priority, RejectReason, Row, RowId,
};
use proptest::{collection::vec, prelude::*, sample::Index};

const LEVELS: [Priority; Priority::LEVELS] = [Priority::HIGH, Priority::NORMAL, Priority::LOW];
const TENANTS: usize = 4;
const TICK: Duration = Duration::from_nanos(1);

/// A row to come. Times count from its arrival.
#[derive(Debug, Clone)]
struct Draft {
    tokens: u32,
    tenant: usize,
    priority: Priority,
    deadline: Option<Duration>,
    /// Time between its arrival at the server and at the queue.
    admission: Duration,
    /// Whether it comes under the id of a row that waits.
    twin: bool,
}

#[derive(Debug, Clone)]
enum Event {
    Board(Vec<Draft>),
    Cancel(Index),
}

/// What comes, each event with the gap before it, and what runs it.
#[derive(Debug, Clone)]
struct Scenario {
    policy: BatchPolicy,
    executors: usize,
    /// True cost of a batch and of a token.
    costs: (Duration, Duration),
    /// By how many percent of the true cost batches run; repeats.
    noise: Vec<u32>,
    traffic: Vec<(Duration, Event)>,
    /// Whether the server shuts down at the last event, or runs on until nothing happens.
    shut_down: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Flushed,
    Expired,
    Cancelled,
    Rejected(RejectReason),
}

#[derive(Debug, Clone, Copy)]
struct End {
    fate: Fate,
    at: Instant,
    /// Since when there had been an idle executor, if there was one.
    idle_since: Option<Instant>,
}

/// A row that was pushed; its payload is its place in [`Log::rows`].
#[derive(Debug)]
struct Pushed {
    row: Row<usize>,
    at: Instant,
    /// How many batches had left, and how many tokens waited in its line, itself included.
    departures_before: usize,
    line_tokens: usize,
    waiting_before: usize,
    ends: Vec<End>,
}

#[derive(Debug)]
struct Departure {
    at: Instant,
    idle_since: Option<Instant>,
    /// Rows that waited just before, in order of arrival.
    waiting: Vec<usize>,
    batch: Batch<usize>,
}

/// A [`Decision::WaitUntil`] and what came of it.
#[derive(Debug)]
struct Wait {
    at: Instant,
    until: Instant,
    /// What a poll said just before `until`, or before the event that came earlier.
    just_before: Option<Decision<usize>>,
    /// Whether a row left or expired at `until`, when nothing else happened then.
    progress: Option<bool>,
}

#[derive(Debug)]
struct Log {
    policy: BatchPolicy,
    longest_run: Duration,
    rows: Vec<Pushed>,
    departures: Vec<Departure>,
    waits: Vec<Wait>,
    /// From when to when a batch was staged; meanwhile the dispatcher does not look at the queue.
    staged: Vec<(Instant, Instant)>,
    drained_from: Option<Instant>,
    /// Times at which the queue said `Empty` to an idle executor while rows waited.
    forgotten: usize,
    left_to_drain: usize,
    left_after_drain: usize,
}

#[derive(Debug)]
struct Run {
    end: Instant,
    elapsed: Duration,
    rows: usize,
    tokens: usize,
    sum_len_squared: u64,
}

struct Engine {
    queue: BatchQueue<usize>,
    executors: usize,
    costs: (Duration, Duration),
    noise: Vec<u32>,
    now: Instant,
    running: Vec<Run>,
    staged: Option<Run>,
    idle_since: Option<Instant>,
    /// What must be in the queue.
    waiting: BTreeSet<usize>,
    log: Log,
}

fn simulate(scenario: Scenario) -> Log {
    let start = Instant::now();
    let mut engine = Engine::new(&scenario, start);
    let mut at = start;
    let mut traffic = scenario.traffic.into_iter().map(|(gap, event)| {
        at += gap;
        (at, event)
    });
    let mut coming = traffic.next();
    let mut wake = engine.let_leave();
    loop {
        let event = coming
            .iter()
            .map(|(at, _)| *at)
            .chain(engine.next_end())
            .min();
        let Some(next) = event.into_iter().chain(wake).min() else {
            break;
        };
        engine.look_just_before(wake, next);
        engine.now = next;
        engine.finish();
        while let Some((_, event)) = coming.take_if(|(at, _)| *at <= next) {
            engine.obey(event);
            coming = traffic.next();
        }
        if scenario.shut_down && coming.is_none() {
            break;
        }
        let left = engine.log.departures.len();
        let expired = engine.drop_expired();
        let woken_by_alarm = event != Some(next);
        wake = engine.let_leave();
        if woken_by_alarm
            && let Some(wait) = engine.log.waits.iter_mut().rfind(|wait| wait.until == next)
        {
            wait.progress = Some(expired > 0 || engine.log.departures.len() > left);
        }
    }
    engine.drain();
    engine.log
}

impl Engine {
    fn new(scenario: &Scenario, now: Instant) -> Self {
        Self {
            queue: BatchQueue::new(scenario.policy.clone()),
            executors: scenario.executors,
            costs: scenario.costs,
            noise: scenario.noise.clone(),
            now,
            running: Vec::new(),
            staged: None,
            idle_since: None,
            waiting: BTreeSet::new(),
            log: Log {
                policy: scenario.policy.clone(),
                longest_run: Duration::ZERO,
                rows: Vec::new(),
                departures: Vec::new(),
                waits: Vec::new(),
                staged: Vec::new(),
                drained_from: None,
                forgotten: 0,
                left_to_drain: 0,
                left_after_drain: 0,
            },
        }
    }

    fn out(&self) -> usize {
        self.running.len() + usize::from(self.staged.is_some())
    }

    fn next_end(&self) -> Option<Instant> {
        self.running.iter().map(|run| run.end).min()
    }

    fn finish(&mut self) {
        while let Some(done) = self.running.iter().position(|run| run.end <= self.now) {
            let done = self.running.swap_remove(done);
            self.queue.note_done(done.rows, self.now);
            self.queue
                .observe(done.tokens, done.sum_len_squared, done.elapsed);
            self.queue.check_invariants();
            if let Some(mut next) = self.staged.take() {
                let staged = self.log.staged.last_mut().expect("it was staged");
                staged.1 = self.now;
                next.end = self.now + next.elapsed;
                self.running.push(next);
            }
        }
    }

    fn obey(&mut self, event: Event) {
        match event {
            Event::Board(drafts) => {
                for draft in drafts {
                    self.push(&draft);
                }
            }
            Event::Cancel(which) => {
                let waiting: Vec<usize> = self.waiting.iter().copied().collect();
                if waiting.is_empty() {
                    assert_eq!(self.queue.cancel(RowId::new(u64::MAX)), None);
                    return;
                }
                let id = self.log.rows[*which.get(&waiting)].row.id;
                let row = self.queue.cancel(id).expect("it waits");
                self.end(&row, Fate::Cancelled);
                self.queue.check_invariants();
            }
        }
    }

    fn push(&mut self, draft: &Draft) {
        let serial = self.log.rows.len();
        let twin = self.waiting.first().filter(|_| draft.twin);
        let id = twin.map_or(RowId::new(serial as u64), |&twin| {
            self.log.rows[twin].row.id
        });
        let arrived = self.now.checked_sub(draft.admission).unwrap_or(self.now);
        let row = Row {
            id,
            tokens: draft.tokens,
            arrived,
            deadline: draft.deadline.map(|deadline| arrived + deadline),
            priority: draft.priority,
            tenant: Arc::from(format!("tenant {}", draft.tenant)),
            payload: serial,
        };
        let in_line = self.waiting.iter().map(|&other| &self.log.rows[other].row);
        let in_line = in_line.filter(|other| line(other) == line(&row));
        let line_tokens =
            in_line.map(|other| other.tokens as usize).sum::<usize>() + row.tokens as usize;
        self.log.rows.push(Pushed {
            row: row.clone(),
            at: self.now,
            departures_before: self.log.departures.len(),
            line_tokens,
            waiting_before: self.waiting.len(),
            ends: Vec::new(),
        });
        match self.queue.push(row, self.now) {
            Ok(()) => assert!(self.waiting.insert(serial)),
            Err(rejected) => self.end(&rejected.row, Fate::Rejected(rejected.reason)),
        }
        self.queue.check_invariants();
        assert_eq!(self.queue.len(), self.waiting.len());
    }

    fn drop_expired(&mut self) -> usize {
        let expired = self.queue.take_expired(self.now);
        for row in &expired {
            self.end(row, Fate::Expired);
        }
        self.queue.check_invariants();
        expired.len()
    }

    fn let_leave(&mut self) -> Option<Instant> {
        while self.out() <= self.executors {
            let idle = self.out() < self.executors;
            self.idle_since = idle.then(|| self.idle_since.unwrap_or(self.now));
            match self.queue.poll(self.now, idle) {
                Decision::Flush(batch) => self.give_out(batch),
                Decision::WaitUntil(until) => {
                    assert!(until > self.now, "nothing is left to wait for");
                    self.log.waits.push(Wait {
                        at: self.now,
                        until,
                        just_before: None,
                        progress: None,
                    });
                    return Some(until);
                }
                Decision::Empty => {
                    self.log.forgotten += usize::from(idle && !self.waiting.is_empty());
                    return None;
                }
            }
        }
        None
    }

    /// Polls once more before anything happens, which must change nothing.
    fn look_just_before(&mut self, wake: Option<Instant>, next: Instant) {
        let just_before = next.checked_sub(TICK).filter(|&at| at >= self.now);
        if let (Some(_), Some(at)) = (wake, just_before) {
            let decision = self.queue.poll(at, self.out() < self.executors);
            let wait = self.log.waits.last_mut().expect("the wake came of it");
            wait.just_before = Some(decision);
        }
    }

    fn give_out(&mut self, batch: Batch<usize>) {
        self.queue.check_invariants();
        let waiting = self.waiting.iter().copied().collect();
        for row in &batch.rows {
            self.end(row, Fate::Flushed);
        }
        let (fixed, token) = self.costs;
        let noise = self.noise[self.log.departures.len() % self.noise.len()];
        let elapsed = (fixed + token * batch.tokens as u32) * noise / 100;
        let run = Run {
            end: self.now + elapsed,
            elapsed,
            rows: batch.rows.len(),
            tokens: batch.tokens,
            sum_len_squared: batch
                .rows
                .iter()
                .map(|row| u64::from(row.tokens).pow(2))
                .sum(),
        };
        self.log.longest_run = self.log.longest_run.max(elapsed);
        self.log.departures.push(Departure {
            at: self.now,
            idle_since: self.idle_since,
            waiting,
            batch,
        });
        if self.running.len() < self.executors {
            self.running.push(run);
        } else {
            self.log.staged.push((self.now, self.now));
            let before = self.staged.replace(run);
            assert!(before.is_none(), "one batch is staged at most");
        }
    }

    fn drain(&mut self) {
        self.log.left_to_drain = self.queue.len();
        self.log.drained_from = Some(self.now);
        self.idle_since = None;
        loop {
            self.drop_expired();
            while self.out() <= self.executors
                && let Some(batch) = self.queue.drain(self.now)
            {
                self.give_out(batch);
            }
            let Some(end) = self.next_end() else {
                break;
            };
            self.now = end;
            self.finish();
        }
        self.log.left_after_drain = self.queue.len();
    }

    fn end(&mut self, row: &Row<usize>, fate: Fate) {
        if !matches!(fate, Fate::Rejected(_)) {
            self.waiting.remove(&row.payload);
        }
        let pushed = &mut self.log.rows[row.payload];
        assert_eq!(*row, pushed.row, "a row came back changed");
        pushed.ends.push(End {
            fate,
            at: self.now,
            idle_since: self.idle_since,
        });
    }
}

impl Log {
    fn row(&self, serial: usize) -> &Row<usize> {
        &self.rows[serial].row
    }

    /// Rows that came to an end other than at the door, with that end.
    fn ended(&self) -> impl Iterator<Item = (&Pushed, End)> {
        self.rows.iter().filter_map(|pushed| {
            let &end = pushed.ends.first()?;
            (!matches!(end.fate, Fate::Rejected(_))).then_some((pushed, end))
        })
    }
}

impl Departure {
    fn left_behind(&self) -> impl Iterator<Item = usize> {
        let boarded: BTreeSet<usize> = self.batch.rows.iter().map(|row| row.payload).collect();
        self.waiting
            .iter()
            .copied()
            .filter(move |serial| !boarded.contains(serial))
    }
}

/// How many batches may leave before one carries a row of the highest level, whatever comes.
///
/// Let the lengths of its line up to the row sum to `a`. With quantum `Q` its tenant needs at most
/// `⌈a/Q⌉` turns, in which each other tenant, wherever in the round it stands and with a credit
/// below `M + Q` to begin with, `M` being the longest row, sends at most
/// `(⌈a/Q⌉ + 1)·Q + M + Q − 1` tokens. A batch that leaves the row behind has either `max_rows` of
/// these rows or more than `max_tokens − M` of these tokens.
fn most_batches_before(policy: &BatchPolicy, a: usize, longest: usize, others: usize) -> usize {
    let quantum = (policy.max_tokens / 16).max(1);
    let from_another = (a.div_ceil(quantum) + 1) * quantum + longest + quantum - 1;
    let ahead = a + others * from_another;
    ahead / policy.max_rows + ahead / (policy.max_tokens - longest + 1)
}

/// What rows have in common that must leave in the order they came.
fn line(row: &Row<usize>) -> (Priority, &str) {
    (row.priority, &row.tenant)
}

fn micros(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_micros)
}

fn policies() -> impl Strategy<Value = BatchPolicy> {
    let tokens = prop_oneof![1 => 1..16_usize, 4 => 16..400_usize];
    (
        1..16_usize,
        tokens,
        micros(0..6_000),
        1..64_usize,
        any::<bool>(),
    )
        .prop_map(
            |(max_rows, max_tokens, max_queue_delay, max_waiting_rows, eager)| BatchPolicy {
                max_rows,
                max_tokens,
                max_queue_delay,
                max_waiting_rows,
                eager,
            },
        )
}

fn drafts(max_tokens: u32) -> impl Strategy<Value = Draft> {
    let tokens = prop_oneof![
        12 => 1..=max_tokens.div_ceil(8),
        6 => 1..=max_tokens,
        1 => max_tokens..=max_tokens + 1,
    ];
    let tenant = prop_oneof![2 => Just(0), 1 => 1..TENANTS];
    let priority = prop_oneof![1 => Just(LEVELS[0]), 3 => Just(LEVELS[1]), 1 => Just(LEVELS[2])];
    let deadline = prop_oneof![2 => Just(None), 1 => micros(0..20_000).prop_map(Some)];
    let admission = prop_oneof![3 => Just(Duration::ZERO), 1 => micros(0..500)];
    let twin = prop::bool::weighted(0.02);
    (tokens, tenant, priority, deadline, admission, twin).prop_map(
        |(tokens, tenant, priority, deadline, admission, twin)| Draft {
            tokens,
            tenant,
            priority,
            deadline,
            admission,
            twin,
        },
    )
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let traffic = |policy: BatchPolicy| {
        let drafts = drafts(policy.max_tokens as u32);
        let event = prop_oneof![
            4 => vec(drafts, 1..10).prop_map(Event::Board),
            1 => any::<Index>().prop_map(Event::Cancel),
        ];
        let gap = prop_oneof![
            3 => Just(Duration::ZERO),
            4 => micros(1..300),
            3 => micros(300..4_000),
            1 => micros(4_000..40_000),
        ];
        (Just(policy), vec((gap, event), 0..40))
    };
    let costs = (micros(1..5_000), micros(0..30));
    let machine = (1..=3_usize, costs, vec(50..200_u32, 1..6), any::<bool>());
    (policies().prop_flat_map(traffic), machine).prop_map(
        |((policy, traffic), (executors, costs, noise, shut_down))| Scenario {
            policy,
            executors,
            costs,
            noise,
            traffic,
            shut_down,
        },
    )
}

proptest! {
    #[test]
    fn every_row_pushed_ends_exactly_once(scenario in scenarios()) {
        let log = simulate(scenario);
        for pushed in &log.rows {
            prop_assert_eq!(pushed.ends.len(), 1, "{:?}", pushed);
        }
    }

    #[test]
    fn a_row_is_rejected_only_for_want_of_room_its_length_or_its_id(scenario in scenarios()) {
        let log = simulate(scenario);
        for pushed in &log.rows {
            let too_large = pushed.row.tokens as usize > log.policy.max_tokens;
            match pushed.ends[0].fate {
                Fate::Rejected(RejectReason::RowTooLarge { tokens, limit }) => {
                    prop_assert!(too_large);
                    prop_assert_eq!((tokens, limit), (pushed.row.tokens, log.policy.max_tokens));
                }
                Fate::Rejected(RejectReason::QueueFull { limit }) => {
                    prop_assert_eq!(limit, log.policy.max_waiting_rows);
                    prop_assert_eq!(limit, pushed.waiting_before);
                }
                Fate::Rejected(RejectReason::DuplicateId) => {
                    prop_assert!(pushed.row.id != RowId::new(pushed.row.payload as u64));
                }
                Fate::Flushed | Fate::Expired | Fate::Cancelled => prop_assert!(!too_large),
            }
        }
    }

    #[test]
    fn a_batch_is_never_empty_and_never_over_its_budgets(scenario in scenarios()) {
        let log = simulate(scenario);
        for departure in &log.departures {
            let Batch { rows, tokens, .. } = &departure.batch;
            prop_assert!((1..=log.policy.max_rows).contains(&rows.len()));
            prop_assert!(*tokens <= log.policy.max_tokens);
            prop_assert_eq!(*tokens, rows.iter().map(|row| row.tokens as usize).sum::<usize>());
        }
    }

    #[test]
    fn a_row_whose_deadline_has_passed_never_boards(scenario in scenarios()) {
        let log = simulate(scenario);
        for departure in &log.departures {
            for row in &departure.batch.rows {
                prop_assert!(row.deadline.is_none_or(|deadline| deadline > departure.at));
            }
        }
        for (pushed, end) in log.ended().filter(|(_, end)| end.fate == Fate::Expired) {
            prop_assert!(pushed.row.deadline.is_some_and(|deadline| deadline <= end.at));
        }
    }

    #[test]
    fn only_full_batches_leave_while_executors_are_busy(scenario in scenarios()) {
        let log = simulate(scenario);
        for departure in &log.departures {
            let tokens: usize = departure.waiting.iter().map(|&at| log.row(at).tokens as usize).sum();
            let budget_reached =
                departure.waiting.len() >= log.policy.max_rows || tokens >= log.policy.max_tokens;
            match departure.batch.reason {
                FlushReason::Full => prop_assert!(budget_reached),
                FlushReason::Drain => {}
                _ => prop_assert!(departure.idle_since.is_some() && !budget_reached),
            }
        }
    }

    #[test]
    fn a_batch_that_is_not_full_leaves_nothing_behind(scenario in scenarios()) {
        let log = simulate(scenario);
        for departure in &log.departures {
            if !matches!(departure.batch.reason, FlushReason::Full | FlushReason::Drain) {
                prop_assert_eq!(departure.left_behind().count(), 0);
            }
        }
    }

    /// A row that does not fit closes the batch, so it counts as staying behind too: nothing of a
    /// lower level passes it.
    #[test]
    fn no_row_boards_while_one_of_a_higher_level_stays_behind(scenario in scenarios()) {
        let log = simulate(scenario);
        for departure in &log.departures {
            let least_urgent = departure.batch.rows.iter().map(|row| row.priority).max();
            for behind in departure.left_behind() {
                prop_assert!(Some(log.row(behind).priority) >= least_urgent);
            }
        }
    }

    #[test]
    fn a_row_stays_behind_only_where_there_is_no_room(scenario in scenarios()) {
        let log = simulate(scenario);
        for departure in &log.departures {
            let Batch { rows, tokens, .. } = &departure.batch;
            let behind: Vec<_> = departure.left_behind().map(|at| log.row(at)).collect();
            let Some(level) = behind.iter().map(|row| row.priority).min() else {
                continue;
            };
            // Of each line only the first row can have been the one that closed the batch.
            let mut first = BTreeMap::new();
            for row in behind.iter().filter(|row| row.priority == level) {
                first.entry(line(row)).or_insert(row.tokens as usize);
            }
            let no_row_fits = first.values().any(|next| tokens + next > log.policy.max_tokens);
            prop_assert!(rows.len() == log.policy.max_rows || no_row_fits);
        }
    }

    #[test]
    fn rows_of_one_tenant_and_level_leave_in_the_order_they_came(scenario in scenarios()) {
        let log = simulate(scenario);
        let mut latest = BTreeMap::new();
        for row in log.departures.iter().flat_map(|departure| &departure.batch.rows) {
            let before = latest.insert(line(row), row.payload);
            prop_assert!(before < Some(row.payload));
        }
    }

    /// While batches are full one leaves in each longest run; when they are not, two such runs
    /// bring an idle executor, which takes all that waits after `max_queue_delay`.
    #[test]
    fn a_row_of_the_highest_level_leaves_within_a_bound_of_the_backlog(scenario in scenarios()) {
        let log = simulate(scenario);
        let longest = log.ended().map(|(pushed, _)| pushed.row.tokens as usize).max().unwrap_or(0);
        for (pushed, end) in log.ended() {
            if pushed.row.priority != Priority::HIGH || end.fate != Fate::Flushed {
                continue;
            }
            let bound = most_batches_before(&log.policy, pushed.line_tokens, longest, TENANTS - 1);
            let serial = pushed.row.payload;
            let since = &log.departures[pushed.departures_before..];
            let carries = |departure: &Departure| departure.batch.rows.iter().any(|row| row.payload == serial);
            let missed = since.iter().position(carries).expect("it was flushed");
            prop_assert!(missed <= bound, "{missed} batches left without it; {bound} may");
            let time = log.longest_run * 2 * (missed as u32 + 1) + log.policy.max_queue_delay;
            prop_assert!(end.at <= pushed.at + time);
        }
    }

    #[test]
    fn no_row_waits_longer_than_the_queue_delay_beside_an_idle_executor(scenario in scenarios()) {
        let log = simulate(scenario);
        for (pushed, end) in log.ended() {
            if let Some(idle_since) = end.idle_since {
                let waits_from = pushed.row.arrived.max(idle_since);
                let latest = (waits_from + log.policy.max_queue_delay).max(pushed.at);
                prop_assert!(end.at <= latest, "{:?} too late", end.at - latest);
            }
        }
        prop_assert_eq!(log.forgotten, 0);
    }

    #[test]
    fn time_in_which_every_executor_is_busy_does_not_count_as_delay(scenario in scenarios()) {
        let log = simulate(scenario);
        for departure in &log.departures {
            if departure.batch.reason == FlushReason::QueueDelay {
                let oldest = departure.batch.rows.iter().map(|row| row.arrived).min();
                let waits_from = oldest.max(departure.idle_since).expect("it has rows");
                prop_assert!(departure.at >= waits_from + log.policy.max_queue_delay);
            }
        }
    }

    /// But while a batch is staged, the dispatcher sets no alarm; nor while it drains.
    #[test]
    fn a_row_expires_at_its_deadline_even_while_executors_are_busy(scenario in scenarios()) {
        let log = simulate(scenario);
        for (pushed, end) in log.ended().filter(|(_, end)| end.fate == Fate::Expired) {
            let due = pushed.row.deadline.map_or(pushed.at, |deadline| deadline.max(pushed.at));
            let nobody_looked = log.staged.iter().any(|&(from, to)| (from..to).contains(&due))
                || log.drained_from.is_some_and(|from| from <= end.at);
            prop_assert!(end.at == due || nobody_looked);
        }
    }

    #[test]
    fn no_row_expires_beside_an_idle_executor(scenario in scenarios()) {
        let log = simulate(scenario);
        for (pushed, end) in log.ended().filter(|(_, end)| end.fate == Fate::Expired) {
            if let Some(idle_since) = end.idle_since {
                let could_leave = pushed.at.max(idle_since);
                prop_assert!(pushed.row.deadline.is_none_or(|deadline| deadline <= could_leave));
            }
        }
    }

    #[test]
    fn every_row_leaves_of_itself_while_executors_keep_running(mut scenario in scenarios()) {
        scenario.shut_down = false;
        let log = simulate(scenario);
        prop_assert_eq!(log.left_to_drain, 0);
    }

    #[test]
    fn a_wait_is_for_a_later_time_and_nothing_leaves_before_it(scenario in scenarios()) {
        let log = simulate(scenario);
        for wait in &log.waits {
            prop_assert!(wait.until > wait.at);
            if let Some(decision) = &wait.just_before {
                prop_assert_eq!(decision, &Decision::WaitUntil(wait.until));
            }
        }
    }

    #[test]
    fn at_the_end_of_a_wait_a_row_leaves_or_expires(scenario in scenarios()) {
        let log = simulate(scenario);
        for wait in &log.waits {
            prop_assert!(wait.progress != Some(false), "{:?}", wait);
        }
    }

    #[test]
    fn draining_empties_the_queue(mut scenario in scenarios()) {
        scenario.shut_down = true;
        let log = simulate(scenario);
        prop_assert_eq!(log.left_after_drain, 0);
    }
}

/// A tenant's line that never runs empty: lengths that repeat.
type Lengths = Vec<u32>;

/// Keeps lines of rows filled and lets batches leave; counts what boards.
struct Feed {
    queue: BatchQueue<usize>,
    now: Instant,
    pushed: u64,
    lengths: Vec<Lengths>,
    /// For each tenant, how many rows wait and how many have been pushed.
    waiting: Vec<usize>,
    next: Vec<usize>,
}

impl Feed {
    fn new(policy: BatchPolicy, lengths: Vec<Lengths>) -> Self {
        Self {
            queue: BatchQueue::new(policy),
            now: Instant::now(),
            pushed: 0,
            waiting: vec![0; lengths.len()],
            next: vec![0; lengths.len()],
            lengths,
        }
    }

    fn push(&mut self, tenant: usize) {
        let lengths = &self.lengths[tenant];
        let row = Row {
            id: RowId::new(self.pushed),
            tokens: lengths[self.next[tenant] % lengths.len()],
            arrived: self.now,
            deadline: None,
            priority: Priority::NORMAL,
            tenant: Arc::from(format!("tenant {tenant}")),
            payload: tenant,
        };
        self.queue.push(row, self.now).expect("there is room");
        self.pushed += 1;
        self.next[tenant] += 1;
        self.waiting[tenant] += 1;
    }

    /// Fills up the lines of `tenants` so far that no batch of `max_rows` rows empties one, and
    /// returns what boards the next batch as `(tenant, tokens)`.
    fn next_batch(&mut self, tenants: &[usize], max_rows: usize) -> Vec<(usize, u32)> {
        for &tenant in tenants {
            while self.waiting[tenant] <= max_rows {
                self.push(tenant);
            }
        }
        let Decision::Flush(batch) = self.queue.poll(self.now, false) else {
            panic!("more rows wait than a batch holds");
        };
        self.queue.check_invariants();
        let boarded = batch
            .rows
            .iter()
            .map(|row| (row.payload, row.tokens))
            .collect();
        for row in batch.rows {
            self.waiting[row.payload] -= 1;
        }
        boarded
    }
}

fn longest(lengths: &[Lengths]) -> usize {
    lengths.iter().flatten().copied().max().unwrap_or(0) as usize
}

/// A token budget and tenants under it.
fn feeds() -> impl Strategy<Value = (usize, Vec<Lengths>)> {
    prop_oneof![1..16_usize, 16..400_usize].prop_flat_map(|max_tokens| {
        let length = prop_oneof![1..=max_tokens.div_ceil(8) as u32, 1..=max_tokens as u32];
        (Just(max_tokens), vec(vec(length, 1..6), 2..=TENANTS))
    })
}

proptest! {
    /// Tenant `i` has been sent `k_i·Q + c_i(start) − c_i(now)` tokens, with `k_i` turns of a
    /// quantum `Q` and a credit `0 ≤ c_i < M + Q`, where `M` is the longest row. Turns go round, so
    /// those of two tenants that both have rows waiting differ by one at most, and the one with a
    /// turn more still has that quantum. So from fresh lines, where credit is 0, they differ by
    /// `M + Q − 1` at most; from any other time on by twice that.
    #[test]
    fn tenants_of_a_level_that_both_wait_are_sent_equally_many_tokens(
        (max_tokens, lengths) in feeds(),
        max_rows in 1..16_usize,
        // Before it counts, batches of these tenants only.
        before in vec(vec(any::<Index>(), 1..3), 0..6),
        batches in 1..40_usize,
    ) {
        let tenants: Vec<usize> = (0..lengths.len()).collect();
        let longest = longest(&lengths);
        let quantum = (max_tokens / 16).max(1);
        let policy = BatchPolicy { max_rows, max_tokens, ..BatchPolicy::default() };
        let mut feed = Feed::new(policy, lengths);
        for some in &before {
            let some: Vec<usize> = some.iter().map(|at| *at.get(&tenants)).collect();
            feed.next_batch(&some, max_rows);
        }
        let fresh = longest + quantum - 1;
        let bound = if before.is_empty() { fresh } else { 2 * fresh };
        let mut sent = vec![0_usize; tenants.len()];
        for _ in 0..batches {
            for (tenant, tokens) in feed.next_batch(&tenants, max_rows) {
                sent[tenant] += tokens as usize;
                let most = *sent.iter().max().unwrap_or(&0);
                let least = *sent.iter().min().unwrap_or(&0);
                prop_assert!(most - least <= bound, "{:?} differ by more than {}", sent, bound);
            }
        }
    }

    #[test]
    fn a_row_leaves_within_a_bound_though_other_tenants_never_run_out(
        (max_tokens, lengths) in feeds(),
        max_rows in 1..16_usize,
        before in 0..10_usize,
    ) {
        let others: Vec<usize> = (1..lengths.len()).collect();
        let (length, longest) = (lengths[0][0] as usize, longest(&lengths));
        let policy = BatchPolicy { max_rows, max_tokens, ..BatchPolicy::default() };
        let bound = most_batches_before(&policy, length, longest, others.len());
        let mut feed = Feed::new(policy, lengths);
        for _ in 0..before {
            feed.next_batch(&others, max_rows);
        }
        feed.push(0);
        let mut missed = 0;
        while feed.next_batch(&others, max_rows).iter().all(|&(tenant, _)| tenant != 0) {
            missed += 1;
            prop_assert!(missed <= bound, "{missed} batches left without it; {bound} may");
        }
    }
}

/// A call of the queue, made at a time that may be before the last one's.
#[derive(Debug, Clone)]
enum Call {
    Push(Draft),
    Cancel(Index),
    TakeExpired,
    Poll { executor_idle: bool },
    NoteDone { rows: usize },
    Observe { tokens: usize, elapsed: Duration },
    Drain,
}

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![
        8 => drafts(100).prop_map(Call::Push),
        1 => any::<Index>().prop_map(Call::Cancel),
        1 => Just(Call::TakeExpired),
        6 => any::<bool>().prop_map(|executor_idle| Call::Poll { executor_idle }),
        2 => (0..20_usize).prop_map(|rows| Call::NoteDone { rows }),
        1 => (0..200_usize, micros(0..50_000))
            .prop_map(|(tokens, elapsed)| Call::Observe { tokens, elapsed }),
        1 => Just(Call::Drain),
    ]
}

proptest! {
    #[test]
    fn a_clock_that_goes_back_loses_no_row_and_makes_no_panic(
        policy in policies().prop_map(|policy| BatchPolicy { max_tokens: 100, ..policy }),
        calls in vec((micros(0..100_000), calls()), 0..150),
    ) {
        let start = Instant::now();
        let mut queue = BatchQueue::new(policy);
        let mut waiting = BTreeSet::new();
        let mut pushed = 0;
        for (offset, call) in calls {
            let now = start + offset;
            let mut ended = Vec::new();
            match call {
                Call::Push(draft) => {
                    let row = Row {
                        id: RowId::new(pushed),
                        tokens: draft.tokens,
                        arrived: now,
                        deadline: draft.deadline.map(|deadline| now + deadline),
                        priority: draft.priority,
                        tenant: Arc::from(format!("tenant {}", draft.tenant)),
                        payload: pushed,
                    };
                    pushed += 1;
                    if queue.push(row, now).is_ok() {
                        waiting.insert(pushed - 1);
                    }
                }
                Call::Cancel(which) if pushed > 0 => {
                    let id = RowId::new(which.index(pushed as usize) as u64);
                    ended.extend(queue.cancel(id));
                }
                Call::Cancel(_) => {}
                Call::TakeExpired => ended = queue.take_expired(now),
                Call::Poll { executor_idle } => match queue.poll(now, executor_idle) {
                    Decision::Flush(batch) => ended = batch.rows,
                    Decision::WaitUntil(until) => prop_assert!(until > now),
                    Decision::Empty => prop_assert!(!executor_idle || queue.is_empty()),
                },
                Call::NoteDone { rows } => queue.note_done(rows, now),
                Call::Observe { tokens, elapsed } => {
                    queue.observe(tokens, tokens as u64 * 10, elapsed);
                }
                Call::Drain => ended.extend(queue.drain(now).into_iter().flat_map(|batch| batch.rows)),
            }
            queue.check_invariants();
            for row in ended {
                prop_assert!(waiting.remove(&row.payload), "ended twice or never pushed");
            }
        }
        let mut last = queue.take_expired(start);
        while let Some(batch) = queue.drain(start) {
            last.extend(batch.rows);
        }
        for row in last {
            prop_assert!(waiting.remove(&row.payload), "ended twice or never pushed");
        }
        prop_assert!(waiting.is_empty() && queue.is_empty());
    }
}
