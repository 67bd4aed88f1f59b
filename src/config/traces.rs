//! `[traces]`: where the spans of requests go, and of which requests.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::Violation;

/// How spans are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceProtocol {
    /// OTLP over gRPC; collectors take it on port 4317.
    Grpc,
    /// OTLP as protobuf over HTTP; collectors take it on port 4318.
    Http,
}

/// Traces. They are off until an endpoint is given, here or by `OTEL_EXPORTER_OTLP_ENDPOINT`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracesConfig {
    /// Where a collector takes OTLP, such as `http://localhost:4317`; empty for what
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT` says, and for no traces
    /// where neither is set.
    pub endpoint: String,
    /// How spans are sent.
    pub protocol: TraceProtocol,
    /// Requests of one that are traced, by their trace id, so that every server decides alike.
    pub ratio: f64,
    /// Whether a request that comes with a `traceparent` is traced if, and only if, its caller is.
    pub parent_based: bool,
    /// The attribute `service.name`; `OTEL_SERVICE_NAME` counts more.
    pub service_name: String,
    /// Further attributes of the resource; those of `OTEL_RESOURCE_ATTRIBUTES` are added.
    pub attributes: BTreeMap<String, String>,
    /// Headers, or gRPC metadata, of each export, such as a collector's token.
    pub headers: BTreeMap<String, String>,
    /// Requests and batches whose spans wait to be sent; those beyond are dropped and counted.
    pub max_waiting: usize,
    /// Spans of one export at most, about.
    pub max_batch: usize,
    /// Time for which spans wait for more to be sent with them, in seconds.
    pub interval_seconds: f64,
    /// Time that one export may take, in seconds.
    pub timeout_seconds: f64,
    /// Events of a decode span at most; of a longer one every second, fourth … token has one.
    pub max_token_events: usize,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            protocol: TraceProtocol::Grpc,
            ratio: 1.0,
            parent_based: true,
            service_name: "ferry".to_owned(),
            attributes: BTreeMap::new(),
            headers: BTreeMap::new(),
            max_waiting: 4096,
            max_batch: 2048,
            interval_seconds: 1.0,
            timeout_seconds: 10.0,
            max_token_events: 64,
        }
    }
}

impl TracesConfig {
    /// Whether spans are sent, given what the environment says of an endpoint.
    pub fn is_on(&self) -> bool {
        let named = |key| std::env::var(key).is_ok_and(|value| !value.is_empty());
        !self.endpoint.is_empty()
            || named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            || named("OTEL_EXPORTER_OTLP_ENDPOINT")
    }

    /// [`TracesConfig::interval_seconds`] as a duration.
    pub fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.interval_seconds)
    }

    /// [`TracesConfig::timeout_seconds`] as a duration.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_seconds)
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            self.endpoint.is_empty() || self.endpoint.starts_with("http://"),
            "traces.endpoint",
            format_args!("'{}'", self.endpoint),
            "http://host:port; for TLS send to a collector on this machine and let that encrypt",
        )?;
        Violation::unless(
            (0.0..=1.0).contains(&self.ratio),
            "traces.ratio",
            self.ratio,
            "0 to 1",
        )?;
        Violation::unless(
            (1..=1 << 20).contains(&self.max_waiting),
            "traces.max_waiting",
            self.max_waiting,
            "1 to 1048576",
        )?;
        Violation::unless(
            (1..=1 << 16).contains(&self.max_batch),
            "traces.max_batch",
            self.max_batch,
            "1 to 65536",
        )?;
        Violation::unless(
            (0.01..=3600.0).contains(&self.interval_seconds),
            "traces.interval_seconds",
            self.interval_seconds,
            "0.01 to 3600",
        )?;
        Violation::unless(
            (0.1..=600.0).contains(&self.timeout_seconds),
            "traces.timeout_seconds",
            self.timeout_seconds,
            "0.1 to 600",
        )?;
        Violation::unless(
            self.max_token_events <= 1024,
            "traces.max_token_events",
            self.max_token_events,
            "0 to 1024",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_needs_tls_is_refused_with_what_to_do() {
        let mut config = TracesConfig {
            endpoint: "https://collector:4317".to_owned(),
            ..TracesConfig::default()
        };
        let refused = config.validate().unwrap_err();
        assert_eq!(refused.key, "traces.endpoint");
        assert!(refused.allowed.contains("collector on this machine"));
        config.endpoint = "http://collector:4317".to_owned();
        assert_eq!(config.validate(), Ok(()));
        assert!(config.is_on());
    }
}
