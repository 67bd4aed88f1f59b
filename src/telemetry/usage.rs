//! Who used which model for how much: series by tenant and endpoint, no more of them than configured.
//!
//! A tenant's counters are found in an immutable table that is swapped as a whole when a new tenant
//! comes, so that counting takes no lock.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntCounterVec, Opts};

use super::series::Registrar;

use crate::config::MetricsConfig;

/// What tenants beyond the limit are called.
const OTHER: &str = "other";

/// What a request used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Rows that were answered.
    pub rows: u64,
    /// Tokens that were read.
    pub input_tokens: u64,
    /// Tokens that were generated.
    pub output_tokens: u64,
}

#[derive(Debug)]
pub(super) struct UsageFamilies {
    requests: IntCounterVec,
    rows: IntCounterVec,
    input_tokens: IntCounterVec,
    output_tokens: IntCounterVec,
    region: String,
    max_tenants: usize,
    /// Tenants with series of their own. Locked when a model sees a tenant for the first time.
    tenants: Mutex<HashSet<String>>,
}

impl UsageFamilies {
    pub(super) fn register(
        registry: &Registrar,
        config: &MetricsConfig,
    ) -> prometheus::Result<Self> {
        let family = |name: &str, help: &str| {
            let labels = &["tenant", "model", "version", "endpoint", "region"];
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        Ok(Self {
            requests: family("ferry_usage_requests_total", "Requests, by who sent them.")?,
            rows: family(
                "ferry_usage_rows_total",
                "Rows answered, by whose they were.",
            )?,
            input_tokens: family(
                "ferry_usage_input_tokens_total",
                "Tokens read, by whose request.",
            )?,
            output_tokens: family(
                "ferry_usage_output_tokens_total",
                "Tokens generated, by whose request.",
            )?,
            region: config.region.clone(),
            max_tenants: config.max_tenants,
            tenants: Mutex::default(),
        })
    }

    pub(super) fn model(self: &Arc<Self>, model: &str, version: &str) -> ModelUsage {
        ModelUsage {
            families: Arc::clone(self),
            model: model.to_owned(),
            version: version.to_owned(),
            known: ArcSwap::default(),
        }
    }

    /// The name that a tenant's series have.
    fn name<'a>(&self, tenant: &'a str) -> &'a str {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.contains(tenant) {
            return tenant;
        }
        if tenants.len() >= self.max_tenants {
            return OTHER;
        }
        tenants.insert(tenant.to_owned());
        tenant
    }
}

/// The usage of one model version.
#[derive(Debug)]
pub struct ModelUsage {
    families: Arc<UsageFamilies>,
    model: String,
    version: String,
    known: ArcSwap<HashMap<Key, Counters>>,
}

type Key = (Arc<str>, &'static str);

#[derive(Debug, Clone)]
struct Counters {
    requests: IntCounter,
    rows: IntCounter,
    input_tokens: IntCounter,
    output_tokens: IntCounter,
}

impl Counters {
    fn add(&self, used: Used) {
        self.requests.inc();
        self.rows.inc_by(used.rows);
        self.input_tokens.inc_by(used.input_tokens);
        self.output_tokens.inc_by(used.output_tokens);
    }
}

impl ModelUsage {
    /// Counts a request of `tenant` that came to `endpoint`.
    pub fn record(&self, tenant: &Arc<str>, endpoint: &'static str, used: Used) {
        let key = (Arc::clone(tenant), endpoint);
        if let Some(counters) = self.known.load().get(&key) {
            counters.add(used);
            return;
        }
        let counters = self.counters(tenant, endpoint);
        counters.add(used);
        // Those of the others share one set of counters, and are looked up again each time.
        if self.families.name(tenant) == &**tenant {
            self.known.rcu(|known| {
                let mut known = HashMap::clone(known);
                known.insert(key.clone(), counters.clone());
                known
            });
        }
    }

    fn counters(&self, tenant: &str, endpoint: &str) -> Counters {
        let families = &self.families;
        let labels = [
            families.name(tenant),
            &self.model,
            &self.version,
            endpoint,
            &families.region,
        ];
        Counters {
            requests: families.requests.with_label_values(&labels),
            rows: families.rows.with_label_values(&labels),
            input_tokens: families.input_tokens.with_label_values(&labels),
            output_tokens: families.output_tokens.with_label_values(&labels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn tenants_beyond_the_limit_are_counted_together() {
        let config = MetricsConfig {
            max_tenants: 2,
            region: "north".to_owned(),
            ..MetricsConfig::default()
        };
        let metrics = Metrics::with(&config);
        let model = metrics.model("minilm", "1");
        for tenant in ["a", "b", "c", "d", "a"] {
            let used = Used {
                rows: 2,
                input_tokens: 10,
                output_tokens: 0,
            };
            model.usage.record(&Arc::from(tenant), "grpc", used);
        }
        let page = String::from_utf8(metrics.render()).unwrap();
        for (tenant, requests, tokens) in [("a", 2, 20), ("b", 1, 10), ("other", 2, 20)] {
            let labels = format!(
                "{{endpoint=\"grpc\",model=\"minilm\",region=\"north\",tenant=\"{tenant}\",\
                 version=\"1\"}}"
            );
            for line in [
                format!("ferry_usage_requests_total{labels} {requests}\n"),
                format!("ferry_usage_input_tokens_total{labels} {tokens}\n"),
            ] {
                assert!(page.contains(&line), "{line} not in\n{page}");
            }
        }
        assert!(!page.contains("tenant=\"c\""));
    }
}
