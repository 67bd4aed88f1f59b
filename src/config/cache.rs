//! Whether a model's answers are kept for the next who asks the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Violation;

/// Whether a model's answers are kept. Without `max_mib` they are not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Memory for answers, in MiB; 0 keeps none.
    pub max_mib: usize,
    /// Seconds after which an answer is forgotten; 0 for when the space is needed.
    pub ttl_seconds: u64,
}

impl CacheConfig {
    /// Bytes for answers; `None` when none are kept.
    pub fn max_bytes(&self) -> Option<usize> {
        (self.max_mib > 0).then_some(self.max_mib << 20)
    }

    /// [`CacheConfig::ttl_seconds`] as a duration; `None` when answers don't age.
    pub fn time_to_live(&self) -> Option<Duration> {
        (self.ttl_seconds > 0).then_some(Duration::from_secs(self.ttl_seconds))
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            self.max_mib <= 1 << 20,
            "cache.max_mib",
            self.max_mib,
            "0 (no cache) to 1048576",
        )?;
        Violation::unless(
            self.ttl_seconds <= 31_536_000,
            "cache.ttl_seconds",
            self.ttl_seconds,
            "0 (no limit) to 31536000",
        )
    }
}
