//! What every answer of a generation has in common: its envelope, its usage, and what is gathered
//! of a continuation until it is whole.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{
    admission::{Finish, Piece, PieceToken},
    repository::ServedModel,
};

/// How one of OpenAI's two surfaces writes what is generated.
pub trait Surface: Send + 'static {
    /// How its answers' ids begin.
    const ID: &'static str;
    /// The `object` of a whole answer.
    const ANSWER: &'static str;
    /// The `object` of a chunk of a stream.
    const CHUNK: &'static str;

    /// Whether the tokens behind the text are told.
    fn wants_tokens(&self) -> bool;

    /// Writes the events of a stream that tell a piece of choice `index`; may be none.
    fn write_events(&mut self, index: u32, piece: &Piece, envelope: &Envelope, out: &mut Vec<u8>);

    /// Writes choice `index` of a whole answer.
    fn write_choice(&self, index: u32, gathered: &Gathered, out: &mut Vec<u8>);
}

/// What stands around the choices of an answer or a chunk; written once an answer.
#[derive(Debug)]
pub struct Envelope {
    head: Vec<u8>,
    /// Whether chunks say that the usage is still to come.
    announces_usage: bool,
}

#[derive(Serialize)]
struct Head<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
}

/// Tokens that went in and came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_field_names, reason = "OpenAI's names")]
pub struct Usage {
    /// Tokens of the prompts, each counted once however many continuations it has.
    pub prompt_tokens: u64,
    /// Of these, found in the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
}

#[derive(Serialize)]
struct UsageJson {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

/// A continuation as far as it has come.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Its text.
    pub text: String,
    /// The tokens behind it, where they are told.
    pub tokens: Vec<PieceToken>,
    /// How it ended.
    pub finish: Option<Finish>,
}

impl Gathered {
    /// Adds what was generated since.
    pub fn add(&mut self, piece: Piece, with_tokens: bool) {
        if self.text.is_empty() {
            self.text = piece.text;
        } else {
            self.text.push_str(&piece.text);
        }
        if with_tokens {
            self.tokens.extend(piece.tokens);
        }
        self.finish = piece.finish.or(self.finish.take());
    }
}

impl Envelope {
    /// The envelope of `object` by `model`.
    pub fn new(id: &str, object: &'static str, model: &ServedModel, announces_usage: bool) -> Self {
        let head = Head {
            id,
            object,
            created: unix_seconds(SystemTime::now()),
            model: &model.name,
            system_fingerprint: &fingerprint(model),
        };
        Self::with_head(&head, announces_usage)
    }

    fn with_head(head: &Head<'_>, announces_usage: bool) -> Self {
        let mut json = Vec::with_capacity(192);
        write_json(&mut json, head);
        // Left open: the choices follow.
        json.pop();
        Self {
            head: json,
            announces_usage,
        }
    }

    /// Writes an event with one choice.
    pub fn write_chunk(&self, choice: &impl Serialize, out: &mut Vec<u8>) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b",\"choices\":[");
        write_json(out, choice);
        out.extend_from_slice(if self.announces_usage {
            b"],\"usage\":null}\n\n"
        } else {
            b"]}\n\n"
        });
    }

    /// Writes the event that tells the usage, without choices.
    pub fn write_usage_chunk(&self, usage: Usage, out: &mut Vec<u8>) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b",\"choices\":[],\"usage\":");
        usage.write(out);
        out.extend_from_slice(b"}\n\n");
    }

    /// A whole answer.
    pub fn answer(&self, surface: &impl Surface, choices: &[Gathered], usage: Usage) -> Vec<u8> {
        let text: usize = choices.iter().map(|choice| choice.text.len() + 128).sum();
        let mut out = Vec::with_capacity(self.head.len() + text + 192);
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b",\"choices\":[");
        for (index, choice) in choices.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            surface.write_choice(index as u32, choice, &mut out);
        }
        out.extend_from_slice(b"],\"usage\":");
        usage.write(&mut out);
        out.push(b'}');
        out
    }
}

