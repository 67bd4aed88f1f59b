//! The report as one HTML file that needs nothing else: no script, no font, no address.

use minijinja::{Environment, context};

use super::{plot::reliability, report::Report};
use crate::cli::Failure;

/// The page. Everything but the plots is escaped as it is put in.
///
/// # Errors
/// When the template is wrong.
pub fn page(report: &Report<'_>) -> Result<String, Failure> {
    let mut environment = Environment::new();
    // The name's end tells minijinja to escape what is put in.
    environment.add_template("page.html", include_str!("page.html"))?;
    let record = report.record;
    let lines: Vec<_> = report
        .lines()
        .into_iter()
        .map(|line| {
            context! {
                name => line.name,
                before => format!("{:.4}", line.before),
                after => format!("{:.4}", line.after),
            }
        })
        .collect();
    Ok(environment.get_template("page.html")?.render(context! {
        model => record.model.clone(),
        version => record.version.clone(),
        made_by => record.made_by.clone(),
        source => report.source.clone(),
        fitted_rows => record.fitted_rows,
        held_out => record.after.rows,
        fitted => report.fitted(),
        ece_before => format!("{:.4}", record.before.ece),
        ece_after => format!("{:.4}", record.after.ece),
        lines,
        before => reliability("Before", &record.before),
        after => reliability("After", &record.after),
    })?)
}
