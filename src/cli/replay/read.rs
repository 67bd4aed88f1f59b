//! A request log, as the requests that can be run again.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read as _},
    path::Path,
    time::Duration,
};

use serde::Serialize;

use crate::{
    cli::{
        Failure,
        compare::{
            client::{Answer, Continuation, RowAnswer, Token},
            inputs::{Input, Message, Row},
        },
    },
    config::{Task, request_log::Keep},
    quality::LabelledSpan,
    telemetry::request_log::{Generated, Input as Asked, Line, Output},
};

/// Bytes a line may have.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// A request of the log.
#[derive(Debug)]
pub struct Request {
    /// When it came in, in milliseconds since 1970.
    pub at_ms: f64,
    /// How long it took.
    pub took: Duration,
    /// Its rows, or queries.
    pub inputs: Vec<Input>,
    /// What each was answered.
    pub answers: Vec<RowAnswer>,
    /// Tokens to generate at most.
    pub max_tokens: u32,
    model: String,
    is_drawn: bool,
    is_generated: bool,
}

/// What was in the log.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Counts {
    /// Lines.
    pub read: usize,
    /// Of models that do something else.
    pub other_task: usize,
    /// Without their full input.
    pub not_full: usize,
    /// Of token ids.
    pub token_ids: usize,
    /// That were not answered.
    pub unanswered: usize,
    /// That are none.
    pub wrong: usize,
}

/// A log.
#[derive(Debug)]
pub struct Log {
    /// The requests that can be run, in the order in which they came.
    pub requests: Vec<Request>,
    /// What was in it.
    pub counts: Counts,
}

impl Request {
    /// Whether its answer says something of the model: one that was drawn says more of the dice.
    pub fn is_comparable(&self, model: &str) -> bool {
        !self.is_generated || !self.is_drawn && self.model == model
    }
}

/// Reads at most `limit` lines for models of `task`.
///
/// # Errors
/// When the file can't be read.
pub fn read(path: &Path, task: Task, limit: usize) -> Result<Log, Failure> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut reader = BufReader::new(File::open(path).map_err(|error| named(&error))?);
    let mut counts = Counts::default();
    let mut requests = Vec::new();
    let mut bytes = Vec::new();
    while counts.read < limit {
        bytes.clear();
        let read = reader
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut bytes)
            .map_err(|error| named(&error))?;
        if read == 0 {
            break;
        }
        counts.read += 1;
        let Ok(line) = serde_json::from_slice::<Line>(&bytes) else {
            counts.wrong += 1;
            continue;
        };
        requests.extend(understand(line, counts.read, task, &mut counts));
    }
    if counts.wrong > 0 && counts.wrong == counts.read {
        return Err(named(&"no line of it is one of a request log").into());
    }
    // Lines are written when requests end.
    requests.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
    Ok(Log { requests, counts })
}

fn understand(line: Line, number: usize, task: Task, counts: &mut Counts) -> Option<Request> {
    if line.task != task.to_string() {
        counts.other_task += 1;
        return None;
    }
    if line.code != "OK" {
        counts.unanswered += 1;
        return None;
    }
    if line.inputs != Keep::Full {
        counts.not_full += 1;
        return None;
    }
    let rows = match line.input {
        Asked::Texts(texts) if task == Task::Generate => {
            texts.into_iter().map(Row::Prompt).collect()
        }
        Asked::Texts(texts) => texts.into_iter().map(Row::Text).collect(),
        Asked::Pairs(pairs) => queries(pairs),
        Asked::Messages(messages) => {
            let messages = messages.into_iter().map(|message| Message {
                role: message.role,
                content: message.content,
            });
            vec![Row::Chat(messages.collect())]
        }
        Asked::Tokens(_) => {
            counts.token_ids += 1;
            return None;
        }
        Asked::Hashes(_) | Asked::Omitted {} => {
            counts.not_full += 1;
            return None;
        }
    };
    let generated = match &line.output {
        Output::Generated(texts) => texts.first().map_or(0, |text| text.tokens.len()),
        _ => 0,
    };
    let asked = line
        .sampling
        .as_ref()
        .and_then(|sampling| sampling.max_tokens);
    let answers = answers_of(line.output, &rows);
    let is_drawn = line
        .sampling
        .is_some_and(|sampling| sampling.temperature > 1e-5 || sampling.n > 1);
    let inputs: Vec<Input> = rows
        .into_iter()
        .map(|row| Input { line: number, row })
        .collect();
    Some(Request {
        at_ms: line.time_ms,
        took: Duration::from_micros(line.times_us.total),
        inputs,
        answers,
        max_tokens: asked.unwrap_or((generated as u32).max(1)),
        model: line.model,
        is_drawn,
        is_generated: task == Task::Generate,
    })
}

/// Pairs of one query after the other are that query's documents.
fn queries(pairs: Vec<(String, String)>) -> Vec<Row> {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (query, document) in pairs {
        match rows.last_mut() {
            Some((last, documents)) if *last == query => documents.push(document),
            _ => rows.push((query, vec![document])),
        }
    }
    rows.into_iter()
        .map(|(query, documents)| Row::Query { query, documents })
        .collect()
}

/// What each row was answered; none where the output was not kept.
fn answers_of(output: Output, rows: &[Row]) -> Vec<RowAnswer> {
    fn each<T>(rows: Vec<Option<T>>, answer: impl Fn(T) -> Answer) -> Vec<RowAnswer> {
        rows.into_iter()
            .map(|row| row.map(&answer).ok_or_else(|| "failed".to_owned()))
            .collect()
    }
    match output {
        Output::Vectors(rows) => each(rows, Answer::Vector),
        Output::Classes(rows) => each(rows, |classes| {
            Answer::Classes(
                classes
                    .into_iter()
                    .map(|class| (class.0, class.1))
                    .collect(),
            )
        }),
        Output::Spans(rows) => each(rows, |spans| {
            let spans = spans.into_iter().map(|span| LabelledSpan {
                label: span.label,
                start: span.start,
                end: span.end,
                confidence: span.confidence,
            });
            Answer::Spans(spans.collect())
        }),
        Output::Scores(scores) => {
            let mut scores = scores.into_iter();
            rows.iter()
                .map(|row| {
                    let scores: Option<Vec<f32>> = scores.by_ref().take(row.size()).collect();
                    scores
                        .map(Answer::Scores)
                        .ok_or_else(|| "failed".to_owned())
                })
                .collect()
        }
        Output::Generated(texts) => texts
            .into_iter()
            .take(1)
            .map(continuation)
            .map(Ok)
            .collect(),
        Output::Hash(_) | Output::Omitted {} => Vec::new(),
    }
}

fn continuation(text: Generated) -> Answer {
    let tokens = text.tokens.into_iter().map(|id| Token {
        id,
        text: String::new(),
        logprob: None,
        top: Vec::new(),
    });
    Answer::Text(Continuation {
        tokens: tokens.collect(),
        text: text.text,
        ..Continuation::default()
    })
}
