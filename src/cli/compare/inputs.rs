//! The file of inputs: JSON objects or plain texts, one a line.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use serde::Deserialize;

use crate::{cli::Failure, config::Task};

/// Bytes a line may have.
const MAX_LINE_BYTES: u64 = 4 << 20;

/// One line's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Its line in the file, from 1.
    pub line: usize,
    /// What both sides are asked.
    pub row: Row,
}

/// What both sides are asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A text to embed or classify.
    Text(String),
    /// Documents to score for a query.
    Query {
        /// The query.
        query: String,
        /// Its documents.
        documents: Vec<String>,
    },
    /// A text to continue.
    Prompt(String),
    /// A conversation to continue.
    Chat(Vec<Message>),
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: String,
    /// What they say.
    pub content: String,
}

/// What was read.
#[derive(Debug, PartialEq)]
pub struct Inputs {
    /// The inputs, at most as many as were asked for.
    pub rows: Vec<Input>,
    /// Whether the file has more.
    pub has_more: bool,
}

/// A JSON line. Other keys may stand beside these: data sets have ids and labels.
#[derive(Debug, Deserialize)]
struct Line {
    text: Option<String>,
    query: Option<String>,
    documents: Option<Vec<String>>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
}

impl Row {
    /// What stands for it in a report.
    pub fn describe(&self) -> &str {
        match self {
            Self::Text(text) | Self::Prompt(text) => text,
            Self::Query { query, .. } => query,
            Self::Chat(messages) => messages.last().map_or("", |last| &last.content),
        }
    }

    /// Rows of a batch that it makes.
    pub fn size(&self) -> usize {
        match self {
            Self::Query { documents, .. } => documents.len(),
            _ => 1,
        }
    }
}

/// Reads at most `limit` inputs for models of `task`: JSON where the file is named `*.jsonl` or
/// `*.ndjson`, else plain texts. Empty lines are passed over.
///
/// # Errors
/// When the file can't be read, or naming the first line that is wrong and what is.
pub fn read(path: &Path, task: Task, limit: usize) -> Result<Inputs, Failure> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| named(&error))?;
    let json = path
        .extension()
        .is_some_and(|end| end == "jsonl" || end == "ndjson");
    let mut reader = BufReader::new(file);
    let mut inputs = Inputs {
        rows: Vec::new(),
        has_more: false,
    };
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let mut bounded = reader.by_ref().take(MAX_LINE_BYTES);
        let wrong = |what: &dyn std::fmt::Display| {
            Failure::from(format!("{} line {line}: {what}", path.display()))
        };
        if bounded
            .read_until(b'\n', &mut bytes)
            .map_err(|error| named(&error))?
            == 0
        {
            break;
        }
        if bytes.len() as u64 == MAX_LINE_BYTES {
            return Err(wrong(&format_args!("longer than {MAX_LINE_BYTES} bytes")));
        }
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            wrong(&format_args!(
                "not UTF-8 (byte {})",
                error.valid_up_to() + 1
            ))
        })?;
        let text = text.trim_end_matches(['\n', '\r']);
        if text.trim().is_empty() {
            continue;
        }
        if inputs.rows.len() == limit {
            inputs.has_more = true;
            break;
        }
        let row = if json {
            let parsed: Line = serde_json::from_str(text).map_err(|error| wrong(&error))?;
            parsed.into_row(task)
        } else {
            plain(text, task)
        };
        let row = row.map_err(|what| wrong(&what))?;
        inputs.rows.push(Input { line, row });
    }
    if inputs.rows.is_empty() {
        return Err(named(&"no inputs").into());
    }
    Ok(inputs)
}

fn plain(text: &str, task: Task) -> Result<Row, String> {
    match task {
        Task::Rerank => Err(
            "a plain text; rerank wants {\"query\":…,\"documents\":[…]} in a .jsonl file".into(),
        ),
        Task::Generate => Ok(Row::Prompt(text.to_owned())),
        _ => Ok(Row::Text(text.to_owned())),
    }
}

