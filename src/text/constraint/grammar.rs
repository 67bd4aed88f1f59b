//! What an output can be held to, as a grammar.

use std::fmt::Write;

use llguidance::api::TopLevelGrammar;
use serde_json::{Value as Json, json};

use super::ConstraintError;

/// Bytes that a schema, a pattern or a grammar may have.
const MAX_BYTES: usize = 256 << 10;
/// Bytes that all choices may have.
const MAX_CHOICE_BYTES: usize = 64 << 10;

/// The form of an output.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// JSON that a schema accepts.
    JsonSchema(Json),
    /// Any JSON object.
    JsonObject,
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a context-free grammar, in the syntax of the Lark parser.
    Lark(String),
}

impl Constraint {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "JSON schema",
            Self::JsonObject => "JSON object",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "list of choices",
            Self::Lark(_) => "grammar",
        }
    }

    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, ConstraintError> {
        let kind = self.kind();
        let check = |found: usize, allowed: usize| {
            (found <= allowed)
                .then_some(())
                .ok_or(ConstraintError::TooLarge {
                    kind,
                    found,
                    allowed,
                })
        };
        Ok(match self {
            Self::JsonSchema(schema) => {
                check(schema.to_string().len(), MAX_BYTES)?;
                TopLevelGrammar::from_json_schema(schema.clone())
            }
            Self::JsonObject => TopLevelGrammar::from_json_schema(json!({"type": "object"})),
            Self::Regex(pattern) => {
                check(pattern.len(), MAX_BYTES)?;
                TopLevelGrammar::from_regex(pattern)
            }
            Self::Choice(choices) => {
                check(choices.iter().map(String::len).sum(), MAX_CHOICE_BYTES)?;
                if choices.is_empty() || choices.contains(&String::new()) {
                    let reason = "at least one choice is needed, and none may be empty".into();
                    return Err(ConstraintError::Invalid { kind, reason });
                }
                TopLevelGrammar::from_regex(&any_of(choices))
            }
            Self::Lark(grammar) => {
                check(grammar.len(), MAX_BYTES)?;
                TopLevelGrammar::from_lark(grammar.clone())
            }
        })
    }
}

/// A regular expression that matches just these texts.
fn any_of(choices: &[String]) -> String {
    let mut pattern = String::new();
    for choice in choices {
        pattern.push(if pattern.is_empty() { '(' } else { '|' });
        for letter in choice.chars() {
            if letter.is_alphanumeric() || letter == ' ' {
                pattern.push(letter);
            } else {
                // Writing to a string can't fail.
                let _ = write!(pattern, r"\x{{{:X}}}", u32::from(letter));
            }
        }
    }
    pattern.push(')');
    pattern
}
