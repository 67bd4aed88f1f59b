//! What a call brings beside its input: deadline, tenant, priority, id.

use std::{sync::Arc, time::Instant};

use crate::batching::Priority;

/// What a call brings beside its input.
#[derive(Debug, Clone)]
pub struct CallContext {
    /// When it came in.
    pub received: Instant,
    /// When its answer is of no more use.
    pub deadline: Option<Instant>,
    /// Whose it is; fairness is between tenants.
    pub tenant: Arc<str>,
    /// How urgent it is.
    pub priority: Priority,
}

/// A context value that isn't understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("priority '{0}'; use high, normal or low")]
pub struct ContextError(String);

impl CallContext {
    /// A call without deadline, tenant or priority that came in now.
    pub fn plain(received: Instant) -> Self {
        Self {
            received,
            deadline: None,
            tenant: Arc::from(""),
            priority: Priority::NORMAL,
        }
    }

    /// Reads a priority's name.
    ///
    /// # Errors
    /// [`ContextError`] when it is none of high, normal, low.
    pub fn parse_priority(name: &str) -> Result<Priority, ContextError> {
        match name {
            "high" => Ok(Priority::HIGH),
            "normal" => Ok(Priority::NORMAL),
            "low" => Ok(Priority::LOW),
            other => Err(ContextError(other.chars().take(32).collect())),
        }
    }

    /// Whether the deadline has passed at `now`.
    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}
