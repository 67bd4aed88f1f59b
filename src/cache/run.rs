//! Runs under way and the rows that wait for them.
//!
//! Rows share a run only inside one line of the queue (one priority, one tenant), where the second
//! would stand behind the first anyway, and only when the run's own deadline is no later than the
//! row's: so a row is never answered later for having shared.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed},
    },
    time::Instant,
};

use tokio::sync::{Notify, mpsc};

use super::key::Key;
use crate::{
    engine::{Departure, RowAnswer, RowWork},
    error::RequestError,
};

/// A row's answer, and whether the row was not run for it.
pub(super) type Delivery = Result<(RowAnswer, bool), RequestError>;

/// What runs are shared by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Heading {
    pub(super) key: Key,
    priority_level: usize,
    tenant: Arc<str>,
}

impl Heading {
    pub(super) fn new(key: Key, departure: &Departure) -> Self {
        Self {
            key,
            priority_level: departure.priority.level(),
            tenant: Arc::clone(&departure.tenant),
        }
    }
}

/// The runs that one request has started. They go on while anybody waits for one of them.
#[derive(Debug, Default)]
pub(super) struct Party {
    seats: AtomicUsize,
    /// Told when the last seat is left.
    pub(super) left: Notify,
}

impl Party {
    pub(super) fn is_left(&self) -> bool {
        self.seats.load(Acquire) == 0
    }
}

/// Keeps a party's runs going.
#[derive(Debug)]
pub(super) struct Seat(Arc<Party>);

impl Seat {
    /// To be taken under the lock under which it is checked whether the party is left.
    pub(super) fn take(party: &Arc<Party>) -> Self {
        party.seats.fetch_add(1, Relaxed);
        Self(Arc::clone(party))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.0.seats.fetch_sub(1, AcqRel) == 1 {
            self.0.left.notify_one();
        }
    }
}

/// A row that waits for a run. Dropped unanswered it is answered: nothing accepted is ever lost.
#[derive(Debug)]
pub(super) struct Waiting {
    row: usize,
    answers: Option<mpsc::Sender<(usize, Delivery)>>,
    deadline: Option<Instant>,
    since: Instant,
    /// Set for rows that follow, so that one can take over.
    work: Option<RowWork>,
}

impl Waiting {
    pub(super) fn new(
        row: usize,
        answers: mpsc::Sender<(usize, Delivery)>,
        deadline: Option<Instant>,
        since: Instant,
    ) -> Self {
        Self {
            row,
            answers: Some(answers),
            deadline,
            since,
            work: None,
        }
    }

    fn is_gone(&self, now: Instant) -> bool {
        self.answers.as_ref().is_none_or(mpsc::Sender::is_closed)
            || self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Answers it with what a run gave.
    pub(super) fn answer(mut self, answer: Result<&RowAnswer, &RequestError>) {
        let delivery = match answer {
            Ok(answer) => Ok((self.as_seen(answer), self.work.is_some())),
            Err(error) => Err(error.clone()),
        };
        self.send(delivery);
    }

    /// A follower came later, so it waited less than the row that was run.
    fn as_seen(&self, answer: &RowAnswer) -> RowAnswer {
        if self.work.is_none() {
            return answer.clone();
        }
        let waited = self.since.elapsed();
        let execute = answer.execute.min(waited);
        RowAnswer {
            queue: answer.queue.min(waited.saturating_sub(execute)),
            execute,
            ..answer.clone()
        }
    }

    fn send(&mut self, delivery: Delivery) {
        if let Some(answers) = self.answers.take() {
            // There is room for every row of a request; it fails only when the request was dropped.
            let _ = answers.try_send((self.row, delivery));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.send(Err(RequestError::internal(
            "a run ended without an answer for this row",
        )));
    }
}

/// A run under way.
#[derive(Debug)]
struct Run {
    party: Arc<Party>,
    deadline: Option<Instant>,
    /// The row it was started for, and those that follow it.
    waiting: Vec<Waiting>,
}

impl Run {
    /// Whether a row of that deadline loses nothing by waiting for it: the queue lets a batch leave
    /// for the run's deadline, but not for that of a row it doesn't know.
    fn suits(&self, deadline: Option<Instant>) -> bool {
        match (self.deadline, deadline) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(own), Some(asked)) => own <= asked,
        }
    }
}

