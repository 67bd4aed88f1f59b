//! Rows of jobs, between the protocols and the room that keeps them: how they are read, how they are
//! run, how their results are told.

mod results;
mod rows;
mod run;
mod submit;

pub use results::{json_line, typed_result};
pub use rows::{read_line, read_row};
pub use run::row_runner;
pub use submit::{check_row, submitter};
