//! Sequences that a version generates before it takes requests: through its own engine, as those of
//! requests will go.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    LoadError, Loading,
    canary::{CanaryOutput, NEW_TOKENS},
    plan,
};
use crate::{
    batching::Priority,
    config::manifest::CanaryInput,
    engine::{
        Departure, GenerationEngine,
        continuous::{ScoredToken, SequenceEvent, SequenceWork},
    },
    generation::SamplingParameters,
    text::GenerationText,
};

/// Time that one of them may take before the engine is given up.
const PATIENCE: Duration = Duration::from_secs(600);

/// A loaded version's text side and engine.
pub(super) struct Sequences<'a> {
    pub text: &'a GenerationText,
    pub engine: &'a GenerationEngine,
    pub max_sequence_tokens: usize,
}

/// What came of one.
#[derive(Default)]
struct Generated {
    prompt: Vec<ScoredToken>,
    tokens: Vec<u32>,
}

impl Sequences<'_> {
    /// Runs the plan's prompts.
    pub fn run_prompts(&self, loading: &Loading<'_>) -> Result<(), LoadError> {
        let plan = &loading.manifest.warmup;
        plan::run_rounds(
            plan,
            &loading.model.name,
            &plan.prompts,
            |_, index, prompt| {
                let generated = self.generate(&prompt.text, prompt.max_tokens, false);
                let name = || plan::name_of_prompt(index, &prompt.text);
                generated.map_err(|reason| plan::failed(name(), reason))?;
                Ok(())
            },
        )
    }

    /// What the model makes of a canary's input.
    pub fn answer(&self, input: &CanaryInput) -> Result<CanaryOutput, String> {
        let new = input.max_tokens.unwrap_or(NEW_TOKENS);
        let Generated { prompt, tokens } = self.generate(&input.text, new, true)?;
        Ok(CanaryOutput::Generated {
            prompt_logprobs: prompt.iter().filter_map(|token| token.logprob).collect(),
            tokens,
        })
    }

    fn generate(&self, text: &str, new: u32, score_prompt: bool) -> Result<Generated, String> {
        let prompt = self.text.encode(text, true);
        let prompt = prompt.map_err(|error| error.to_string())?;
        let (found, most) = (prompt.len() + new as usize, self.max_sequence_tokens);
        if prompt.is_empty() || found > most {
            return Err(format!(
                "{} tokens of prompt and {new} to generate; from 1 to {most} allowed together",
                prompt.len()
            ));
        }
        let work = SequenceWork {
            prompt,
            max_new_tokens: new,
            sampling: SamplingParameters::greedy(),
            seed: 0,
            stop_tokens: Arc::from([]),
            constraint: None,
            score_prompt,
        };
        let now = Instant::now();
        let departure = Departure {
            deadline: now.checked_add(PATIENCE),
            priority: Priority::NORMAL,
            tenant: Arc::from(""),
            trace: None,
        };
        let streams = self.engine.submit(vec![work], &departure, now);
        let streams = streams.map_err(|error| error.to_string())?;
        let Some(mut stream) = streams.into_iter().next() else {
            return Err("the engine took no sequence".to_owned());
        };
        let mut generated = Generated::default();
        while let Some(event) = stream.blocking_next() {
            match event {
                SequenceEvent::Prompt(scores) => generated.prompt = scores,
                SequenceEvent::Token(token) => generated.tokens.push(token.id),
                SequenceEvent::Finished(_) => {}
                SequenceEvent::Failed(error) => return Err(error.to_string()),
            }
        }
        Ok(generated)
    }
}
