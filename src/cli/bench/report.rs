//! What was measured, as data: what JSON, tables and pictures are made of.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{
    alone::InProcess,
    arrivals::Spacing,
    slo::{Slo, Trial},
    stability::{Unsteady, judge},
    tally::{Failed, Latencies, Quantiles, Tally, distribution, quantiles},
    target::Endpoint,
    work::Shape,
};

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Ferry's version.
    pub ferry: &'static str,
    /// The model.
    pub model: String,
    /// The protocol.
    pub endpoint: Endpoint,
    /// Where the server is; none for one in this process.
    pub url: Option<String>,
    /// Length of a measurement.
    pub seconds: f64,
    /// Measurements of a load.
    pub rounds: usize,
    /// Of an open loop.
    pub arrivals: Spacing,
    /// Of arrivals and drawn texts.
    pub seed: u64,
    /// What was promised.
    #[serde(skip_serializing_if = "Slo::is_empty")]
    pub slo: Slo,
    /// Each load.
    pub measured: Vec<Measured>,
    /// Searches for the highest rate, one a form of call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<Found>,
}

/// What a search found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Rows of a call.
    pub rows: usize,
    /// Words of a row.
    pub words: Option<usize>,
    /// Highest rate that holds, in calls a second; none where none did.
    pub rate: Option<f64>,
    /// The trials, in their order.
    pub trials: Vec<Tried>,
}

/// One trial of a search.
#[derive(Debug, Serialize)]
pub struct Tried {
    /// What of the promise it broke; nothing when it held.
    pub broken: Vec<String>,
    /// What it saw.
    #[serde(flatten)]
    pub measured: Measured,
}

/// What was offered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Offered {
    /// Clients in a closed loop.
    Clients(usize),
    /// Calls a second.
    Rate(f64),
}

impl Offered {
    /// The number of it.
    pub fn value(self) -> f64 {
        match self {
            Self::Clients(clients) => clients as f64,
            Self::Rate(rate) => rate,
        }
    }
}

impl fmt::Display for Offered {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clients(1) => to.write_str("1 client"),
            Self::Clients(clients) => write!(to, "{clients} clients"),
            Self::Rate(rate) if *rate < 10.0 => write!(to, "{rate:.2}/s"),
            Self::Rate(rate) => write!(to, "{rate:.1}/s"),
        }
    }
}

/// One load over all its rounds: rates are medians, times are of all calls together.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "named by what they are, with their units")]
pub struct Measured {
    #[serde(skip)]
    pub offered: Offered,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    pub rows: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<usize>,
    pub in_process_rows_per_second: Option<f64>,
    pub in_process_tokens_per_second: Option<f64>,
    pub served_calls_per_second: f64,
    pub served_rows_per_second: f64,
    pub served_rows_per_second_rounds: Vec<f64>,
    pub served_share_of_in_process: Option<f64>,
    pub read_tokens_per_second: Option<f64>,
    pub written_tokens_per_second: Option<f64>,
    pub written_tokens_per_second_rounds: Vec<f64>,
    pub calls_per_second_within_slo: Option<f64>,
    pub mean_rows_per_batch: Option<f64>,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub latency_ms: Option<Quantiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<Quantiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_ms: Option<Quantiles>,
    pub overhead_p50_us: Option<f64>,
    pub errors: u64,
    pub errors_by_code: BTreeMap<String, Failed>,
    pub unsteady: Vec<String>,
    /// Shares of the calls, and the ms they stay below.
    pub latency_distribution: Vec<(f64, f64)>,
}

