//! The Prometheus metrics of those who are refused at the gate of the callers.

use prometheus::{IntCounter, IntCounterVec, Opts};

use super::series::Registrar;

#[derive(Debug)]
pub(super) struct CallerFamilies {
    refused: IntCounterVec,
}

/// Those who are refused are counted here, by reason.
#[derive(Debug, Clone)]
pub struct CallerMetrics {
    /// No key where one is needed.
    pub missing: IntCounter,
    /// A wrong one.
    pub wrong: IntCounter,
    /// Not looked at, after too many of those.
    pub limited: IntCounter,
    /// A key that opens something else.
    pub scope: IntCounter,
    /// A key that does not open the model that is asked.
    pub model: IntCounter,
    /// Beyond the tenant's rate.
    pub rate: IntCounter,
    /// Beyond what the tenant may have in the server at a time.
    pub concurrent: IntCounter,
}

impl CallerFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let refused = IntCounterVec::new(
            Opts::new(
                "ferry_callers_refused_total",
                "Requests that were refused for their API key or their tenant's limits, by reason.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { refused })
    }

    pub(super) fn metrics(&self) -> CallerMetrics {
        let refused = |reason| self.refused.with_label_values(&[reason]);
        CallerMetrics {
            missing: refused("missing"),
            wrong: refused("wrong"),
            limited: refused("limited"),
            scope: refused("scope"),
            model: refused("model"),
            rate: refused("rate"),
            concurrent: refused("concurrent"),
        }
    }
}
