//! Which logits differ from the model's, and how: repetition, presence and frequency penalties and
//! biases, of the tokens that have any.

use std::collections::BTreeMap;

use super::parameters::SamplingParameters;

#[derive(Debug, Clone, Copy, Default)]
struct Change {
    /// It occurs in the prompt or was generated.
    occurs: bool,
    /// How often it was generated.
    generated: u32,
    bias: f32,
}

/// The tokens of a sequence whose logits are changed.
#[derive(Debug, Clone)]
pub(super) struct Penalties {
    /// Whether the prompt's tokens are changed, and the generated ones.
    of_prompt: bool,
    of_generated: bool,
    repetition: f32,
    presence: f32,
    frequency: f32,
    /// By token, so that a scan of the logits meets them in order.
    changes: BTreeMap<u32, Change>,
}

impl Penalties {
    pub fn new(parameters: &SamplingParameters) -> Self {
        let mut changes = BTreeMap::<u32, Change>::new();
        for &(token, bias) in &parameters.logit_bias {
            changes.entry(token).or_default().bias += bias;
        }
        let of_prompt = differs(parameters.repetition_penalty, 1.0);
        let of_generated = of_prompt
            || differs(parameters.presence_penalty, 0.0)
            || differs(parameters.frequency_penalty, 0.0);
        Self {
            of_prompt,
            of_generated,
            repetition: parameters.repetition_penalty,
            presence: parameters.presence_penalty,
            frequency: parameters.frequency_penalty,
            changes,
        }
    }

    pub fn accept_prompt(&mut self, prompt: &[u32]) {
        if !self.of_prompt {
            return;
        }
        for &token in prompt {
            self.changes.entry(token).or_default().occurs = true;
        }
    }

    pub fn accept(&mut self, token: u32) {
        if !self.of_generated {
            return;
        }
        let change = self.changes.entry(token).or_default();
        change.occurs = true;
        change.generated += 1;
    }

    /// Replaces `changed` by the tokens whose logits are changed, ascending, with what they become.
    pub fn apply(&self, logits: &[f32], changed: &mut Vec<(u32, f32)>) {
        changed.clear();
        for (&token, change) in &self.changes {
            let Some(&raw) = logits.get(token as usize) else {
                return;
            };
            let mut logit = raw;
            if change.occurs {
                logit = if logit > 0.0 {
                    logit / self.repetition
                } else {
                    logit * self.repetition
                };
            }
            if change.generated > 0 {
                logit -= self.frequency * change.generated as f32 + self.presence;
            }
            changed.push((token, logit + change.bias));
        }
    }
}

/// Exactly: a value near the neutral one is one that was asked for.
fn differs(value: f32, neutral: f32) -> bool {
    (value - neutral).abs() > 0.0
}
