//! `[models.watchdog]`: what is done about a batch or a step that does not come back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Violation;

/// What is done about a batch or a step that does not come back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchdogConfig {
    /// Time that one may always take, in seconds; 0 waits for ever.
    pub limit_seconds: f64,
    /// And as many times what was predicted for it.
    pub factor: f64,
    /// Threads of one loaded version that may be left behind hanging, and replaced.
    pub max_replacements: usize,
    /// What happens when one more hangs.
    pub then: WhenSpent,
}

/// What happens when an instance hangs and no more are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenSpent {
    /// The server answers what it has and ends with an error, for its orchestrator to start it again.
    Exit,
    /// The instance stays out until the model is loaded again.
    Unready,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        Self {
            limit_seconds: 120.0,
            factor: 20.0,
            max_replacements: 2,
            then: WhenSpent::Exit,
        }
    }
}

impl WatchdogConfig {
    /// Time that a batch or a step may always take; `None` where all are waited for.
    pub fn limit(&self) -> Option<Duration> {
        (self.limit_seconds > 0.0).then(|| Duration::from_secs_f64(self.limit_seconds))
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            self.limit_seconds == 0.0 || (0.05..=86_400.0).contains(&self.limit_seconds),
            "models.watchdog.limit_seconds",
            self.limit_seconds,
            "0.05 to 86400, or 0 for none",
        )?;
        Violation::unless(
            (1.0..=1e6).contains(&self.factor),
            "models.watchdog.factor",
            self.factor,
            "1 to 1000000",
        )?;
        Violation::unless(
            self.max_replacements <= 64,
            "models.watchdog.max_replacements",
            self.max_replacements,
            "0 to 64",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_means_that_all_are_waited_for() {
        let off: WatchdogConfig = toml::from_str("limit_seconds = 0").unwrap();
        assert_eq!((off.limit(), off.validate()), (None, Ok(())));
        let usual = WatchdogConfig::default();
        assert_eq!(usual.validate(), Ok(()));
        assert_eq!(usual.limit(), Some(Duration::from_secs(120)));
    }

    #[test]
    fn what_is_outside_its_range_is_refused_by_name() {
        for (text, key) in [
            ("limit_seconds = -1", "models.watchdog.limit_seconds"),
            ("limit_seconds = nan", "models.watchdog.limit_seconds"),
            ("factor = 0.5", "models.watchdog.factor"),
            ("max_replacements = 65", "models.watchdog.max_replacements"),
        ] {
            let config: WatchdogConfig = toml::from_str(text).unwrap();
            assert_eq!(config.validate().unwrap_err().key, key);
        }
    }
}
