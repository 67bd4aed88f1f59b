//! Whether a measurement says what the server can do, or met a server (or a machine) that was just
//! changing. Pure.

use std::fmt;

/// A change between the halves of a measurement that is called a drift, where the calls are many enough
/// to tell it from chance.
const RATE_DRIFT: f64 = 0.10;
const LATENCY_DRIFT: f64 = 0.25;

/// Calls below which percentiles say little.
const FEW_CALLS: u64 = 50;

/// A backlog that rises by this share of all that was due is growing, if it is by more calls than...
const BACKLOG_RISE: f64 = 0.05;
/// ...this.
const BACKLOG_CALLS: f64 = 4.0;

/// Calls that leave later than this after they were due make the load another than was asked for.
const LATE_MS: f64 = 5.0;

/// What a measurement looked like.
#[derive(Debug, Clone, Default)]
pub struct Signs {
    /// Answers a second in either half.
    pub rate: [f64; 2],
    /// Median latency of either half's calls, in ms.
    pub median_ms: [f64; 2],
    /// Calls that were due in the measurement and were answered.
    pub calls: u64,
    /// Of an open loop.
    pub open: Option<Open>,
}

/// What an open loop looked like.
#[derive(Debug, Clone, Default)]
pub struct Open {
    /// Calls that were due.
    pub due: f64,
    /// Calls due and not answered, at equal times.
    pub backlog: Vec<f64>,
    /// How late calls left, the 99th percentile.
    pub late_p99_ms: f64,
    /// Whether calls had to wait for others to come back before they could leave.
    pub held_back: bool,
}

/// Why a measurement is not to be trusted.
#[derive(Debug, Clone, PartialEq)]
pub enum Unsteady {
    /// Throughput changed while it was measured; by this share.
    RateDrift(f64),
    /// Latency did.
    LatencyDrift(f64),
    /// Ever more calls were under way; so many more at the end.
    GrowingBacklog(f64),
    /// As many calls as may be were under way, so that others could not leave when they were due.
    HeldBack,
    /// This process could not send when it should; by so many ms.
    LateSender(f64),
    /// So few calls.
    FewCalls(u64),
}

impl fmt::Display for Unsteady {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RateDrift(by) => write!(
                to,
                "throughput changed by {:+.0} % between the halves of the measurement",
                by * 100.0
            ),
            Self::LatencyDrift(by) => write!(
                to,
                "median latency changed by {:+.0} % between the halves of the measurement",
                by * 100.0
            ),
            Self::GrowingBacklog(calls) => write!(
                to,
                "the backlog grew by {calls:.0} calls: the server can't keep up, and latencies \
                 are those of this length of measurement only"
            ),
            Self::HeldBack => to.write_str(
                "calls waited for others to come back (--max-in-flight); their latencies count \
                 from when they were due",
            ),
            Self::LateSender(ms) => write!(
                to,
                "calls left up to {ms:.1} ms after they were due (p99): this machine is too busy \
                 to send at that rate"
            ),
            Self::FewCalls(calls) => write!(to, "{calls} calls are few for percentiles"),
        }
    }
}

/// What speaks against a measurement.
pub fn judge(signs: &Signs) -> Vec<Unsteady> {
    let mut found = Vec::new();
    if signs.calls < FEW_CALLS {
        found.push(Unsteady::FewCalls(signs.calls));
    }
    // Of n independent calls, halves differ by 2/√n (one standard deviation) by chance alone.
    let chance = 4.0 / (signs.calls.max(1) as f64).sqrt();
    // An open loop's rate is the caller's.
    if signs.open.is_none()
        && let Some(by) = drift(signs.rate)
        && by.abs() > RATE_DRIFT.max(chance)
    {
        found.push(Unsteady::RateDrift(by));
    }
    if let Some(by) = drift(signs.median_ms)
        && by.abs() > LATENCY_DRIFT.max(chance)
    {
        found.push(Unsteady::LatencyDrift(by));
    }
    if let Some(open) = &signs.open {
        let rise = rise(&open.backlog);
        if rise > BACKLOG_CALLS.max(open.due * BACKLOG_RISE) {
            found.push(Unsteady::GrowingBacklog(rise));
        }
        if open.held_back {
            found.push(Unsteady::HeldBack);
        } else if open.late_p99_ms > LATE_MS {
            found.push(Unsteady::LateSender(open.late_p99_ms));
        }
    }
    found
}

fn drift([first, second]: [f64; 2]) -> Option<f64> {
    (first > 0.0 && second > 0.0).then(|| second / first - 1.0)
}

/// By how much values rise from the first to the last, along the line that fits them best.
fn rise(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    if count < 3.0 {
        return 0.0;
    }
    let middle = (count - 1.0) / 2.0;
    let mean = values.iter().sum::<f64>() / count;
    let (mut covariance, mut variance) = (0.0, 0.0);
    for (at, value) in values.iter().enumerate() {
        let from_middle = at as f64 - middle;
        covariance += from_middle * (value - mean);
        variance += from_middle * from_middle;
    }
    covariance / variance * (count - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady() -> Signs {
        Signs {
            rate: [100.0, 102.0],
            median_ms: [10.0, 9.8],
            calls: 3_000,
            open: None,
        }
    }

    fn open(backlog: Vec<f64>) -> Signs {
        Signs {
            open: Some(Open {
                due: 3_000.0,
                backlog,
                ..Open::default()
            }),
            ..steady()
        }
    }

    #[test]
    fn a_steady_measurement_is_steady() {
        assert_eq!(judge(&steady()), []);
        let waves = (0..20).map(|at| f64::from(at % 4) * 10.0).collect();
        assert_eq!(judge(&open(waves)), []);
    }

    #[test]
    fn drifts_are_seen_where_calls_are_many_enough() {
        let slower = Signs {
            rate: [100.0, 80.0],
            median_ms: [10.0, 14.0],
            ..steady()
        };
        let found = judge(&slower);
        assert!(
            matches!(found[..], [Unsteady::RateDrift(rate), Unsteady::LatencyDrift(latency)]
                if (rate + 0.2).abs() < 1e-9 && (latency - 0.4).abs() < 1e-9),
            "{found:?}"
        );
        let few = Signs {
            calls: 60,
            ..slower
        };
        assert_eq!(judge(&few), []);
        let fewer = Signs { calls: 20, ..few };
        assert_eq!(judge(&fewer), [Unsteady::FewCalls(20)]);
    }

    #[test]
    fn a_backlog_that_grows_is_seen_and_one_that_swings_is_not() {
        let growing = (0..20).map(|at| f64::from(at) * 20.0).collect();
        let found = judge(&open(growing));
        assert!(
            matches!(found[..], [Unsteady::GrowingBacklog(rise)] if (rise - 380.0).abs() < 1e-6),
            "{found:?}"
        );
        assert_eq!(judge(&open(vec![50.0; 20])), []);
        assert_eq!(judge(&open(vec![0.0, 400.0])), []);
    }

    #[test]
    fn a_sender_that_is_late_is_seen() {
        let mut signs = open(vec![1.0; 20]);
        signs.open.as_mut().unwrap().late_p99_ms = 9.0;
        assert_eq!(judge(&signs), [Unsteady::LateSender(9.0)]);
        signs.open.as_mut().unwrap().held_back = true;
        assert_eq!(judge(&signs), [Unsteady::HeldBack]);
    }
}