impl Usage {
    fn write(self, out: &mut Vec<u8>) {
        let json = UsageJson {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            total_tokens: self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details: PromptDetails {
                cached_tokens: self.cached_tokens,
            },
        };
        write_json(out, &json);
    }
}

/// Appends `value` as JSON.
pub fn write_json(out: &mut Vec<u8>, value: &impl Serialize) {
    // A vector takes every byte, and the types here have only names for keys.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "{written:?}");
}

/// OpenAI's word for how a continuation ended.
pub fn finish_reason(finish: &Finish) -> &'static str {
    if finish.ending.is_stop() {
        "stop"
    } else {
        "length"
    }
}

/// What OpenAI's clients may compare to know that the backend has changed.
pub fn fingerprint(model: &ServedModel) -> String {
    format!("ferry-{}-{}", env!("CARGO_PKG_VERSION"), model.version)
}

/// A time as OpenAI tells it.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// An id that no other answer of this process or, all but surely, of another has.
pub fn new_id(prefix: &str) -> String {
    static KEYS: OnceLock<[RandomState; 2]> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let keys = KEYS.get_or_init(|| [RandomState::new(), RandomState::new()]);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [high, low] = [keys[0].hash_one(number), keys[1].hash_one(number)];
    format!("{prefix}-{high:016x}{low:016x}")
}

/// The headers that tell which model answered.
pub fn model_headers(model: &Arc<ServedModel>) -> [(&'static str, String); 1] {
    [("x-ferry-model-version", model.version.clone())]
}

/// The header that tells whether nothing was run for an answer; none where the model keeps no
/// answers.
pub fn cached_header(cached: Option<bool>) -> Option<[(&'static str, &'static str); 1]> {
    cached.map(|cached| [("x-ferry-cached", if cached { "true" } else { "false" })])
}

/// The header that tells how many rows another model answered, since the one asked was not sure.
pub fn escalated_header(rows: usize) -> Option<[(&'static str, String); 1]> {
    (rows > 0).then(|| [("x-ferry-escalated-rows", rows.to_string())])
}

/// The header that tells how many rows are far from what is usual for their model.
pub fn anomalous_header(rows: usize) -> Option<[(&'static str, String); 1]> {
    (rows > 0).then(|| [("x-ferry-anomalous-rows", rows.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(announces_usage: bool) -> Envelope {
        let head = Head {
            id: "cmpl-1",
            object: "text_completion",
            created: 7,
            model: "tiny",
            system_fingerprint: "ferry-0-1",
        };
        Envelope::with_head(&head, announces_usage)
    }

    #[test]
    fn a_chunk_is_one_event_with_one_choice() {
        let mut out = Vec::new();
        envelope(false).write_chunk(&"choice", &mut out);
        let head = r#"{"id":"cmpl-1","object":"text_completion","created":7,"model":"tiny","system_fingerprint":"ferry-0-1""#;
        let wanted = format!("data: {head},\"choices\":[\"choice\"]}}\n\n");
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }

    #[test]
    fn usage_is_announced_in_every_chunk_and_told_in_the_last() {
        let mut out = Vec::new();
        envelope(true).write_chunk(&"choice", &mut out);
        assert!(out.ends_with(b"\"choices\":[\"choice\"],\"usage\":null}\n\n"));
        let usage = Usage {
            prompt_tokens: 5,
            cached_tokens: 4,
            completion_tokens: 2,
        };
        let mut out = Vec::new();
        envelope(true).write_usage_chunk(usage, &mut out);
        let text = String::from_utf8(out).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text["data: ".len()..]).unwrap();
        assert_eq!(json["choices"], serde_json::json!([]));
        assert_eq!(json["usage"]["total_tokens"], 7);
        assert_eq!(json["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
    }

    #[test]
    fn ids_differ() {
        assert_ne!(new_id("a"), new_id("a"));
        assert_eq!(new_id("a").len(), 34);
    }
}
