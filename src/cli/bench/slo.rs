//! What a service promises, and the search for the highest rate at which it still keeps it. Pure.

use serde::Serialize;

use super::tally::Quantiles;

/// A search ends when the lowest rate that fails is within this of the highest that holds.
const TOLERANCE: f64 = 1.05;

/// Trials of a search at most.
const TRIALS: usize = 20;

/// Of the calls that are due, this share must be answered as fast as they come.
const KEEPS_UP: f64 = 0.95;

/// Bounds in milliseconds, each on the 99th percentile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[allow(clippy::struct_field_names, reason = "the unit")]
pub struct Slo {
    /// Of a call, from when it was due to its last byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// Of the first piece of a stream, from when the call was due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Of the time between pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_ms: Option<f64>,
}

/// What a trial saw.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trial {
    /// Of whole calls.
    pub latency: Option<Quantiles>,
    /// Of first pieces.
    pub ttft: Option<Quantiles>,
    /// Of the time between pieces.
    pub itl: Option<Quantiles>,
    /// Answers a second over calls due a second.
    pub kept_up: f64,
    /// Calls that failed.
    pub errors: u64,
    /// Whether ever more calls were under way.
    pub backlog_grows: bool,
}

impl Slo {
    /// Whether nothing is promised.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What of it a trial breaks, in words; nothing when it holds.
    pub fn broken_by(&self, trial: &Trial) -> Vec<String> {
        let bounds = [
            ("p99", self.p99_ms, trial.latency),
            ("TTFT p99", self.ttft_ms, trial.ttft),
            ("ITL p99", self.itl_ms, trial.itl),
        ];
        let mut broken = Vec::new();
        for (name, bound, found) in bounds {
            let Some(bound) = bound else { continue };
            match found {
                Some(found) if found.p99 <= bound => {}
                Some(found) => broken.push(format!("{name} {:.1} ms > {bound} ms", found.p99)),
                None => broken.push(format!("{name} was not seen")),
            }
        }
        if trial.errors > 0 {
            broken.push(format!("{} calls failed", trial.errors));
        }
        if trial.backlog_grows {
            broken.push("the backlog grows".to_owned());
        } else if trial.kept_up < KEEPS_UP {
            let share = trial.kept_up * 100.0;
            broken.push(format!("answers {share:.0} % of what is due"));
        }
        broken
    }
}

/// Finds the highest rate that holds: doubles until one fails, halves until one holds, then cuts the
/// gap between them.
#[derive(Debug, Clone)]
pub struct Search {
    holds: Option<f64>,
    fails: Option<f64>,
    start: f64,
    /// Below it, a trial is too short to see a call.
    least: f64,
    trials: usize,
}

impl Search {
    /// A search that begins with `start` calls a second and gives up below `least`.
    pub fn new(start: f64, least: f64) -> Self {
        Self {
            holds: None,
            fails: None,
            start,
            least,
            trials: 0,
        }
    }

    /// The rate to try next; `None` when the search is over.
    pub fn next_rate(&self) -> Option<f64> {
        if self.trials >= TRIALS {
            return None;
        }
        match (self.holds, self.fails) {
            (None, None) => Some(self.start),
            (Some(holds), None) => Some(holds * 2.0),
            (None, Some(fails)) => Some(fails / 2.0).filter(|rate| *rate >= self.least),
            (Some(holds), Some(fails)) if fails / holds > TOLERANCE => Some((holds * fails).sqrt()),
            _ => None,
        }
    }

    /// Tells whether a rate held.
    pub fn tell(&mut self, rate: f64, held: bool) {
        self.trials += 1;
        if held {
            self.holds = Some(self.holds.map_or(rate, |best| best.max(rate)));
        } else {
            self.fails = Some(self.fails.map_or(rate, |worst| worst.min(rate)));
        }
    }

    /// The highest rate that held.
    pub fn found(&self) -> Option<f64> {
        self.holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(start: f64, capacity: f64) -> (Option<f64>, usize) {
        let mut search = Search::new(start, 0.1);
        let mut trials = 0;
        while let Some(rate) = search.next_rate() {
            search.tell(rate, rate <= capacity);
            trials += 1;
        }
        (search.found(), trials)
    }

    #[test]
    fn the_search_ends_within_five_percent_below_what_holds() {
        for capacity in [3.0, 100.0, 777.0] {
            for start in [1.0, 100.0, 5_000.0] {
                let (found, trials) = search(start, capacity);
                let found = found.unwrap();
                assert!(found <= capacity && found * TOLERANCE >= capacity);
                assert!(trials <= TRIALS);
            }
        }
    }

    #[test]
    fn a_search_where_nothing_or_all_holds_ends_too() {
        let (found, trials) = search(100.0, 0.0);
        // 100, 50, … down to what is not below 0.1.
        assert_eq!((found, trials), (None, 10));
        let (found, trials) = search(1.0, f64::INFINITY);
        assert_eq!((found, trials), (Some(524_288.0), TRIALS));
    }

    #[test]
    fn a_promise_is_broken_by_slowness_errors_and_falling_behind() {
        let slo = Slo {
            p99_ms: Some(50.0),
            ttft_ms: Some(10.0),
            itl_ms: None,
        };
        let quantiles = |p99| {
            Some(Quantiles {
                p99,
                ..Quantiles::default()
            })
        };
        let good = Trial {
            latency: quantiles(49.0),
            ttft: quantiles(10.0),
            kept_up: 1.0,
            ..Trial::default()
        };
        assert_eq!(slo.broken_by(&good), [""; 0]);
        let broken = [
            Trial {
                latency: quantiles(51.0),
                ..good
            },
            Trial { ttft: None, ..good },
            Trial { errors: 1, ..good },
            Trial {
                kept_up: 0.9,
                ..good
            },
            Trial {
                backlog_grows: true,
                ..good
            },
        ];
        for trial in broken {
            assert_eq!(slo.broken_by(&trial).len(), 1, "{trial:?}");
        }
        assert!(Slo::default().is_empty() && !slo.is_empty());
    }
}