impl Measured {
    /// Of the rounds of one load, at least one.
    pub fn of(offered: Offered, shape: Shape, rounds: &[(Option<InProcess>, Tally)]) -> Self {
        let served = |value: &dyn Fn(&Tally) -> Option<f64>| {
            rounds
                .iter()
                .filter_map(|(_, tally)| value(tally))
                .collect::<Vec<_>>()
        };
        let alone = |value: &dyn Fn(&InProcess) -> f64| {
            let found = rounds
                .iter()
                .filter_map(|(alone, _)| alone.as_ref().map(value));
            median(found.collect())
        };
        // Within a round, so that a machine whose speed drifts does not spoil it.
        let shares = rounds.iter().filter_map(|(alone, tally)| {
            let alone = alone.as_ref()?;
            Some(tally.rows_per_second() / alone.rows_per_second)
        });
        let mut times = Latencies::new();
        let mut errors_by_code: BTreeMap<String, Failed> = BTreeMap::new();
        let mut unsteady = Vec::new();
        for (at, (_, tally)) in rounds.iter().enumerate() {
            tally.add_to(&mut times);
            for (code, failed) in tally.failed() {
                errors_by_code
                    .entry(code.clone())
                    .and_modify(|all| all.count += failed.count)
                    .or_insert_with(|| failed.clone());
            }
            for doubt in judge(&tally.signs()) {
                unsteady.push(match rounds.len() {
                    1 => doubt.to_string(),
                    _ => format!("round {}: {doubt}", at + 1),
                });
            }
        }
        let latency = quantiles(&times.call);
        let rows = served(&|tally| Some(tally.rows_per_second()));
        let written = served(&Tally::written_tokens_per_second);
        Self {
            offered,
            clients: match offered {
                Offered::Clients(clients) => Some(clients),
                Offered::Rate(_) => None,
            },
            rate: match offered {
                Offered::Clients(_) => None,
                Offered::Rate(rate) => Some(rate),
            },
            rows: shape.rows,
            words: shape.words,
            in_process_rows_per_second: alone(&|alone| alone.rows_per_second),
            in_process_tokens_per_second: alone(&|alone| alone.tokens_per_second),
            served_calls_per_second: median(served(&|tally| Some(tally.calls_per_second())))
                .unwrap_or(0.0),
            served_rows_per_second: median(rows.clone()).unwrap_or(0.0),
            served_rows_per_second_rounds: rows,
            served_share_of_in_process: median(shares.collect()),
            read_tokens_per_second: median(served(&Tally::read_tokens_per_second)),
            written_tokens_per_second: median(written.clone()),
            written_tokens_per_second_rounds: written,
            calls_per_second_within_slo: median(served(&Tally::good_calls_per_second)),
            mean_rows_per_batch: median(served(&Tally::mean_batch_rows)),
            p50_ms: latency.map_or(0.0, |latency| latency.p50),
            p99_ms: latency.map_or(0.0, |latency| latency.p99),
            latency_ms: latency,
            ttft_ms: quantiles(&times.ttft),
            itl_ms: quantiles(&times.itl),
            overhead_p50_us: quantiles(&times.overhead).map(|overhead| overhead.p50 * 1e3),
            errors: errors_by_code.values().map(|failed| failed.count).sum(),
            errors_by_code,
            unsteady,
            latency_distribution: distribution(&times.call),
        }
    }

    /// What was offered, in words that tell it from the others of a run.
    pub fn name(&self) -> String {
        let rows = match self.rows {
            1 => String::new(),
            rows => format!(", {rows} rows a call"),
        };
        let words = self
            .words
            .map_or_else(String::new, |words| format!(", {words} words"));
        format!("{}{rows}{words}", self.offered)
    }
}

/// What a trial of a search is judged by.
pub fn trial(tally: &Tally) -> Trial {
    let mut times = Latencies::new();
    tally.add_to(&mut times);
    let growing = |doubt: &Unsteady| matches!(doubt, Unsteady::GrowingBacklog(_));
    Trial {
        latency: quantiles(&times.call),
        ttft: quantiles(&times.ttft),
        itl: quantiles(&times.itl),
        kept_up: tally.kept_up(),
        errors: tally.errors(),
        backlog_grows: judge(&tally.signs()).iter().any(growing),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
