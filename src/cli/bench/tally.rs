//! What calls looked like, counted as they end: histograms, so that memory does not grow with time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    slo::Slo,
    stability::{Open, Signs},
    target::{Refusal, Reply},
};

/// The longest time that is told from longer ones, in µs: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// Messages kept of failures, one a code; further codes are counted together.
const CODES: usize = 64;

/// The stretch of time that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// When it begins; what is before is warm-up.
    pub begin: Instant,
    /// How long it is.
    pub length: Duration,
}

impl Window {
    /// When it ends.
    pub fn end(&self) -> Instant {
        self.begin + self.length
    }

    /// In which half a moment lies; `None` outside.
    fn half(&self, at: Instant) -> Option<usize> {
        let since = at.checked_duration_since(self.begin)?;
        (since < self.length).then(|| usize::from(since * 2 >= self.length))
    }
}

/// The times of one call.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// When it should have been sent. In a closed loop that is when it was.
    pub due: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When its last byte was read.
    pub done: Instant,
}

/// How often a failure was seen, and what the first said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Calls.
    pub count: u64,
    /// The first one's message.
    pub message: String,
}

/// Percentiles, in ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "percentiles are what they are called")]
pub struct Quantiles {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// All calls of a measurement.
#[derive(Debug)]
pub struct Tally {
    window: Window,
    slo: Slo,
    /// Times of whole calls that were due in the window, by its halves.
    latency: [Histogram<u64>; 2],
    /// From when a call was due to its first piece.
    ttft: Histogram<u64>,
    /// Between the pieces of a call.
    itl: Histogram<u64>,
    /// A call's time less the time its batch ran.
    overhead: Histogram<u64>,
    /// From when a call was due to when it was sent.
    late: Histogram<u64>,
    calls_in: [u64; 2],
    rows_in: u64,
    read_tokens_in: u64,
    batch_rows: u64,
    batches_known: u64,
    pieces_in: u64,
    pieces: u64,
    written_tokens: u64,
    within_slo: u64,
    failed: BTreeMap<String, Failed>,
    backlog: Vec<f64>,
    held_back: bool,
    due_calls: Option<u64>,
}

impl Tally {
    /// Nothing yet.
    pub fn new(window: Window, slo: Slo) -> Self {
        Self {
            window,
            slo,
            latency: [histogram(), histogram()],
            ttft: histogram(),
            itl: histogram(),
            overhead: histogram(),
            late: histogram(),
            calls_in: [0; 2],
            rows_in: 0,
            read_tokens_in: 0,
            batch_rows: 0,
            batches_known: 0,
            pieces_in: 0,
            pieces: 0,
            written_tokens: 0,
            within_slo: 0,
            failed: BTreeMap::new(),
            backlog: Vec::new(),
            held_back: false,
            due_calls: None,
        }
    }

    /// Counts a call that has ended. Rates count what ends in the window, latencies what was due in it.
    pub fn record(&mut self, times: Times, outcome: Result<Reply, Refusal>) {
        let due_in = self.window.half(times.due);
        let reply = match outcome {
            Ok(reply) => reply,
            Err(refusal) => {
                if due_in.is_some() {
                    self.fail(refusal);
                }
                return;
            }
        };
        if let Some(half) = self.window.half(times.done) {
            self.calls_in[half] += 1;
            self.rows_in += reply.rows as u64;
        }
        self.count_pieces(&times, &reply, due_in.is_some());
        let Some(half) = due_in else { return };
        let latency = times.done - times.due;
        note(&mut self.latency[half], latency);
        note(&mut self.late, times.sent - times.due);
        if let Some(execute) = reply.execute {
            note(&mut self.overhead, latency.saturating_sub(execute));
        }
        if let Some(rows) = reply.batch_rows {
            self.batch_rows += u64::from(rows);
            self.batches_known += 1;
        }
        self.within_slo += u64::from(self.keeps(&times, &reply));
    }

