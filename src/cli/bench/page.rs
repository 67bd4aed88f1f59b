//! The report as a page with pictures.

use minijinja::{Value, context, value::Serde};

use super::{
    report::{Measured, Offered, Report},
    table::{cells, doubts, headline},
    tally::Quantiles,
};
use crate::cli::{
    Failure,
    page::{Chart, Level, Plot, Series, render},
};

/// The page.
///
/// # Errors
/// When the template is wrong.
pub fn page(report: &Report) -> Result<String, Failure> {
    let measured: Vec<_> = report.measured.iter().collect();
    let searches: Vec<_> = report
        .searches
        .iter()
        .map(|found| {
            let trials: Vec<_> = found.trials.iter().map(|tried| &tried.measured).collect();
            let verdicts: Vec<_> = found
                .trials
                .iter()
                .map(|one| one.broken.join("; "))
                .collect();
            context! { headline => headline(found.rate), cells => cells(&trials), verdicts }
        })
        .collect();
    let mut plots = pictures(report, &report.measured);
    for found in &report.searches {
        let mut trials: Vec<_> = found.trials.iter().map(|tried| &tried.measured).collect();
        trials.sort_by(|a, b| a.offered.value().total_cmp(&b.offered.value()));
        plots.extend(times(report, &[(String::new(), trials)], true));
    }
    render(
        include_str!("bench.html"),
        context! {
            ferry => report.ferry,
            model => report.model.clone(),
            endpoint => report.endpoint.to_string(),
            server => report.url.as_deref().unwrap_or("a server in this process"),
            rounds => report.rounds,
            seconds => report.seconds,
            seed => report.seed,
            cells => if measured.is_empty() { Vec::new() } else { cells(&measured) },
            searches,
            doubts => doubts(report),
            plots => Value::from(Serde(&plots)),
        },
    )
}

/// Loads that differ in what was offered alone, with what they have in common.
type Group<'a> = (String, Vec<&'a Measured>);

fn groups(measured: &[Measured]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for one in measured {
        let rows = match one.rows {
            1 => String::new(),
            rows => format!("{rows} rows "),
        };
        let words = one
            .words
            .map_or_else(String::new, |words| format!("{words} words "));
        let name = format!("{rows}{words}");
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, members)) => members.push(one),
            None => groups.push((name, vec![one])),
        }
    }
    groups
}

fn pictures(report: &Report, measured: &[Measured]) -> Vec<Plot> {
    let groups = groups(measured);
    let mut plots = Vec::new();
    if groups.iter().any(|(_, members)| members.len() > 1) {
        plots.extend(throughput(&groups));
        plots.extend(times(report, &groups, false));
        plots.extend(curve(&groups));
    }
    plots.extend(lengths(measured));
    plots.extend(distributions(measured));
    plots
}

/// What is offered, as an axis has it.
fn offered_axis(members: &[&Measured]) -> &'static str {
    match members.first().map(|one| one.offered) {
        Some(Offered::Rate(_)) => "calls due a second",
        _ => "clients",
    }
}