/// Whose run a row in the engine is.
#[derive(Debug)]
pub(super) enum Ticket {
    /// All that wait under the heading.
    Shared(Heading),
    /// This row's only: it can't wait for the one under way.
    Alone(Key, Waiting),
}

/// How a row is answered that is not kept yet.
#[derive(Debug)]
pub(super) enum Joined {
    /// By a run that is under way.
    Follows(Seat),
    /// By a run that is to be started.
    Runs(Ticket, RowWork),
}

/// What becomes of a run whose deadline passed in the queue.
#[derive(Debug)]
pub(super) enum Late {
    /// Nobody waits any more; the run is gone.
    Unwanted,
    /// Rows with later deadlines wait; it is to be run again for them, by this deadline.
    Again(RowWork, Option<Instant>),
}

/// The runs under way of one model version.
#[derive(Debug)]
pub(super) struct Runs {
    by_heading: HashMap<Heading, Run>,
    /// Rows that wait for a run they did not start.
    followers: usize,
    max_followers: usize,
}

impl Runs {
    pub(super) fn new(max_followers: usize) -> Self {
        Self {
            by_heading: HashMap::new(),
            followers: 0,
            max_followers,
        }
    }

    /// Lets a row wait for the run of its heading, or notes that `party` starts one for it.
    pub(super) fn join(
        &mut self,
        heading: Heading,
        mut waiting: Waiting,
        work: RowWork,
        party: &Arc<Party>,
    ) -> Joined {
        let Some(run) = self.by_heading.get_mut(&heading) else {
            let run = Run {
                party: Arc::clone(party),
                deadline: waiting.deadline,
                waiting: vec![waiting],
            };
            self.by_heading.insert(heading.clone(), run);
            return Joined::Runs(Ticket::Shared(heading), work);
        };
        if !run.suits(waiting.deadline) || self.followers >= self.max_followers {
            return Joined::Runs(Ticket::Alone(heading.key, waiting), work);
        }
        self.followers += 1;
        waiting.work = Some(work);
        run.waiting.push(waiting);
        Joined::Follows(Seat::take(&run.party))
    }

    /// Ends a run; gives the rows that wait for it, the one it was started for first.
    pub(super) fn end(&mut self, heading: &Heading) -> Vec<Waiting> {
        let Some(run) = self.by_heading.remove(heading) else {
            return Vec::new();
        };
        self.count_out(&run.waiting);
        run.waiting
    }

    /// Ends the wait of rows whose deadline passed at `now`, or whose request is gone. The row that
    /// waits longest lends its work for the others.
    pub(super) fn late(&mut self, heading: &Heading, now: Instant) -> (Late, Vec<Waiting>) {
        let Some(mut run) = self.by_heading.remove(heading) else {
            return (Late::Unwanted, Vec::new());
        };
        let gone: Vec<Waiting> = run.waiting.extract_if(.., |row| row.is_gone(now)).collect();
        self.count_out(&gone);
        let Some(work) = run.waiting.iter().find_map(|row| row.work.clone()) else {
            // At most the row it was started for, whose engine found it late.
            let rest = gone.into_iter().chain(run.waiting).collect();
            return (Late::Unwanted, rest);
        };
        let deadlines: Option<Vec<Instant>> = run.waiting.iter().map(|row| row.deadline).collect();
        run.deadline = deadlines.and_then(|all| all.into_iter().max());
        let again = Late::Again(work, run.deadline);
        self.by_heading.insert(heading.clone(), run);
        (again, gone)
    }

    /// Runs under way.
    pub(super) fn len(&self) -> usize {
        self.by_heading.len()
    }

    fn count_out(&mut self, rows: &[Waiting]) {
        self.followers -= rows.iter().filter(|row| row.work.is_some()).count();
    }
}
