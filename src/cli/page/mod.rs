//! What the reports of commands are made of: pages of one HTML file that needs nothing else (no script,
//! no font, no address), pictures, tables for a terminal, numbers.

pub mod escape;
mod lines;
mod number;
pub mod svg;
mod table;

use minijinja::{Environment, Value};
use serde::Serialize;

pub use self::{
    escape::xml,
    lines::{Chart, Level, Series},
    number::{NOT_MEASURED, maybe, number},
    table::aligned,
};
use super::Failure;

/// A picture.
#[derive(Debug, Serialize)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The picture.
    pub svg: String,
}

/// A page whose blocks `title` and `main` a template fills. Everything is escaped as it is put in, but
/// for what the template says is safe.
///
/// # Errors
/// When the template is wrong.
pub fn render(template: &str, values: Value) -> Result<String, Failure> {
    let mut environment = Environment::new();
    // The names' ends tell minijinja to escape what is put in.
    environment.add_template("base.html", include_str!("base.html"))?;
    environment.add_template("page.html", template)?;
    Ok(environment.get_template("page.html")?.render(values)?)
}
