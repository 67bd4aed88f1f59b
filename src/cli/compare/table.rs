//! The report on a terminal, as Markdown, and as `JUnit`'s XML.

use std::fmt::Write;

use super::report::Report;
use crate::{
    cli::page::{aligned, escape, maybe},
    config::Task,
};

/// What a verdict is called.
fn word(holds: bool) -> &'static str {
    if holds { "holds" } else { "BROKEN" }
}

fn head(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// The tables of a report: both sides, the figures, the thresholds.
fn tables(report: &Report) -> [Vec<Vec<String>>; 3] {
    let mut sides = vec![head(&["", "reference", "candidate", "ratio"])];
    for line in report.side_lines() {
        sides.push(vec![
            line.name.to_owned(),
            line.reference,
            line.candidate,
            line.ratio,
        ]);
    }
    let mut figures = vec![head(&["", "mean", "p1", "p5", "p50", "p95", "p99"])];
    for line in report.figure_lines() {
        let mut row = vec![line.name.to_owned(), line.value];
        row.extend(line.quantiles);
        figures.push(row);
    }
    let mut thresholds = vec![head(&["threshold", "found", "allowed", ""])];
    for verdict in &report.thresholds {
        thresholds.push(vec![
            verdict.name.to_owned(),
            maybe(verdict.found),
            verdict.rule(),
            word(verdict.holds).to_owned(),
        ]);
    }
    [sides, figures, thresholds]
}

fn headline(report: &Report) -> String {
    let task = report.task;
    let rows = report.figures.rows;
    format!("{task}, {rows} rows: {}", report.sources.join("; "))
}

/// For a terminal.
pub fn terminal(report: &Report) -> String {
    let [sides, figures, thresholds] = tables(report);
    let mut out = String::new();
    let _ = writeln!(out, "reference  {}", report.reference.name);
    let _ = writeln!(out, "candidate  {}", report.candidate.name);
    let _ = writeln!(out, "{}\n", headline(report));
    let agreement = maybe(report.figures.agreement);
    let _ = writeln!(
        out,
        "agreement {agreement}: {}\n",
        report.meaning_of_agreement()
    );
    out.push_str(&aligned(&figures));
    out.push('\n');
    out.push_str(&aligned(&sides));
    if !report.thresholds.is_empty() {
        out.push('\n');
        out.push_str(&aligned(&thresholds));
    }
    let failed = &report.findings.failed;
    if !failed.is_empty() {
        out.push('\n');
        for failed in failed {
            let _ = writeln!(
                out,
                "line {} failed on {}: {}",
                failed.line, failed.side, failed.error
            );
        }
    }
    for note in &report.notes {
        let _ = writeln!(out, "\n{note}");
    }
    out
}

/// For a comment or a summary of a CI run.
pub fn markdown(report: &Report) -> String {
    let table = |rows: &[Vec<String>]| {
        let columns = rows.first().map_or(0, Vec::len);
        let mut out = String::new();
        for (at, row) in rows.iter().enumerate() {
            let cells = (0..columns).map(|column| row.get(column).map_or("", String::as_str));
            let cells: Vec<String> = cells.map(escape::markdown).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
            if at == 0 {
                let _ = writeln!(
                    out,
                    "| --- |{}",
                    " ---: |".repeat(columns.saturating_sub(1))
                );
            }
        }
        out
    };
    let [sides, figures, thresholds] = tables(report);
    let (reference, candidate) = (&report.reference.name, &report.candidate.name);
    let (reference, candidate) = (escape::markdown(reference), escape::markdown(candidate));
    let mut out = format!("## {candidate} against {reference}\n\n");
    if !report.thresholds.is_empty() {
        let broken = report.thresholds.iter().filter(|verdict| !verdict.holds);
        let all = report.thresholds.len();
        let verdict = match broken.count() {
            0 => format!("All {all} thresholds hold."),
            broken => format!("**{broken} of {all} thresholds broken.**"),
        };
        let _ = writeln!(out, "{verdict}\n\n{}", table(&thresholds));
    }
    let agreement = maybe(report.figures.agreement);
    let meaning = report.meaning_of_agreement();
    let _ = writeln!(
        out,
        "Agreement **{agreement}** ({meaning}); {}.\n",
        escape::markdown(&headline(report))
    );
    let _ = writeln!(out, "{}\n{}", table(&figures), table(&sides));
    if !report.findings.least_alike.is_empty() {
        // An embedding says nothing to a reader.
        let columns = if report.task == Task::Embed { 3 } else { 5 };
        let names = ["least alike", "line", "agreement", "reference", "candidate"];
        let mut rows = vec![head(&names[..columns])];
        for unlike in &report.findings.least_alike {
            let mut row = vec![
                unlike.input.clone(),
                unlike.line.to_string(),
                maybe(Some(unlike.agreement)),
                unlike.reference.clone(),
                unlike.candidate.clone(),
            ];
            row.truncate(columns);
            rows.push(row);
        }
        let _ = writeln!(out, "{}", table(&rows));
    }
    for note in &report.notes {
        let _ = writeln!(out, "{}\n", escape::markdown(note));
    }
    out
}

/// For CI systems that read test results: a test for each threshold, or one where none is set.
pub fn junit(report: &Report) -> String {
    let suite = format!(
        "ferry compare {} {}",
        report.reference.name, report.candidate.name
    );
    let suite = escape::xml(&suite);
    let broken = report
        .thresholds
        .iter()
        .filter(|verdict| !verdict.holds)
        .count();
    let tests = report.thresholds.len().max(1);
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let counts = format!("tests=\"{tests}\" failures=\"{broken}\" errors=\"0\" skipped=\"0\"");
    let _ = writeln!(out, "<testsuites {counts}>");
    let _ = writeln!(out, "  <testsuite name=\"{suite}\" {counts}>");
    let class = format!("ferry.compare.{}", report.task);
    if report.thresholds.is_empty() {
        let _ = writeln!(
            out,
            "    <testcase classname=\"{class}\" name=\"compared\"/>"
        );
    }
    for verdict in &report.thresholds {
        let case = format!(
            "    <testcase classname=\"{class}\" name=\"{}\"",
            verdict.name
        );
        if verdict.holds {
            let _ = writeln!(out, "{case}/>");
        } else {
            let found = maybe(verdict.found);
            let message = format!("{}: found {found}; {}", verdict.name, verdict.rule());
            let message = escape::xml(&message);
            let _ = writeln!(
                out,
                "{case}>\n      <failure message=\"{message}\"/>\n    </testcase>"
            );
        }
    }
    let _ = writeln!(
        out,
        "    <system-out>{}</system-out>",
        escape::xml(&terminal(report))
    );
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = [head(&["", "ρ"]), head(&["τ", "12.5"])];
        assert_eq!(aligned(&rows), "      ρ\nτ  12.5\n");
    }
}
