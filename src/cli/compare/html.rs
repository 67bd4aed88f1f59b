//! The report as one HTML file that needs nothing else: no script, no font, no address.

use minijinja::{Value, context, value::Serde};

use super::report::Report;
use crate::{
    cli::{
        Failure,
        page::{Plot, maybe, render},
    },
    config::Task,
};

/// The page, with `plots` in it. Everything but the plots is escaped as it is put in.
///
/// # Errors
/// When the template is wrong.
pub fn page(report: &Report, plots: &[Plot]) -> Result<String, Failure> {
    let thresholds: Vec<_> = report
        .thresholds
        .iter()
        .map(|verdict| {
            context! {
                name => verdict.name,
                found => maybe(verdict.found),
                rule => verdict.rule(),
                holds => verdict.holds,
            }
        })
        .collect();
    let least_alike: Vec<_> = report
        .findings
        .least_alike
        .iter()
        .map(|unlike| {
            context! {
                line => unlike.line,
                input => unlike.input.clone(),
                agreement => maybe(Some(unlike.agreement)),
                reference => unlike.reference.clone(),
                candidate => unlike.candidate.clone(),
            }
        })
        .collect();
    render(
        include_str!("report.html"),
        context! {
            ferry => report.ferry,
            task => report.task.to_string(),
            reference => report.reference.name.clone(),
            candidate => report.candidate.name.clone(),
            rows => report.figures.rows,
            sources => report.sources.join("; "),
            agreement => maybe(report.figures.agreement),
            meaning => report.meaning_of_agreement(),
            broken => report.thresholds.iter().filter(|verdict| !verdict.holds).count(),
            thresholds,
            sides => Value::from(Serde(report.side_lines())),
            figures => Value::from(Serde(report.figure_lines())),
            plots => Value::from(Serde(plots)),
            least_alike,
            // Embeddings say nothing to a reader.
            answers => report.task != Task::Embed,
            failed => Value::from(Serde(&report.findings.failed)),
            notes => report.notes.clone(),
        },
    )
}
