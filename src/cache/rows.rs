//! A cache before an engine that answers row by row.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{
    Stream, StreamExt as _,
    stream::{self, SelectAll},
};
use tokio::sync::mpsc;

use super::{
    key::{Key, KeyBuilder},
    run::{Delivery, Heading, Joined, Late, Party, Runs, Seat, Ticket, Waiting},
    store::Store,
};
use crate::{
    engine::{Answers, Departure, Engine, RowAnswer, RowWork},
    error::RequestError,
    models::RowOutput,
    telemetry::{CacheMetrics, ModelStatistics},
};

/// How a cache of rows is.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Bytes of all answers at most.
    pub max_bytes: usize,
    /// How long an answer is kept; `None` for as long as there is space.
    pub time_to_live: Option<Duration>,
    /// Rows that may wait for runs they did not start; more are run themselves.
    pub max_followers: usize,
    /// Where it counts.
    pub metrics: CacheMetrics,
    /// Where lookups and their times are summed.
    pub statistics: Arc<ModelStatistics>,
}

/// A cache before an engine. Rows that are kept are answered at once, rows of which an equal one is
/// under way when that one is, all others by the engine.
#[derive(Debug)]
pub struct RowCache {
    engine: Arc<Engine>,
    known: Mutex<Known>,
    metrics: CacheMetrics,
    statistics: Arc<ModelStatistics>,
}

#[derive(Debug)]
struct Known {
    kept: Store<Arc<RowOutput>>,
    runs: Runs,
}

/// The answers of one request, as they come. Dropping it gives up its rows; a run goes on while
/// another request waits for it.
#[derive(Debug)]
pub struct CachedAnswers {
    ready: VecDeque<(usize, RowAnswer)>,
    arriving: mpsc::Receiver<(usize, Delivery)>,
    pending: usize,
    seats: Vec<Seat>,
}

impl CachedAnswers {
    /// The next answer with its row's index, and whether the row was not run for it; `None` when all
    /// rows have been answered.
    pub async fn next(&mut self) -> Option<(usize, Result<(RowAnswer, bool), RequestError>)> {
        if let Some((row, answer)) = self.ready.pop_front() {
            return Some((row, Ok((answer, true))));
        }
        if self.pending == 0 {
            return None;
        }
        let delivered = self.arriving.recv().await;
        match delivered {
            Some(_) => self.pending -= 1,
            None => self.pending = 0,
        }
        delivered
    }
}

impl RowCache {
    /// An empty cache before `engine`.
    pub fn new(engine: Arc<Engine>, options: CacheOptions) -> Self {
        let CacheOptions {
            max_bytes,
            time_to_live,
            max_followers,
            metrics,
            statistics,
        } = options;
        Self {
            engine,
            known: Mutex::new(Known {
                kept: Store::new(max_bytes, time_to_live, metrics.clone()),
                runs: Runs::new(max_followers),
            }),
            metrics,
            statistics,
        }
    }

    /// Puts the rows of one request in line, as [`Engine::submit`] does, as far as their answers are
    /// not known or under way. To be called inside a Tokio runtime.
    ///
    /// # Errors
    /// As [`Engine::submit`]; nothing of the request is in line then.
    pub fn board(
        self: &Arc<Self>,
        rows: Vec<(usize, RowWork)>,
        departure: &Departure,
        now: Instant,
    ) -> Result<CachedAnswers, RequestError> {
        let (sender, arriving) = mpsc::channel(rows.len().max(1));
        let rows: Vec<(usize, Key, RowWork)> = rows
            .into_iter()
            .map(|(row, work)| (row, key_of(&work), work))
            .collect();
        let party = Arc::<Party>::default();
        let mut answers = CachedAnswers {
            ready: VecDeque::new(),
            arriving,
            pending: 0,
            seats: Vec::new(),
        };
        let (mut to_run, mut tickets) = (Vec::new(), HashMap::new());
        let began = Instant::now();
        // Held until the engine has the rows, so that nobody waits for a run that never starts.
        let mut known = self.lock();
        for (row, key, work) in rows {
            if let Some(output) = known.kept.find(&key, now) {
                answers.ready.push_back((row, kept_answer(&output)));
                continue;
            }
            answers.pending += 1;
            let heading = Heading::new(key, departure);
            let waiting = Waiting::new(row, sender.clone(), departure.deadline, now);
            match known.runs.join(heading, waiting, work, &party) {
                Joined::Follows(seat) => answers.seats.push(seat),
                Joined::Runs(ticket, work) => {
                    answers.seats.push(Seat::take(&party));
                    tickets.insert(row, ticket);
                    to_run.push((row, work));
                }
            }
        }
        let looked_up = began.elapsed();
        let hits = answers.ready.len();
        let misses = to_run.len();
        if misses > 0 {
            match self.engine.submit(to_run, departure, now) {
                Ok(run) => {
                    let driver = Driver {
                        cache: Arc::clone(self),
                        party,
                        tickets,
                        departure: departure.clone(),
                    };
                    drop(known);
                    tokio::spawn(driver.run(run));
                }
                Err(error) => {
                    end_all(&mut known.runs, &mut tickets);
                    return Err(error);
                }
            }
        }
        let shared = answers.pending - misses;
        self.metrics.hits.inc_by(hits as u64);
        self.metrics.misses.inc_by(misses as u64);
        self.metrics.shared.inc_by(shared as u64);
        self.statistics
            .record_lookups(hits, misses + shared, looked_up);
        Ok(answers)
    }