impl Line {
    fn into_row(self, task: Task) -> Result<Row, String> {
        let wants = |what: &str| format!("{task} wants {what}");
        match task {
            Task::Rerank => {
                let (Some(query), Some(documents)) = (self.query, self.documents) else {
                    return Err(wants("\"query\" and \"documents\""));
                };
                if documents.is_empty() {
                    return Err("\"documents\" is empty".to_owned());
                }
                Ok(Row::Query { query, documents })
            }
            Task::Generate => match (self.prompt.or(self.text), self.messages) {
                (Some(prompt), None) => Ok(Row::Prompt(prompt)),
                (None, Some(messages)) if !messages.is_empty() => Ok(Row::Chat(messages)),
                (Some(_), Some(_)) => Err(wants("\"prompt\" or \"messages\", not both")),
                (None, Some(_)) => Err("\"messages\" is empty".to_owned()),
                (None, None) => Err(wants("\"prompt\" or \"messages\"")),
            },
            _ => self.text.map(Row::Text).ok_or_else(|| wants("\"text\"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(name: &str, content: &[u8], task: Task, limit: usize) -> Result<Inputs, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        read(&path, task, limit).map_err(|error| error.to_string())
    }

    #[test]
    fn each_task_has_its_lines() {
        let lines = b"{\"text\": \"a\", \"id\": 7}\n\n{\"text\": \"b\"}\n";
        let inputs = read_as("x.jsonl", lines, Task::Embed, 10).unwrap();
        let found: Vec<_> = inputs.rows.iter().map(|input| input.line).collect();
        assert_eq!(found, [1, 3]);

        let line = b"{\"query\": \"q\", \"documents\": [\"a\", \"b\"]}";
        let inputs = read_as("x.jsonl", line, Task::Rerank, 10).unwrap();
        assert_eq!(inputs.rows[0].row.size(), 2);

        let line = b"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}";
        let inputs = read_as("x.jsonl", line, Task::Generate, 10).unwrap();
        assert_eq!(inputs.rows[0].row.describe(), "hi");

        let inputs = read_as("x.txt", b"one\r\ntwo", Task::Generate, 10).unwrap();
        assert_eq!(inputs.rows[0].row, Row::Prompt("one".to_owned()));
        assert_eq!(inputs.rows[1].row, Row::Prompt("two".to_owned()));
    }

    #[test]
    fn a_line_that_is_wrong_is_named() {
        for (name, content, task, expected) in [
            (
                "x.jsonl",
                &b"{\"text\":\"a\"}\n{\"txt\":\"b\"}"[..],
                Task::Embed,
                "line 2: embed wants \"text\"",
            ),
            (
                "x.jsonl",
                b"{\"text\":\"a\"}\n\n{",
                Task::Embed,
                "line 3: EOF",
            ),
            (
                "x.jsonl",
                b"{\"query\":\"a\",\"documents\":[]}",
                Task::Rerank,
                "line 1: \"documents\" is empty",
            ),
            (
                "x.txt",
                b"a",
                Task::Rerank,
                "line 1: a plain text; rerank wants",
            ),
            (
                "x.txt",
                b"a\n\xff\n",
                Task::Embed,
                "line 2: not UTF-8 (byte 1)",
            ),
            ("x.txt", b"\n \n", Task::Embed, "no inputs"),
            (
                "x.jsonl",
                b"{\"messages\":[]}",
                Task::Generate,
                "line 1: \"messages\" is empty",
            ),
        ] {
            let error = read_as(name, content, task, 10).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn no_more_is_read_than_was_asked_for() {
        let inputs = read_as("x.txt", b"a\nb\nc\n", Task::Embed, 2).unwrap();
        assert_eq!((inputs.rows.len(), inputs.has_more), (2, true));
        let inputs = read_as("x.txt", b"a\nb\n\n", Task::Embed, 2).unwrap();
        assert_eq!((inputs.rows.len(), inputs.has_more), (2, false));
    }
}
