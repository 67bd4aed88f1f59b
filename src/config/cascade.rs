//! The manifest's `[cascade]`: which model is asked where this one is not sure.

use serde::{Deserialize, Serialize};

use super::{Task, Violation};

/// Models that one request may be handed through, the first included.
pub const MAX_STAGES: usize = 4;

/// Which model is asked where this one is not sure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CascadeConfig {
    /// The model's name, in the same models folder; empty for none.
    pub model: String,
    /// Its version or a label; empty for what its route says.
    pub version: String,
    /// Answers with a lower confidence are asked again there.
    pub below: f32,
}

impl Default for CascadeConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            version: String::new(),
            below: 0.9,
        }
    }
}

impl CascadeConfig {
    /// Whether there is another model to ask.
    pub fn is_set(&self) -> bool {
        !self.model.is_empty()
    }

    pub(super) fn validate(&self, task: Task) -> Result<(), Violation> {
        Violation::unless(
            !self.is_set() || task != Task::Embed,
            "cascade.model",
            &self.model,
            "none where the task is embed: a vector has no confidence",
        )?;
        Violation::unless(
            (0.0..=1.0).contains(&self.below),
            "cascade.below",
            self.below,
            "0 to 1",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_embeds_has_no_cascade() {
        let cascade: CascadeConfig = toml::from_str("model = \"large\"").unwrap();
        for task in [Task::Classify, Task::Generate] {
            assert!(cascade.validate(task).is_ok());
        }
        let error = cascade.validate(Task::Embed).unwrap_err();
        assert_eq!(error.key, "cascade.model");
        assert!(CascadeConfig::default().validate(Task::Embed).is_ok());
        let too_sure: CascadeConfig = toml::from_str("model = \"a\"\nbelow = 1.5").unwrap();
        assert_eq!(
            too_sure.validate(Task::Rerank).unwrap_err().key,
            "cascade.below"
        );
    }
}
