//! What a generation sends out, piece by piece.

use std::time::Duration;

use crate::{admission::Escalation, quality::drift::Anomalies};

/// What was generated of one continuation since the piece before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// Which continuation, from 0.
    pub index: u32,
    /// Whether this is the echoed prompt, which comes before what is generated.
    pub is_prompt: bool,
    /// Never ends inside a character; may be empty while one is under way, or while what may become
    /// a stop text is held back.
    pub text: String,
    /// The tokens behind it. Those behind held back text are here already.
    pub tokens: Vec<PieceToken>,
    /// Set in a continuation's last piece.
    pub finish: Option<Finish>,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct PieceToken {
    /// Its id.
    pub id: u32,
    /// Its bytes, which may be part of a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability that the model gave it; `None` for a prompt's first.
    pub logprob: Option<f32>,
    /// The most likely tokens in its place, best first.
    pub alternatives: Vec<Alternative>,
}

/// A token that could have stood there.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// Its id.
    pub id: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Why a continuation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The model's own end token, or one of the request's.
    Token(u32),
    /// A stop text.
    Text(String),
    /// The constraint allows nothing more.
    Constraint,
    /// As many tokens as were asked for, or as the context takes.
    Length,
}

/// How a continuation ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why.
    pub ending: Ending,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// Prompt tokens whose keys and values were found in the cache.
    pub cached_tokens: u32,
    /// Whether nothing was generated: the whole answer was kept.
    pub cached: bool,
    /// Geometric mean of the tokens' probabilities: e to the mean log-probability.
    pub confidence: f32,
    /// Who generated it, where the model that was asked was not sure.
    pub escalation: Option<Box<Escalation>>,
    /// Whether its text was taken back, since its confidence is too low.
    pub abstained: bool,
    /// In which ways the prompt is far from the version's baseline although the model is sure.
    pub anomalies: Anomalies,
    /// From the request's arrival to this continuation's first token.
    pub first_token: Duration,
}

impl Ending {
    /// Whether the model came to an end, rather than being cut off.
    pub fn is_stop(&self) -> bool {
        !matches!(self, Self::Length)
    }
}

impl PieceToken {
    /// Its bytes as text; what is not a whole character shows as U+FFFD.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Alternative {
    /// Its bytes as text; what is not a whole character shows as U+FFFD.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}
