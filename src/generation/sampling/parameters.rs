//! How the next token is drawn, as a caller asks for it, checked.

/// How the next token is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParameters {
    /// Logits are divided by it; 0 takes the most likely token always, as does all below
    /// 1e-5. 0..=100.
    pub temperature: f32,
    /// Only so many most likely tokens are drawn from; 0 for all.
    pub top_k: u32,
    /// Only the most likely tokens that together have this probability, at least one. Above 0,
    /// at most 1, which is all.
    pub top_p: f32,
    /// Only tokens of at least this share of the most likely one's probability. 0..=1, 0 for all.
    pub min_p: f32,
    /// Only the tokens nearest to the distribution's entropy that together have this probability.
    /// Above 0, at most 1, which is all.
    pub typical_p: f32,
    /// Positive logits of tokens that occur in the prompt or were generated are divided by it,
    /// negative ones multiplied. Above 0, at most 100; 1 for none.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that were generated. -2..=2.
    pub presence_penalty: f32,
    /// Taken from the logits of generated tokens, as often as they occur. -2..=2.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens. -100..=100 each.
    pub logit_bias: Vec<(u32, f32)>,
    /// What the draws depend on. Same seed, same tokens; without one the caller picks it.
    pub seed: Option<u64>,
    /// How many of the most likely tokens to report with each. At most 20.
    pub top_logprobs: u32,
}

impl Default for SamplingParameters {
    /// Draws from the model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            top_logprobs: 0,
        }
    }
}

/// A parameter out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name}: found {found}; allowed: {allowed}")]
pub struct InvalidParameter {
    /// The parameter's name.
    pub name: String,
    /// Its value.
    pub found: String,
    /// The range it must be in.
    pub allowed: String,
}

/// Most tokens reported with each one.
pub const MAX_TOP_LOGPROBS: u32 = 20;
/// Most tokens whose logits are biased.
pub const MAX_LOGIT_BIAS: usize = 1024;

/// Temperatures below this take the largest logit, as 0 does: what it is divided by them may be more
/// than an f32 holds, and no other token has a chance.
const GREEDY_BELOW: f32 = 1e-5;

impl SamplingParameters {
    /// Takes the most likely token always.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Whether the most likely token is taken always, so that the seed does not matter.
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }

    /// Checks all ranges, for a model of `vocabulary` tokens.
    ///
    /// # Errors
    /// [`InvalidParameter`] names the first one that is out of its range.
    pub fn validate(&self, vocabulary: usize) -> Result<(), InvalidParameter> {
        // Comparisons that a NaN fails.
        let zero_to_one = |value: f32| value > 0.0 && value <= 1.0;
        let penalty = |value: f32| (-2.0..=2.0).contains(&value);
        let checks = [
            (
                "temperature",
                self.temperature,
                (0.0..=100.0).contains(&self.temperature),
                "0 (greedy) to 100",
            ),
            (
                "top_p",
                self.top_p,
                zero_to_one(self.top_p),
                "above 0, at most 1",
            ),
            (
                "min_p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "0 to 1",
            ),
            (
                "typical_p",
                self.typical_p,
                zero_to_one(self.typical_p),
                "above 0, at most 1",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && self.repetition_penalty <= 100.0,
                "above 0, at most 100",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                penalty(self.presence_penalty),
                "-2 to 2",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                penalty(self.frequency_penalty),
                "-2 to 2",
            ),
        ];
        for (name, found, holds, allowed) in checks {
            if !holds {
                return Err(invalid(name, found, allowed));
            }
        }
        if self.top_logprobs > MAX_TOP_LOGPROBS {
            let allowed = format!("at most {MAX_TOP_LOGPROBS}");
            return Err(invalid("top_logprobs", self.top_logprobs, allowed));
        }
        if self.logit_bias.len() > MAX_LOGIT_BIAS {
            let found = format!("{} tokens", self.logit_bias.len());
            let allowed = format!("at most {MAX_LOGIT_BIAS} tokens");
            return Err(invalid("logit_bias", found, allowed));
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= vocabulary {
                let found = format!("token {token}");
                let allowed = format!("tokens 0 to {}", vocabulary.saturating_sub(1));
                return Err(invalid("logit_bias", found, allowed));
            }
            if !(-100.0..=100.0).contains(&bias) {
                return Err(invalid(format!("logit_bias[{token}]"), bias, "-100 to 100"));
            }
        }
        Ok(())
    }
}

fn invalid(
    name: impl Into<String>,
    found: impl std::fmt::Display,
    allowed: impl Into<String>,
) -> InvalidParameter {
    InvalidParameter {
        name: name.into(),
        found: found.to_string(),
        allowed: allowed.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut SamplingParameters);

    #[test]
    fn a_value_out_of_its_range_is_refused_by_name() {
        let wrong: [(&str, Change); 14] = [
            ("temperature", |all| all.temperature = -0.1),
            ("temperature", |all| all.temperature = f32::NAN),
            ("temperature", |all| all.temperature = f32::INFINITY),
            ("top_p", |all| all.top_p = 0.0),
            ("top_p", |all| all.top_p = 1.5),
            ("min_p", |all| all.min_p = -0.5),
            ("typical_p", |all| all.typical_p = 0.0),
            ("repetition_penalty", |all| all.repetition_penalty = 0.0),
            ("presence_penalty", |all| all.presence_penalty = 2.5),
            ("frequency_penalty", |all| all.frequency_penalty = f32::NAN),
            ("top_logprobs", |all| all.top_logprobs = 21),
            ("logit_bias", |all| all.logit_bias = vec![(100, 0.0)]),
            ("logit_bias[7]", |all| all.logit_bias = vec![(7, 101.0)]),
            ("logit_bias", |all| all.logit_bias = vec![(0, 0.0); 2000]),
        ];
        for (name, change) in wrong {
            let mut parameters = SamplingParameters::default();
            change(&mut parameters);
            let error = parameters.validate(100).unwrap_err();
            assert_eq!(error.name, name);
            assert!(error.to_string().contains("allowed: "), "{error}");
        }
        SamplingParameters::default().validate(100).unwrap();
    }
}
