//! What of a line is not to be kept is taken out before it is written.

use std::hash::{BuildHasher as _, Hasher as _};

use regex::Regex;

use super::line::{Generated, Input, Line, Output};
use crate::config::{
    RequestLogConfig,
    request_log::{Keep, RedactRule},
};

/// Takes out what is not to be kept.
#[derive(Debug)]
pub(super) struct Cover {
    inputs: Keep,
    outputs: Keep,
    rules: Vec<(Regex, String)>,
    key: [u8; 32],
}

impl Cover {
    /// What `config` wants.
    ///
    /// # Errors
    /// When a rule's pattern is no regular expression.
    pub(super) fn new(config: &RequestLogConfig) -> Result<Self, regex::Error> {
        let compile = |rule: &RedactRule| Ok((Regex::new(&rule.pattern)?, rule.with.clone()));
        let key = if config.hash_key.is_empty() {
            // The standard library's hash keys are random.
            let random = || {
                let hasher = std::hash::RandomState::new().build_hasher();
                hasher.finish().to_le_bytes()
            };
            [random(), random(), random(), random()].concat()
        } else {
            config.hash_key.reveal().as_bytes().to_vec()
        };
        Ok(Self {
            inputs: config.inputs,
            outputs: config.outputs,
            rules: config
                .redact
                .iter()
                .map(compile)
                .collect::<Result<_, _>>()?,
            key: blake3::derive_key("ferry request log v1", &key),
        })
    }

    /// Covers a line.
    pub(super) fn apply(&self, line: &mut Line) {
        line.inputs = self.inputs;
        line.outputs = self.outputs;
        let input = std::mem::replace(&mut line.input, Input::Omitted {});
        line.input = match self.inputs {
            Keep::Full => input,
            Keep::None => Input::Omitted {},
            Keep::Hashed => Input::Hashes(self.hashes(&input)),
            Keep::Redacted => self.redacted_input(input),
        };
        // An error may quote what was asked.
        if self.inputs != Keep::Full {
            line.error = line.error.take().map(|_| "not kept".to_owned());
        }
        let output = std::mem::replace(&mut line.output, Output::Omitted {});
        line.output = match self.outputs {
            Keep::Full => output,
            Keep::None => Output::Omitted {},
            Keep::Hashed => match serde_json::to_vec(&output) {
                Ok(json) => Output::Hash(self.hash(&json)),
                Err(_) => Output::Omitted {},
            },
            Keep::Redacted => self.redacted_output(output),
        };
    }

    fn redacted_input(&self, input: Input) -> Input {
        match input {
            Input::Texts(texts) => {
                Input::Texts(texts.iter().map(|text| self.redact(text)).collect())
            }
            Input::Pairs(pairs) => Input::Pairs(
                pairs
                    .iter()
                    .map(|(query, document)| (self.redact(query), self.redact(document)))
                    .collect(),
            ),
            Input::Messages(mut messages) => {
                for message in &mut messages {
                    message.content = self.redact(&message.content);
                }
                Input::Messages(messages)
            }
            // No rule sees a text in ids, and yet they tell it.
            Input::Tokens(_) => Input::Hashes(self.hashes(&input)),
            Input::Hashes(_) | Input::Omitted {} => input,
        }
    }

    fn redacted_output(&self, output: Output) -> Output {
        match output {
            Output::Generated(texts) => Output::Generated(
                texts
                    .into_iter()
                    .map(|text| Generated {
                        text: self.redact(&text.text),
                        tokens: Vec::new(),
                        stopped: text.stopped,
                    })
                    .collect(),
            ),
            other => other,
        }
    }

    fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (pattern, with) in &self.rules {
            if let std::borrow::Cow::Owned(replaced) = pattern.replace_all(&text, with.as_str()) {
                text = replaced;
            }
        }
        text
    }

    fn hashes(&self, input: &Input) -> Vec<String> {
        match input {
            Input::Texts(texts) => texts
                .iter()
                .map(|text| self.hash(text.as_bytes()))
                .collect(),
            Input::Pairs(pairs) => pairs
                .iter()
                .map(|(query, document)| {
                    let (query, document) =
                        (self.hash(query.as_bytes()), self.hash(document.as_bytes()));
                    format!("{query} {document}")
                })
                .collect(),
            Input::Tokens(rows) => rows
                .iter()
                .map(|row| self.hash(bytemuck::cast_slice(row)))
                .collect(),
            Input::Messages(messages) => messages
                .iter()
                .map(|message| self.hash(message.content.as_bytes()))
                .collect(),
            Input::Hashes(hashes) => hashes.clone(),
            Input::Omitted {} => Vec::new(),
        }
    }

    fn hash(&self, bytes: &[u8]) -> String {
        blake3::keyed_hash(&self.key, bytes).to_hex()[..32].to_owned()
    }
}
