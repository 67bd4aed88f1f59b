//! The checks that need neither tokenizer nor model: how many rows, how long, of what kind.

use super::WhenUnsure;
use crate::{
    config::{Task, server::LimitsConfig},
    error::RequestError,
    text::{EncodeOptions, RowInput},
};

/// What a call asks for.
#[derive(Debug, Clone)]
pub struct Call {
    /// The model's name; empty for the only one that does `task`.
    pub model: String,
    /// The version's name; empty for the one in service.
    pub version: String,
    /// What the model must do; `None` when the protocol leaves it to the model.
    pub task: Option<Task>,
    /// The rows.
    pub rows: Vec<RowInput>,
    /// How they are cut.
    pub options: EncodeOptions,
    /// Dimensions of an embedding that are wanted; 0 for all.
    pub dimensions: usize,
    /// What becomes of answers that the model is not sure of.
    pub when_unsure: WhenUnsure,
    /// Whether its answers are neither looked up in the response cache nor kept there.
    pub keeps_no_answer: bool,
    /// The field the rows come from, for errors: row 3 is named `field[3]`.
    pub field: &'static str,
}

impl Call {
    /// Checks the request as a whole: that it has rows and not too many, and asks for no more
    /// dimensions than a model's output of `output_size` has.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] naming the field.
    pub fn check(&self, output_size: usize, limits: &LimitsConfig) -> Result<(), RequestError> {
        let rows = self.rows.len();
        if rows == 0 || rows > limits.max_rows {
            return Err(RequestError::invalid(
                self.field,
                format_args!("{rows} rows"),
                format_args!("1 to {} rows", limits.max_rows),
            ));
        }
        if self.options.max_tokens == Some(0) {
            return Err(RequestError::invalid(
                "max_tokens",
                0,
                "1 or more, or leave it out",
            ));
        }
        if self.dimensions > output_size {
            return Err(RequestError::invalid(
                "dimensions",
                self.dimensions,
                format_args!("1 to {output_size}, or 0 for all"),
            ));
        }
        Ok(())
    }

    /// Checks one row: its size, and that it fits what the model takes.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] naming the row.
    pub fn check_row(
        &self,
        index: usize,
        task: Task,
        limits: &LimitsConfig,
    ) -> Result<(), RequestError> {
        let row = &self.rows[index];
        let bytes = row.bytes();
        if bytes > limits.max_text_bytes {
            return Err(RequestError::invalid(
                self.row_name(index),
                format_args!("{bytes} bytes"),
                format_args!("at most {} bytes", limits.max_text_bytes),
            ));
        }
        match (task, row) {
            (Task::Rerank, RowInput::Text(_)) => Err(RequestError::invalid(
                self.row_name(index),
                "one text",
                "a pair of query and document",
            )),
            (Task::Rerank, RowInput::Tokens(_)) => Err(RequestError::invalid(
                self.row_name(index),
                "token ids",
                "a pair of query and document: ids don't tell where the second text begins",
            )),
            (Task::Tokens, RowInput::Tokens(_)) => Err(RequestError::invalid(
                self.row_name(index),
                "token ids",
                "a text: spans need one to point into",
            )),
            _ => Ok(()),
        }
    }

    /// How row `index` is named in errors.
    pub fn row_name(&self, index: usize) -> String {
        format!("{}[{index}]", self.field)
    }
}