    fn count_pieces(&mut self, times: &Times, reply: &Reply, due_in: bool) {
        let tokens = reply.read_tokens.unwrap_or(0);
        // A prompt is read when the first piece comes; what has no pieces, when it is done.
        let read = reply.pieces.first().copied().unwrap_or(times.done);
        if self.window.half(read).is_some() {
            self.read_tokens_in += tokens;
        }
        let Some(first) = reply.pieces.first() else {
            return;
        };
        if due_in {
            note(&mut self.ttft, first.duration_since(times.due));
        }
        for pair in reply.pieces.windows(2) {
            if self.window.half(pair[1]).is_some() {
                note(&mut self.itl, pair[1] - pair[0]);
            }
        }
        let inside = reply
            .pieces
            .iter()
            .filter(|came| self.window.half(**came).is_some());
        self.pieces_in += inside.count() as u64;
        self.pieces += reply.pieces.len() as u64;
        self.written_tokens += reply.written_tokens.unwrap_or(reply.pieces.len() as u64);
    }

    /// Whether a single call is as fast as is promised of 99 in 100.
    fn keeps(&self, times: &Times, reply: &Reply) -> bool {
        let within = |bound: Option<f64>, time: Option<Duration>| match (bound, time) {
            (None, _) => true,
            (Some(bound), Some(time)) => milliseconds(time) <= bound,
            (Some(_), None) => false,
        };
        let first = reply.pieces.first();
        let gaps = || reply.pieces.windows(2).map(|pair| pair[1] - pair[0]);
        let longest = gaps().max().unwrap_or_default();
        within(self.slo.p99_ms, Some(times.done - times.due))
            && within(self.slo.ttft_ms, first.map(|first| *first - times.due))
            && within(self.slo.itl_ms, first.map(|_| longest))
    }

    fn fail(&mut self, refusal: Refusal) {
        let full = self.failed.len() >= CODES && !self.failed.contains_key(&refusal.code);
        let code = if full {
            "other".to_owned()
        } else {
            refusal.code
        };
        let entry = self.failed.entry(code).or_insert(Failed {
            count: 0,
            message: refusal.message,
        });
        entry.count += 1;
    }

    /// Calls due and not answered at a moment of the window.
    pub fn note_backlog(&mut self, calls: f64) {
        self.backlog.push(calls);
    }

    /// What an open loop asked for: how many calls were due in the window, whether some had to wait
    /// for others to come back, and how many of them could never be sent.
    pub fn close_open_loop(&mut self, due: u64, held_back: bool, unsent: u64) {
        self.due_calls = Some(due);
        self.held_back = held_back;
        if unsent > 0 {
            self.failed.insert(
                "NOT_SENT".to_owned(),
                Failed {
                    count: unsent,
                    message: "due, but as many calls as may be were under way until the end"
                        .to_owned(),
                },
            );
        }
    }

    /// Answers a second.
    pub fn calls_per_second(&self) -> f64 {
        self.calls_in.iter().sum::<u64>() as f64 / self.seconds()
    }

    /// Rows answered a second.
    pub fn rows_per_second(&self) -> f64 {
        self.rows_in as f64 / self.seconds()
    }

    /// Tokens read a second, where the server tells.
    pub fn read_tokens_per_second(&self) -> Option<f64> {
        (self.read_tokens_in > 0).then(|| self.read_tokens_in as f64 / self.seconds())
    }

    /// Tokens written a second: the pieces that came in the window, times the tokens of a piece.
    pub fn written_tokens_per_second(&self) -> Option<f64> {
        (self.pieces > 0).then(|| {
            let a_piece = self.written_tokens as f64 / self.pieces as f64;
            self.pieces_in as f64 * a_piece / self.seconds()
        })
    }

    /// Calls a second that were as fast as promised.
    pub fn good_calls_per_second(&self) -> Option<f64> {
        (!self.slo.is_empty()).then(|| self.within_slo as f64 / self.seconds())
    }

    /// Mean rows of the batches that calls travelled in, where the server tells.
    pub fn mean_batch_rows(&self) -> Option<f64> {
        (self.batches_known > 0).then(|| self.batch_rows as f64 / self.batches_known as f64)
    }

