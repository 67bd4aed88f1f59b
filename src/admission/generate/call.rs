//! What a call to generate asks for.

use crate::{
    admission::WhenUnsure,
    generation::SamplingParameters,
    text::{ChatMessage, Constraint},
};

/// Continuations of one prompt at most.
pub const MAX_CONTINUATIONS: u32 = 64;

/// What is to be continued.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text; special tokens in it are recognised, and the beginning-of-sequence token is added
    /// where the model wants one.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
    /// A conversation, rendered by the model's chat template.
    Chat {
        /// The messages so far.
        messages: Vec<ChatMessage>,
        /// Tools the model may call, as the template wants them; null for none.
        tools: serde_json::Value,
        /// Further variables for the template; null for none.
        variables: serde_json::Value,
    },
}

/// What a call to generate asks for.
#[derive(Debug, Clone)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "one switch of the protocols each"
)]
pub struct GenerateCall {
    /// The model's name; empty for the only one that generates.
    pub model: String,
    /// The version's name; empty for the one in service.
    pub version: String,
    /// What is to be continued.
    pub prompt: Prompt,
    /// Tokens to generate at most; `None` for what the manifest says or the context leaves.
    pub max_tokens: Option<u32>,
    /// How tokens are drawn. Its `seed` is that of the first continuation.
    pub sampling: SamplingParameters,
    /// Texts that end the generation and are not sent.
    pub stop: Vec<String>,
    /// Whether the stop text is sent after all.
    pub include_stop: bool,
    /// Tokens that end the generation, beside the model's own.
    pub stop_tokens: Vec<u32>,
    /// Whether the model's own end tokens are generated like others.
    pub ignore_eos: bool,
    /// Independent continuations, 1 to [`MAX_CONTINUATIONS`].
    pub continuations: u32,
    /// Whether the prompt comes first, as a piece of its own.
    pub echo: bool,
    /// Whether an echoed prompt's tokens are scored.
    pub score_prompt: bool,
    /// Whether special tokens are written out in the text.
    pub keep_special_tokens: bool,
    /// The form the text must have.
    pub constraint: Option<Constraint>,
    /// Whether it goes out when it is complete, not piece by piece.
    pub whole: bool,
    /// What becomes of continuations that the model is not sure of, where they go out whole.
    pub when_unsure: WhenUnsure,
    /// The confidence that is wanted.
    pub min_confidence: f32,
}

impl GenerateCall {
    /// A call for `model` to continue `prompt`, everything else at its default.
    pub fn new(model: String, prompt: Prompt) -> Self {
        Self {
            model,
            version: String::new(),
            prompt,
            max_tokens: None,
            sampling: SamplingParameters::default(),
            stop: Vec::new(),
            include_stop: false,
            stop_tokens: Vec::new(),
            ignore_eos: false,
            continuations: 1,
            echo: false,
            score_prompt: false,
            keep_special_tokens: false,
            constraint: None,
            whole: false,
            when_unsure: WhenUnsure::default(),
            min_confidence: 0.0,
        }
    }
}
