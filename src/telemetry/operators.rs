//! The Prometheus metrics of what operators do, and of those who are refused.

use prometheus::{IntCounter, IntCounterVec, Opts};

use super::series::Registrar;

#[derive(Debug)]
pub(super) struct OperatorFamilies {
    refused: IntCounterVec,
    actions: IntCounterVec,
}

/// What operators do is counted here.
#[derive(Debug, Clone)]
pub struct OperatorMetrics {
    /// Calls without a token where one is needed.
    pub missing: IntCounter,
    /// Calls with a wrong one.
    pub wrong: IntCounter,
    /// Calls that were not looked at, after too many of those.
    pub limited: IntCounter,
    actions: IntCounterVec,
}

impl OperatorMetrics {
    /// Counts an action, such as `swap`, and whether it worked.
    pub fn count_action(&self, action: &str, worked: bool) {
        let result = if worked { "ok" } else { "failed" };
        self.actions.with_label_values(&[action, result]).inc();
    }
}

impl OperatorFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        Ok(Self {
            refused: counter(
                "ferry_admin_refused_total",
                "Calls of operators that were refused for their token, by reason.",
                &["reason"],
            )?,
            actions: counter(
                "ferry_admin_actions_total",
                "Actions of operators, by result.",
                &["action", "result"],
            )?,
        })
    }

    pub(super) fn metrics(&self) -> OperatorMetrics {
        let refused = |reason| self.refused.with_label_values(&[reason]);
        OperatorMetrics {
            missing: refused("missing"),
            wrong: refused("wrong"),
            limited: refused("limited"),
            actions: self.actions.clone(),
        }
    }
}
