//! What a call brings beside its input: deadline, tenant, priority, id.

use std::{sync::Arc, time::Instant};

use super::AllowedModels;
use crate::{batching::Priority, error::RequestError, telemetry::traces::RequestTrace};

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
    /// Whom or what it is for, where that is to stay with one version while a canary runs.
    pub route_key: Option<Arc<str>>,
    /// The version that it is pinned to, where the call itself names none.
    pub version: Option<Arc<str>>,
    /// By which protocol it came, for the accounts of who uses what.
    pub endpoint: &'static str,
    /// The models that its key opens.
    pub models: AllowedModels,
    /// What is noted of it, if it is traced.
    pub trace: Option<Arc<RequestTrace>>,
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
            route_key: None,
            version: None,
            endpoint: "internal",
            models: AllowedModels::default(),
            trace: None,
        }
    }

    /// The context of one of the requests that come within a call with this context, now.
    #[must_use]
    pub fn of_part(&self, name: &'static str) -> Self {
        Self {
            received: Instant::now(),
            trace: self.trace.as_ref().map(|trace| trace.child(name)),
            ..self.clone()
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

    /// The version that answers: what the call names, or else what its metadata pin; empty for the
    /// route's choice.
    ///
    /// # Errors
    /// [`RequestError::InvalidArgument`] when the two say different things.
    pub fn version_of<'a>(&'a self, named: &'a str) -> Result<&'a str, RequestError> {
        match self.version.as_deref() {
            None => Ok(named),
            Some(pinned) if named.is_empty() || named == pinned => Ok(pinned),
            Some(pinned) => Err(RequestError::invalid(
                "x-ferry-version",
                format_args!("'{pinned}', and the call names '{named}'"),
                "one of the two, or both the same",
            )),
        }
    }

    /// Whether the deadline has passed at `now`.
    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}
