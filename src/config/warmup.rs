//! The manifest's `[warmup]`: what a version runs before it takes requests.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Task, Violation};

/// Entries of a plan, or of the recorded inputs.
const MAX_ENTRIES: usize = 256;
/// Tokens that one prompt may generate before traffic comes.
const MAX_NEW_TOKENS: u32 = 4096;

/// What runs before a version is ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WarmupConfig {
    /// How often the plan runs; 0 for not at all.
    pub rounds: u32,
    /// Time after which the rest of the plan is left out, in seconds.
    pub seconds: f64,
    /// Batches of made-up tokens. Without any, those that suit the kind of model.
    pub shapes: Vec<WarmupShape>,
    /// Prompts, for models that generate. What begins like one of them finds its keys and values in
    /// the cache, until the space is needed.
    pub prompts: Vec<WarmupPrompt>,
    /// Inputs whose outputs must be as recorded.
    pub canary: CanaryConfig,
}

/// A batch of made-up tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupShape {
    /// Rows of the batch.
    pub rows: usize,
    /// Tokens of each.
    pub tokens: usize,
}

/// A prompt to go on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmupPrompt {
    /// The prompt.
    pub text: String,
    /// Tokens to generate.
    #[serde(default = "few_tokens")]
    pub max_tokens: u32,
}

/// What recorded outputs are compared with, and how closely.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CanaryConfig {
    /// Whether a version without recorded outputs is refused.
    pub required: bool,
    /// What `ferry warm --record` runs. Without any, a few sentences.
    pub inputs: Vec<CanaryInput>,
    /// Least cosine of an embedding with the recorded one; unset leaves it at what was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cosine: Option<f64>,
    /// Largest difference of a logit, score or log-probability; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_difference: Option<f64>,
    /// Least share of the recorded tokens that a generated text begins with; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_equal_tokens: Option<f64>,
}

/// An input whose output is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryInput {
    /// The text; a reranker's document.
    pub text: String,
    /// A reranker's query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// Tokens to generate, for models that do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

fn few_tokens() -> u32 {
    8
}

impl Default for WarmupConfig {
    fn default() -> Self {
        Self {
            rounds: 1,
            seconds: 30.0,
            shapes: Vec::new(),
            prompts: Vec::new(),
            canary: CanaryConfig::default(),
        }
    }
}

impl WarmupConfig {
    /// [`WarmupConfig::seconds`] as a duration.
    pub fn limit(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Checks every value's range, for a model that does `task`.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self, task: Task) -> Result<(), Violation> {
        Violation::unless(self.rounds <= 100, "warmup.rounds", self.rounds, "0 to 100")?;
        Violation::unless(
            (0.0..=3600.0).contains(&self.seconds),
            "warmup.seconds",
            self.seconds,
            "0 to 3600",
        )?;
        let entries = self.shapes.len().max(self.prompts.len());
        Violation::unless(
            entries <= MAX_ENTRIES,
            "warmup",
            format_args!("{entries} entries"),
            "at most 256 shapes and 256 prompts",
        )?;
        let empty = self
            .shapes
            .iter()
            .position(|shape| shape.rows * shape.tokens == 0);
        if let Some(index) = empty {
            let found = format!("shapes[{index}] without tokens");
            return Violation::unless(false, "warmup.shapes", found, "rows and tokens from 1");
        }
        Violation::unless(
            self.prompts.is_empty() || task == Task::Generate,
            "warmup.prompts",
            format_args!("{} prompts", self.prompts.len()),
            "none where the task is not \"generate\"; use warmup.shapes",
        )?;
        let wrong = self.prompts.iter().position(|prompt| {
            prompt.text.is_empty() || !(1..=MAX_NEW_TOKENS).contains(&prompt.max_tokens)
        });
        if let Some(index) = wrong {
            let found = format!("prompts[{index}]");
            let allowed = "a text, and max_tokens from 1 to 4096";
            return Violation::unless(false, "warmup.prompts", found, allowed);
        }
        self.canary.validate(task)
    }
}

impl CanaryConfig {
    fn validate(&self, task: Task) -> Result<(), Violation> {
        Violation::unless(
            self.inputs.len() <= MAX_ENTRIES,
            "warmup.canary.inputs",
            format_args!("{} inputs", self.inputs.len()),
            "at most 256",
        )?;
        let wrong = self.inputs.iter().position(|input| {
            input.text.is_empty()
                || input.query.is_some() != (task == Task::Rerank)
                || input.max_tokens.is_some_and(|tokens| {
                    task != Task::Generate || !(1..=MAX_NEW_TOKENS).contains(&tokens)
                })
        });
        if let Some(index) = wrong {
            let found = format!("inputs[{index}]");
            let allowed = "a text; with a query where the task is \"rerank\", and only there; with \
                           max_tokens from 1 to 4096 only where it is \"generate\"";
            return Violation::unless(false, "warmup.canary.inputs", found, allowed);
        }
        for (key, value, range, allowed) in [
            (
                "warmup.canary.min_cosine",
                self.min_cosine,
                -1.0..=1.0,
                "-1 to 1",
            ),
            (
                "warmup.canary.max_difference",
                self.max_difference,
                0.0..=f64::MAX,
                "0 or more",
            ),
            (
                "warmup.canary.min_equal_tokens",
                self.min_equal_tokens,
                0.0..=1.0,
                "0 to 1",
            ),
        ] {
            if let Some(value) = value {
                Violation::unless(range.contains(&value), key, value, allowed)?;
            }
        }
        Ok(())
    }
}
