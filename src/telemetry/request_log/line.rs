//! What a line holds: written by the server, read by `ferry replay`.

use serde::{Deserialize, Serialize};

use crate::config::request_log::Keep;

/// A request and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When it came in, in milliseconds since 1970.
    pub time_ms: f64,
    /// Its trace, where it was traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// By which protocol it came.
    pub endpoint: String,
    /// Whose it was.
    pub tenant: String,
    /// What the model does.
    pub task: String,
    /// The model that answered, or was to.
    pub model: String,
    /// Its version.
    pub version: String,
    /// The gRPC code's name.
    pub code: String,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether nothing was run, since the answer was known.
    pub cached: bool,
    /// The least confidence of its rows, of models that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// Tokens that were read.
    pub input_tokens: u64,
    /// Tokens that were generated.
    pub output_tokens: u64,
    /// Where its time went.
    pub times_us: Times,
    /// How the input is kept: only `full` can be run again.
    pub inputs: Keep,
    /// What was asked.
    pub input: Input,
    /// How tokens were drawn, of models that generate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// How the output is kept.
    pub outputs: Keep,
    /// What was answered.
    pub output: Output,
}

/// Where a request's time went, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// From its headers to its answer.
    pub total: u64,
    /// Being tokenized.
    pub tokenize: u64,
    /// Waiting to board; until its first token, of models that generate.
    pub queue: u64,
    /// In the batch; from the first token to the last, of models that generate.
    pub execute: u64,
    /// From the model's output to the answer.
    pub postprocess: u64,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Texts, a row each; or a prompt.
    Texts(Vec<String>),
    /// Queries and documents, a row each.
    Pairs(Vec<(String, String)>),
    /// Token ids, a row each.
    Tokens(Vec<Vec<u32>>),
    /// A conversation.
    Messages(Vec<Message>),
    /// Hashes in the place of texts.
    Hashes(Vec<String>),
    /// Not kept.
    Omitted {},
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: String,
    /// What they say.
    pub content: String,
}

/// How tokens were drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Tokens at most; `None` where the request did not say.
    pub max_tokens: Option<u32>,
    /// 0 for the most likely token always.
    pub temperature: f32,
    /// Continuations.
    pub n: u32,
}

/// What was answered. A row that failed has `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// Embeddings.
    Vectors(Vec<Option<Vec<f32>>>),
    /// Labels with probabilities, best first.
    Classes(Vec<Option<Vec<Class>>>),
    /// Scores of relevance.
    Scores(Vec<Option<f32>>),
    /// Labelled spans.
    Spans(Vec<Option<Vec<Span>>>),
    /// Continuations.
    Generated(Vec<Generated>),
    /// A hash in its place.
    Hash(String),
    /// Not kept, or none.
    Omitted {},
}

/// A label and its probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Class(pub String, pub f32);

/// A labelled span, in characters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Its label.
    pub label: String,
    /// Where it starts.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// How sure the model is.
    pub confidence: f32,
}

/// A continuation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// Its text.
    pub text: String,
    /// Its tokens; none where its text is not kept in full.
    pub tokens: Vec<u32>,
    /// Whether the model came to an end, rather than being cut off.
    pub stopped: bool,
}

impl Line {
    /// Bytes that it takes while it waits, about.
    pub fn bytes(&self) -> usize {
        let input = match &self.input {
            Input::Texts(texts) | Input::Hashes(texts) => texts.iter().map(String::len).sum(),
            Input::Pairs(pairs) => pairs.iter().map(|(a, b)| a.len() + b.len()).sum(),
            Input::Tokens(rows) => rows.iter().map(|row| row.len() * 4).sum(),
            Input::Messages(messages) => messages
                .iter()
                .map(|message| message.role.len() + message.content.len())
                .sum(),
            Input::Omitted {} => 0,
        };
        let output: usize = match &self.output {
            Output::Vectors(rows) => rows.iter().flatten().map(|row| row.len() * 4).sum(),
            Output::Classes(rows) => rows
                .iter()
                .flatten()
                .flatten()
                .map(|class| class.0.len() + 28)
                .sum(),
            Output::Scores(rows) => rows.len() * 8,
            Output::Spans(rows) => rows
                .iter()
                .flatten()
                .flatten()
                .map(|span| span.label.len() + 48)
                .sum(),
            Output::Generated(texts) => texts
                .iter()
                .map(|text| text.text.len() + text.tokens.len() * 4)
                .sum(),
            Output::Hash(hash) => hash.len(),
            Output::Omitted {} => 0,
        };
        512 + input + output
    }
}
