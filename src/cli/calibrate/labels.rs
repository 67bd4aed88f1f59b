//! The file of labelled rows.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use serde::Deserialize;

use crate::{
    cli::Failure,
    config::{Activation, Task},
    repository::ServedModel,
    text::RowInput,
};

/// Bytes a line may have.
const MAX_LINE_BYTES: u64 = 4 << 20;

/// A row whose answer is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// Its line in the file, from 1.
    pub line: usize,
    /// The row.
    pub input: RowInput,
    /// Which of the model's labels hold.
    pub truth: Vec<bool>,
}

/// A JSON line. Other keys may stand beside these.
#[derive(Debug, Deserialize)]
struct Line {
    text: Option<String>,
    query: Option<String>,
    document: Option<String>,
    label: Option<Label>,
    labels: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Label {
    Named(String),
    Holds(bool),
    Number(i64),
}

/// Reads at most `limit` rows for a model.
///
/// # Errors
/// When the file can't be read, or naming the first line that is wrong and what is.
pub fn read(path: &Path, model: &ServedModel, limit: usize) -> Result<Vec<Known>, Failure> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| named(&error))?;
    let mut reader = BufReader::new(file);
    let mut rows = Vec::new();
    let mut text = String::new();
    for line in 1.. {
        text.clear();
        let wrong = |what: &dyn std::fmt::Display| {
            Failure::from(format!("{} line {line}: {what}", path.display()))
        };
        let mut bounded = reader.by_ref().take(MAX_LINE_BYTES);
        let read = bounded
            .read_line(&mut text)
            .map_err(|error| wrong(&error))?;
        if read == 0 || rows.len() == limit {
            break;
        }
        if read as u64 == MAX_LINE_BYTES {
            return Err(wrong(&format_args!("longer than {MAX_LINE_BYTES} bytes")));
        }
        if text.trim().is_empty() {
            continue;
        }
        let parsed: Line = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        let (input, truth) = match model.task() {
            Task::Rerank => parsed.into_pair(),
            _ => parsed.into_text(&model.labels, model.activation),
        }
        .map_err(|what| wrong(&what))?;
        rows.push(Known { line, input, truth });
    }
    if rows.is_empty() {
        return Err(named(&"no rows").into());
    }
    Ok(rows)
}

impl Line {
    fn into_pair(self) -> Result<(RowInput, Vec<bool>), String> {
        let (Some(query), Some(document)) = (self.query, self.document) else {
            return Err("a reranker's row wants \"query\" and \"document\"".to_owned());
        };
        let holds = match self.label {
            Some(Label::Holds(holds)) => holds,
            Some(Label::Number(number @ 0..=1)) => number == 1,
            _ => return Err("a reranker's \"label\" is 0 or 1, false or true".to_owned()),
        };
        Ok((RowInput::Pair(query, document), vec![holds]))
    }

    fn into_text(
        self,
        labels: &[String],
        activation: Activation,
    ) -> Result<(RowInput, Vec<bool>), String> {
        let Some(text) = self.text else {
            return Err("a classifier's row wants \"text\"".to_owned());
        };
        let holding = match (self.label, self.labels) {
            (Some(Label::Named(label)), None) => vec![label],
            (None, Some(labels)) if activation == Activation::Sigmoid || labels.len() == 1 => {
                labels
            }
            (None, Some(labels)) => {
                return Err(format!(
                    "{} labels; exactly one holds with this model (softmax)",
                    labels.len()
                ));
            }
            (Some(Label::Holds(_) | Label::Number(_)), None) => {
                return Err("\"label\" is the name of a label".to_owned());
            }
            _ => return Err("a classifier's row wants \"label\" or \"labels\"".to_owned()),
        };
        let mut truth = vec![false; labels.len()];
        for label in holding {
            let place = labels.iter().position(|known| *known == label);
            let place = place.ok_or_else(|| {
                let known = labels.join(", ");
                format!("label '{label}' is none of the model's: {known}")
            })?;
            truth[place] = true;
        }
        Ok((RowInput::Text(text), truth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: &str) -> Line {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn labels_are_read_by_name_and_pairs_by_whether_they_fit() {
        let names = ["a", "b"].map(String::from);
        let softmax = Activation::Softmax;
        let (_, truth) = line(r#"{"text":"x","label":"b","id":7}"#)
            .into_text(&names, softmax)
            .unwrap();
        assert_eq!(truth, [false, true]);
        let (_, truth) = line(r#"{"text":"x","labels":[]}"#)
            .into_text(&names, Activation::Sigmoid)
            .unwrap();
        assert_eq!(truth, [false, false]);
        for (json, holds) in [
            (r#"{"query":"q","document":"d","label":1}"#, true),
            (r#"{"query":"q","document":"d","label":false}"#, false),
        ] {
            assert_eq!(line(json).into_pair().unwrap().1, [holds]);
        }
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said() {
        let names = ["a", "b"].map(String::from);
        for (json, says) in [
            (
                r#"{"text":"x","label":"c"}"#,
                "'c' is none of the model's: a, b",
            ),
            (r#"{"text":"x","label":1}"#, "name of a label"),
            (r#"{"text":"x"}"#, "\"label\" or \"labels\""),
            (r#"{"label":"a"}"#, "\"text\""),
            (r#"{"text":"x","labels":["a","b"]}"#, "exactly one"),
        ] {
            let error = line(json)
                .into_text(&names, Activation::Softmax)
                .unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let error = line(r#"{"query":"q","document":"d","label":"yes"}"#).into_pair();
        assert!(error.unwrap_err().contains("0 or 1"));
    }
}
