//! `[metrics]`: how usage is told apart.

use serde::{Deserialize, Serialize};

use super::Violation;

/// Metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Tenants that have series of their own; the usage of those that come later is that of `other`.
    pub max_tenants: usize,
    /// The value of the label `region` of usage: where this server stands.
    pub region: String,
    /// Whether the page has, beside Ferry's own metrics, those by Triton's names (`nv_inference_…`).
    pub triton_names: bool,
    /// Whether it has those by vLLM's names that the Gateway API inference extension looks for.
    pub gateway_names: bool,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            max_tenants: 100,
            region: String::new(),
            triton_names: true,
            gateway_names: true,
        }
    }
}

impl MetricsConfig {
    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            self.max_tenants <= 10_000,
            "metrics.max_tenants",
            self.max_tenants,
            "0 to 10000",
        )?;
        Violation::unless(
            self.region.len() <= 64,
            "metrics.region",
            format_args!("'{}'", self.region),
            "at most 64 bytes",
        )
    }
}