    /// Calls that were due in the window and failed, by code.
    pub fn failed(&self) -> &BTreeMap<String, Failed> {
        &self.failed
    }

    /// Calls that were due in the window and failed.
    pub fn errors(&self) -> u64 {
        self.failed.values().map(|failed| failed.count).sum()
    }

    /// Answers over what was due, in an open loop.
    pub fn kept_up(&self) -> f64 {
        match self.due_calls {
            Some(due) if due > 0 => self.calls_in.iter().sum::<u64>() as f64 / due as f64,
            _ => 1.0,
        }
    }

    /// What tells whether it was steady.
    pub fn signs(&self) -> Signs {
        let half = self.seconds() / 2.0;
        Signs {
            rate: self.calls_in.map(|calls| calls as f64 / half),
            median_ms: [0, 1].map(|half| self.latency[half].value_at_quantile(0.5) as f64 / 1e3),
            calls: self.latency.iter().map(Histogram::len).sum(),
            open: self.due_calls.map(|due| Open {
                due: due as f64,
                backlog: self.backlog.clone(),
                late_p99_ms: self.late.value_at_quantile(0.99) as f64 / 1e3,
                held_back: self.held_back,
            }),
        }
    }

    /// Takes over the times of whole calls, first pieces, gaps and overheads into `total`.
    pub fn add_to(&self, total: &mut Latencies) {
        for half in &self.latency {
            add(&mut total.call, half);
        }
        add(&mut total.ttft, &self.ttft);
        add(&mut total.itl, &self.itl);
        add(&mut total.overhead, &self.overhead);
    }

    fn seconds(&self) -> f64 {
        self.window.length.as_secs_f64()
    }
}

/// The times of all rounds together.
#[derive(Debug)]
pub struct Latencies {
    /// Of whole calls.
    pub call: Histogram<u64>,
    /// To the first piece.
    pub ttft: Histogram<u64>,
    /// Between pieces.
    pub itl: Histogram<u64>,
    /// Of calls, less the time their batch ran.
    pub overhead: Histogram<u64>,
}

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        Self {
            call: histogram(),
            ttft: histogram(),
            itl: histogram(),
            overhead: histogram(),
        }
    }
}

/// The percentiles of a histogram in µs; `None` of an empty one.
pub fn quantiles(histogram: &Histogram<u64>) -> Option<Quantiles> {
    let at = |share| histogram.value_at_quantile(share) as f64 / 1e3;
    (!histogram.is_empty()).then(|| Quantiles {
        mean: histogram.mean() / 1e3,
        p50: at(0.5),
        p90: at(0.9),
        p95: at(0.95),
        p99: at(0.99),
        p999: at(0.999),
        max: histogram.max() as f64 / 1e3,
    })
}

/// Shares of the calls and the time in ms that they stay below, ever closer to all of them.
pub fn distribution(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    // (1 - share) halves twice in each step of ten points, down to one call.
    let mut beyond = 1.0;
    while !histogram.is_empty() && beyond * histogram.len() as f64 >= 1.0 {
        let time = histogram.value_at_quantile(1.0 - beyond) as f64 / 1e3;
        points.push((1.0 - beyond, time));
        beyond /= 2.0_f64.sqrt();
    }
    points
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("bounds that a histogram may have")
}

fn add(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    let added = into.add(from);
    // All histograms here have the same bounds.
    debug_assert!(added.is_ok());
}