    /// Answers kept, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let known = self.lock();
        (known.kept.len(), known.kept.bytes())
    }

    /// Runs under way that rows may wait for.
    pub fn runs(&self) -> usize {
        self.lock().runs.len()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing is left half done by a panic: each change is one call.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the answers of one request's runs from the engine to those who wait for them.
struct Driver {
    cache: Arc<RowCache>,
    party: Arc<Party>,
    tickets: HashMap<usize, Ticket>,
    departure: Departure,
}

type Arriving = Pin<Box<dyn Stream<Item = (usize, Result<RowAnswer, RequestError>)> + Send>>;

impl Driver {
    async fn run(mut self, answers: Answers) {
        let mut arriving = SelectAll::new();
        arriving.push(stream_of(answers));
        loop {
            tokio::select! {
                next = arriving.next() => {
                    let Some((row, answer)) = next else { break };
                    let Some(ticket) = self.tickets.remove(&row) else { continue };
                    if let Some(again) = self.deliver(row, ticket, &answer) {
                        arriving.push(stream_of(again));
                    }
                }
                () = self.party.left.notified() => {
                    if self.give_up() {
                        return;
                    }
                }
            }
        }
    }

    /// Hands an answer to those who wait for it. Where it came too late for the first of them only,
    /// the others' run is begun again.
    fn deliver(
        &mut self,
        row: usize,
        ticket: Ticket,
        answer: &Result<RowAnswer, RequestError>,
    ) -> Option<Answers> {
        let heading = match ticket {
            Ticket::Alone(key, waiting) => {
                if let Ok(answer) = answer {
                    self.keep(key, &answer.output);
                }
                waiting.answer(answer.as_ref());
                return None;
            }
            Ticket::Shared(heading) => heading,
        };
        if matches!(answer, Err(RequestError::DeadlineExceeded { .. })) {
            return self.run_again(row, heading, answer);
        }
        let waiting = {
            let mut known = self.cache.lock();
            if let Ok(answer) = answer {
                keep(&mut known.kept, heading.key, &answer.output);
            }
            known.runs.end(&heading)
        };
        for row in waiting {
            row.answer(answer.as_ref());
        }
        None
    }

    /// The deadline that passed is that of the row which the run was started for; others may have
    /// more time.
    fn run_again(
        &mut self,
        row: usize,
        heading: Heading,
        late: &Result<RowAnswer, RequestError>,
    ) -> Option<Answers> {
        let now = Instant::now();
        let mut known = self.cache.lock();
        let (what, gone) = known.runs.late(&heading, now);
        let submitted = match what {
            Late::Unwanted => None,
            Late::Again(work, deadline) => {
                let departure = Departure {
                    deadline,
                    ..self.departure.clone()
                };
                Some(self.cache.engine.submit(vec![(row, work)], &departure, now))
            }
        };
        let refused = match &submitted {
            Some(Err(_)) => known.runs.end(&heading),
            _ => Vec::new(),
        };
        drop(known);
        for row in gone {
            row.answer(late.as_ref());
        }
        match submitted? {
            Ok(answers) => {
                self.cache.metrics.misses.inc();
                self.tickets.insert(row, Ticket::Shared(heading));
                Some(answers)
            }
            Err(error) => {
                for row in refused {
                    row.answer(Err(&error));
                }
                None
            }
        }
    }

    fn keep(&self, key: Key, output: &RowOutput) {
        keep(&mut self.cache.lock().kept, key, output);
    }

    /// Ends the runs if nobody waits for any of them; tells whether it did.
    fn give_up(&mut self) -> bool {
        let mut known = self.cache.lock();
        // Under the lock nobody can take a seat meanwhile.
        let is_left = self.party.is_left();
        if is_left {
            end_all(&mut known.runs, &mut self.tickets);
        }
        is_left
    }
}

impl Drop for Driver {
    /// Whatever ends it, no row waits for a run that nobody drives.
    fn drop(&mut self) {
        if !self.tickets.is_empty() {
            end_all(&mut self.cache.lock().runs, &mut self.tickets);
        }
    }
}

/// Ends the runs; rows that still wait for one answer themselves as they drop.
fn end_all(runs: &mut Runs, tickets: &mut HashMap<usize, Ticket>) {
    for (_, ticket) in tickets.drain() {
        if let Ticket::Shared(heading) = ticket {
            runs.end(&heading);
        }
    }
}

fn stream_of(answers: Answers) -> Arriving {
    Box::pin(stream::unfold(answers, |mut answers| async move {
        let next = answers.next().await?;
        Some((next, answers))
    }))
}

fn key_of(work: &RowWork) -> Key {
    KeyBuilder::new()
        .ids(&work.ids)
        .ids(&work.type_ids)
        .finish()
}

fn keep(kept: &mut Store<Arc<RowOutput>>, key: Key, output: &RowOutput) {
    let (RowOutput::Embedding(values)
    | RowOutput::Logits(values)
    | RowOutput::TokenLogits { values, .. }) = output;
    let bytes = size_of_val(values.as_slice());
    kept.keep(key, Arc::new(output.clone()), bytes, Instant::now());
}

/// An answer that cost neither waiting nor running.
fn kept_answer(output: &Arc<RowOutput>) -> RowAnswer {
    RowAnswer {
        output: RowOutput::clone(output),
        queue: Duration::ZERO,
        execute: Duration::ZERO,
        batch_rows: 0,
        trace: None,
    }
}