fn series<'a>(
    name: impl Into<String>,
    members: &[&'a Measured],
    point: impl Fn(&'a Measured) -> Option<(f64, f64)>,
) -> Series {
    let name: String = name.into();
    Series {
        name: name.trim().to_owned(),
        points: members.iter().filter_map(|one| point(one)).collect(),
    }
}

/// What is served a second: tokens where text is written, else rows.
fn rate(one: &Measured) -> f64 {
    one.written_tokens_per_second
        .unwrap_or(one.served_rows_per_second)
}

fn throughput(groups: &[Group<'_>]) -> Option<Plot> {
    let (_, first) = groups.first()?;
    let writes = first
        .iter()
        .any(|one| one.written_tokens_per_second.is_some());
    let mut lines: Vec<_> = groups
        .iter()
        .map(|(name, members)| {
            series(format!("{name}served"), members, |one| {
                Some((one.offered.value(), rate(one)))
            })
        })
        .collect();
    for (name, members) in groups {
        let alone = series(format!("{name}in process"), members, |one| {
            Some((one.offered.value(), one.in_process_rows_per_second?))
        });
        lines.extend((!alone.points.is_empty()).then_some(alone));
    }
    Chart {
        title: "Throughput",
        caption: "Medians of the rounds.",
        x: offered_axis(first),
        y: if writes { "tokens/s" } else { "rows/s" },
        logarithmic: true,
        levels: &[],
    }
    .draw(&lines)
}

/// Latency, TTFT and ITL against what was offered.
fn times(report: &Report, groups: &[Group<'_>], search: bool) -> Vec<Plot> {
    type Figure = fn(&Measured) -> Option<Quantiles>;
    let figures: [(&str, &str, Figure, Option<f64>); 3] = [
        (
            "Latency",
            "of a call, ms",
            |one| one.latency_ms,
            report.slo.p99_ms,
        ),
        (
            "TTFT",
            "time to first token, ms",
            |one| one.ttft_ms,
            report.slo.ttft_ms,
        ),
        (
            "ITL",
            "time between tokens, ms",
            |one| one.itl_ms,
            report.slo.itl_ms,
        ),
    ];
    let mut plots = Vec::new();
    for (title, y, figure, bound) in figures {
        let levels: Vec<_> = bound
            .map(|value| Level {
                name: "promised for p99".to_owned(),
                value,
            })
            .into_iter()
            .collect();
        let mut lines = Vec::new();
        for (name, members) in groups {
            let at = |one: &Measured, share: fn(&Quantiles) -> f64| {
                Some((one.offered.value(), share(&figure(one)?)))
            };
            lines.push(series(format!("{name}p50"), members, |one| {
                at(one, |time| time.p50)
            }));
            lines.push(series(format!("{name}p99"), members, |one| {
                at(one, |time| time.p99)
            }));
        }
        let title = if search {
            format!("{title} in the search")
        } else {
            title.to_owned()
        };
        let first = groups.first().map_or(&[][..], |(_, members)| members);
        let chart = Chart {
            title: &title,
            caption: if levels.is_empty() {
                "Over all rounds; in an open loop from when a call was due."
            } else {
                "From when a call was due; the dashed line is what was promised for p99."
            },
            x: offered_axis(first),
            y,
            logarithmic: true,
            levels: &levels,
        };
        plots.extend(chart.draw(&lines));
    }
    plots
}

/// What latency a throughput costs.
fn curve(groups: &[Group<'_>]) -> Option<Plot> {
    let mut lines = Vec::new();
    let mut writes = false;
    for (name, members) in groups {
        writes |= members
            .iter()
            .any(|one| one.written_tokens_per_second.is_some());
        lines.push(series(format!("{name}p50"), members, |one| {
            Some((rate(one), one.latency_ms?.p50))
        }));
        lines.push(series(format!("{name}p99"), members, |one| {
            Some((rate(one), one.latency_ms?.p99))
        }));
    }
    Chart {
        title: "What latency a throughput costs",
        caption: "One point a load, joined in their order.",
        x: if writes { "tokens/s" } else { "rows/s" },
        y: "latency of a call, ms",
        logarithmic: false,
        levels: &[],
    }
    .draw(&lines)
}

/// Throughput against the length of texts, a line for each load.
fn lengths(measured: &[Measured]) -> Option<Plot> {
    let mut lines: Vec<Series> = Vec::new();
    for one in measured {
        let point = (one.words? as f64, rate(one));
        let name = match one.rows {
            1 => one.offered.to_string(),
            rows => format!("{}, {rows} rows", one.offered),
        };
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    if lines.iter().all(|line| line.points.len() < 2) {
        return None;
    }
    let writes = measured
        .iter()
        .any(|one| one.written_tokens_per_second.is_some());
    Chart {
        title: "Throughput against length",
        caption: "Medians of the rounds.",
        x: "words of a text",
        y: if writes { "tokens/s" } else { "rows/s" },
        logarithmic: true,
        levels: &[],
    }
    .draw(&lines)
}

/// How the latencies of each load are spread, to the last call.
fn distributions(measured: &[Measured]) -> Option<Plot> {
    let lines: Vec<_> = measured
        .iter()
        .map(|one| Series {
            name: one.name(),
            // One call in so many is slower.
            points: one
                .latency_distribution
                .iter()
                .map(|(share, ms)| (1.0 / (1.0 - share), *ms))
                .collect(),
        })
        .collect();
    Chart {
        title: "Spread of latencies",
        caption: "Of so many calls, one takes longer: 2 is the median, 100 is p99.",
        x: "one call in",
        y: "takes longer than, ms",
        logarithmic: true,
        levels: &[],
    }
    .draw(&lines)
}
