//! The report on a terminal.

use std::fmt::Write;

use super::report::{Measured, Offered, Report};
use crate::cli::page::aligned;

/// A column: its name, and what stands in it for a load; left out where no load has anything.
type Column = (&'static str, fn(&Measured) -> Option<String>);

const COLUMNS: &[Column] = &[
    ("load", |one| Some(one.offered.to_string())),
    ("rows/call", |one| {
        (one.rows > 1).then(|| one.rows.to_string())
    }),
    ("words", |one| one.words.map(|words| words.to_string())),
    ("in process rows/s", |one| {
        one.in_process_rows_per_second
            .map(|rate| format!("{rate:.1}"))
    }),
    ("tokens/s", |one| {
        one.in_process_tokens_per_second
            .map(|rate| format!("{rate:.0}"))
    }),
    ("served rows/s", |one| {
        Some(format!("{:.1}", one.served_rows_per_second))
    }),
    ("share", |one| {
        one.served_share_of_in_process
            .map(|share| format!("{:.0} %", share * 100.0))
    }),
    ("read tokens/s", |one| {
        one.read_tokens_per_second.map(|rate| format!("{rate:.0}"))
    }),
    ("written tokens/s", |one| {
        one.written_tokens_per_second
            .map(|rate| format!("{rate:.1}"))
    }),
    ("rows/batch", |one| {
        one.mean_rows_per_batch.map(|rows| format!("{rows:.1}"))
    }),
    ("p50 ms", |one| {
        one.latency_ms.map(|time| format!("{:.2}", time.p50))
    }),
    ("p90 ms", |one| {
        one.latency_ms.map(|time| format!("{:.2}", time.p90))
    }),
    ("p99 ms", |one| {
        one.latency_ms.map(|time| format!("{:.2}", time.p99))
    }),
    ("TTFT p50", |one| {
        one.ttft_ms.map(|time| format!("{:.1}", time.p50))
    }),
    ("TTFT p99", |one| {
        one.ttft_ms.map(|time| format!("{:.1}", time.p99))
    }),
    ("ITL p50", |one| {
        one.itl_ms.map(|time| format!("{:.2}", time.p50))
    }),
    ("ITL p99", |one| {
        one.itl_ms.map(|time| format!("{:.2}", time.p99))
    }),
    ("overhead p50 µs", |one| {
        one.overhead_p50_us.map(|time| format!("{time:.0}"))
    }),
    ("within SLO/s", |one| {
        one.calls_per_second_within_slo
            .map(|rate| format!("{rate:.1}"))
    }),
    ("errors", |one| Some(one.errors.to_string())),
];

/// The names of the columns that have something, and what stands in them for each load.
pub fn cells(measured: &[&Measured]) -> Vec<Vec<String>> {
    let columns: Vec<_> = COLUMNS
        .iter()
        .filter(|(_, cell)| measured.iter().any(|one| cell(one).is_some()))
        .collect();
    let head = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let row = |one: &&Measured| {
        let cell = |column: &&Column| column.1(one).unwrap_or_else(|| "-".to_owned());
        columns.iter().map(cell).collect()
    };
    std::iter::once(head)
        .chain(measured.iter().map(row))
        .collect()
}

/// The report for a terminal.
pub fn terminal(report: &Report) -> String {
    let mut out = format!(
        "model {}, {}, {}; {} of {} s\n",
        report.model,
        report.endpoint,
        report.url.as_deref().unwrap_or("a server in this process"),
        match report.rounds {
            1 => "1 round".to_owned(),
            rounds => format!("medians of {rounds} rounds"),
        },
        report.seconds,
    );
    if !report.measured.is_empty() {
        let measured: Vec<_> = report.measured.iter().collect();
        let _ = write!(out, "\n{}", aligned(&cells(&measured)));
    }
    if let ([few, .., many], []) = (&report.measured[..], &report.searches[..])
        && let (Offered::Clients(less), Offered::Clients(more)) = (few.offered, many.offered)
        && few.served_rows_per_second > 0.0
        && (few.rows, few.words) == (many.rows, many.words)
    {
        let ratio = many.served_rows_per_second / few.served_rows_per_second;
        let _ = writeln!(
            out,
            "\n{more} clients ÷ {less}: {ratio:.2} × the throughput"
        );
    }
    for found in &report.searches {
        let trials: Vec<_> = found.trials.iter().map(|tried| &tried.measured).collect();
        let mut rows = cells(&trials);
        let verdicts = found.trials.iter().map(|tried| match tried.broken[..] {
            [] => "holds".to_owned(),
            _ => tried.broken.join("; "),
        });
        for (row, verdict) in rows
            .iter_mut()
            .zip(std::iter::once(String::new()).chain(verdicts))
        {
            row.push(verdict);
        }
        let _ = write!(out, "\n{}\n{}", aligned(&rows), headline(found.rate));
        let _ = writeln!(out);
    }
    out
}

/// What a search found, in words.
pub fn headline(rate: Option<f64>) -> String {
    rate.map_or_else(
        || "no rate that was tried keeps the promise".to_owned(),
        |rate| format!("highest rate that keeps the promise: {rate:.1} calls/s"),
    )
}

/// What speaks against the figures, a line each: failures, and measurements that were not steady.
pub fn doubts(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |one: &Measured, steadiness: bool| {
        for (code, failed) in &one.errors_by_code {
            lines.push(format!(
                "{}: {} calls failed with {code}: {}",
                one.name(),
                failed.count,
                failed.message
            ));
        }
        for doubt in one.unsteady.iter().filter(|_| steadiness) {
            lines.push(format!("UNSTEADY: {}: {doubt}", one.name()));
        }
    };
    for one in &report.measured {
        say(one, true);
    }
    // A search goes beyond what the server bears; that it is unsteady there is what it looks for.
    for tried in report.searches.iter().flat_map(|found| &found.trials) {
        say(&tried.measured, tried.broken.is_empty());
    }
    lines
}