fn note(histogram: &mut Histogram<u64>, time: Duration) {
    let us = u64::try_from(time.as_micros()).unwrap_or(LONGEST_US);
    histogram.saturating_record(us.max(1));
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn window() -> Window {
        Window {
            begin: Instant::now() + Duration::from_secs(1),
            length: Duration::from_secs(2),
        }
    }

    fn refusal(code: &str) -> Refusal {
        Refusal::new(code, "no")
    }

    fn rows(rows: usize) -> Reply {
        Reply {
            rows,
            ..Reply::default()
        }
    }

    #[test]
    fn latency_counts_from_when_a_call_was_due_not_from_when_it_could_be_sent() {
        let window = window();
        let mut tally = Tally::new(window, Slo::default());
        let due = window.begin + 10 * MS;
        let times = Times {
            due,
            sent: due + 90 * MS,
            done: due + 100 * MS,
        };
        tally.record(times, Ok(rows(1)));
        let mut total = Latencies::new();
        tally.add_to(&mut total);
        let found = quantiles(&total.call).unwrap();
        assert!((found.p50 - 100.0).abs() < 0.1, "{found:?}");
        tally.close_open_loop(1, false, 0);
        assert!((tally.signs().open.unwrap().late_p99_ms - 90.0).abs() < 0.1);
    }

    #[test]
    fn what_is_due_in_the_warm_up_or_after_the_window_is_left_out() {
        let window = window();
        let before = Window {
            begin: window.begin + 5 * MS,
            ..window
        };
        let mut tally = Tally::new(before, Slo::default());
        for due in [window.begin, before.end()] {
            let times = Times {
                due,
                sent: due,
                done: due + 10 * MS,
            };
            tally.record(times, Ok(rows(4)));
            tally.record(times, Err(refusal("UNAVAILABLE")));
        }
        assert_eq!(tally.signs().calls, 0);
        assert_eq!(tally.errors(), 0);
        // The first ended in the window, and its rows are its throughput.
        assert!((tally.rows_per_second() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn tokens_are_the_pieces_of_the_window_times_the_tokens_of_a_piece() {
        let window = window();
        let mut tally = Tally::new(window, Slo::default());
        let due = window.begin + 1975 * MS;
        let pieces = [10, 20, 30, 40].map(|at| due + at * MS).to_vec();
        let times = Times {
            due,
            sent: due,
            done: due + 41 * MS,
        };
        let reply = Reply {
            rows: 1,
            pieces,
            written_tokens: Some(8),
            read_tokens: Some(100),
            ..Reply::default()
        };
        tally.record(times, Ok(reply));
        // Two of four pieces came in time, of two tokens each, in two seconds.
        assert_eq!(tally.written_tokens_per_second(), Some(2.0));
        assert_eq!(tally.read_tokens_per_second(), Some(50.0));
        let mut total = Latencies::new();
        tally.add_to(&mut total);
        assert_eq!(total.itl.len(), 1);
        assert!((quantiles(&total.ttft).unwrap().p50 - 10.0).abs() < 0.1);
    }

    #[test]
    fn failures_are_counted_by_code_and_the_codes_are_bounded() {
        let window = window();
        let mut tally = Tally::new(window, Slo::default());
        let times = Times {
            due: window.begin,
            sent: window.begin,
            done: window.begin,
        };
        for code in 0..200 {
            tally.record(times, Err(refusal(&format!("HTTP {code}"))));
        }
        tally.record(times, Err(refusal("HTTP 0")));
        assert_eq!(tally.errors(), 201);
        assert_eq!(tally.failed()["HTTP 0"].count, 2);
        assert_eq!(tally.failed().len(), CODES + 1);
    }

    #[test]
    fn calls_within_the_promise_are_counted_one_by_one() {
        let window = window();
        let slo = Slo {
            p99_ms: Some(20.0),
            ..Slo::default()
        };
        let mut tally = Tally::new(window, slo);
        for time in [10, 30] {
            let times = Times {
                due: window.begin,
                sent: window.begin,
                done: window.begin + time * MS,
            };
            tally.record(times, Ok(rows(1)));
        }
        assert_eq!(tally.good_calls_per_second(), Some(0.5));
        assert_eq!(
            Tally::new(window, Slo::default()).good_calls_per_second(),
            None
        );
    }

    #[test]
    fn a_distribution_rises_to_the_last_call() {
        let mut times = histogram();
        for us in 1..=1000 {
            note(&mut times, Duration::from_micros(us * 1000));
        }
        let points = distribution(&times);
        assert!(points.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        assert!(points.last().unwrap().0 > 0.998);
        assert_eq!(distribution(&histogram()), []);
        assert_eq!(quantiles(&histogram()), None);
    }
}
