//! The bounds of a batch and of the queue.

use std::time::Duration;

/// When a batch leaves and how much may wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Rows of one batch, at most.
    pub max_rows: usize,
    /// Tokens of one batch, at most; no row may be longer.
    pub max_tokens: usize,
    /// Longest time a row waits for company while an executor is idle; time in which all were busy
    /// does not count, for then waiting costs nothing.
    pub max_queue_delay: Duration,
    /// Rows that may wait.
    pub max_waiting_rows: usize,
    /// Whether a batch leaves before [`BatchPolicy::max_queue_delay`] when an executor is idle and
    /// waiting would not pay.
    pub eager: bool,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            max_rows: 64,
            max_tokens: 2048,
            max_queue_delay: Duration::from_millis(5),
            max_waiting_rows: 8192,
            eager: true,
        }
    }
}

/// A policy under which nothing could leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A budget or bound is 0.
    #[error("{0} is 0; at least 1 needed")]
    Zero(&'static str),
}

impl BatchPolicy {
    /// Checks that batches can leave under this policy.
    ///
    /// # Errors
    /// [`PolicyError`] naming the bound that is 0.
    pub fn validate(&self) -> Result<(), PolicyError> {
        for (bound, name) in [
            (self.max_rows, "max_rows"),
            (self.max_tokens, "max_tokens"),
            (self.max_waiting_rows, "max_waiting_rows"),
        ] {
            if bound == 0 {
                return Err(PolicyError::Zero(name));
            }
        }
        Ok(())
    }
}
