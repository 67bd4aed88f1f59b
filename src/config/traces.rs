//! `[traces]`: where the spans of requests go, and of which requests.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Secret, Violation, secret};

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
    /// Where a collector takes OTLP, such as `http://localhost:4317` or, encrypted,
    /// `https://collector.example:4317`; empty for what
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT` says, and for no traces
    /// where neither is set.
    #[serde(serialize_with = "secret::without_user")]
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
    pub headers: BTreeMap<String, Secret>,
    /// The authorities whose collectors are trusted over `https://`, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The certificate to show to the collector, PEM, where it wants one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
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
            ca_file: None,
            client_certificate: None,
            client_key: None,
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
        !self.endpoint().is_empty()
    }

    /// The file with the authorities whose collectors are trusted: what `ca_file` says, or else
    /// OpenTelemetry's variables.
    pub fn authority(&self) -> Option<PathBuf> {
        let named = |key| std::env::var_os(key).filter(|value| !value.is_empty());
        let environment = || {
            named("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE")
                .or_else(|| named("OTEL_EXPORTER_OTLP_CERTIFICATE"))
        };
        self.ca_file
            .clone()
            .or_else(|| environment().map(PathBuf::from))
    }

    /// The endpoint, from here or the environment; empty for none.
    pub fn endpoint(&self) -> String {
        let named = |key| std::env::var(key).ok().filter(|value| !value.is_empty());
        if !self.endpoint.is_empty() {
            return self.endpoint.clone();
        }
        named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            .or_else(|| named("OTEL_EXPORTER_OTLP_ENDPOINT"))
            .unwrap_or_default()
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
        let encrypted = self.endpoint.starts_with("https://");
        Violation::unless(
            self.endpoint.is_empty() || encrypted || self.endpoint.starts_with("http://"),
            "traces.endpoint",
            "another address",
            "http://host:port or https://host:port",
        )?;
        Violation::unless(
            !encrypted || self.authority().is_some(),
            "traces.ca_file",
            "nothing, and traces.endpoint is encrypted",
            "a file with the authority of the collector's certificate, such as \
             /etc/ssl/certs/ca-certificates.crt for the public ones",
        )?;
        Violation::unless(
            self.ca_file.is_none() || self.endpoint.is_empty() || encrypted,
            "traces.ca_file",
            "a file, and traces.endpoint is not encrypted",
            "an endpoint that is https://host:port beside it",
        )?;
        Violation::unless(
            self.client_certificate.is_some() == self.client_key.is_some(),
            "traces.client_key",
            "one of traces.client_certificate and traces.client_key",
            "both or neither",
        )?;
        Violation::unless(
            self.client_certificate.is_none() || self.ca_file.is_some(),
            "traces.client_certificate",
            "a file, and no traces.ca_file",
            "traces.ca_file beside it",
        )?;
        let blank = self.headers.values().any(Secret::is_blank);
        Violation::unless(
            !blank,
            "traces.headers",
            "what --print-config shows in a secret's place",
            "the header's value",
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
    fn an_encrypted_endpoint_needs_to_know_whom_to_trust() {
        let mut config = TracesConfig {
            endpoint: "https://collector:4317".to_owned(),
            ..TracesConfig::default()
        };
        assert_eq!(config.validate().unwrap_err().key, "traces.ca_file");
        config.ca_file = Some("ca.pem".into());
        assert_eq!(config.validate(), Ok(()));
        config.client_key = Some("key.pem".into());
        assert_eq!(config.validate().unwrap_err().key, "traces.client_key");
        config.client_certificate = Some("client.pem".into());
        assert_eq!(config.validate(), Ok(()));
        config.endpoint = "http://collector:4317".to_owned();
        assert_eq!(config.validate().unwrap_err().key, "traces.ca_file");
        config.endpoint = "collector:4317".to_owned();
        assert_eq!(config.validate().unwrap_err().key, "traces.endpoint");
    }

    #[test]
    fn what_is_secret_is_not_printed() {
        let config = TracesConfig {
            endpoint: "http://me:password@collector:4318/a@b".to_owned(),
            headers: [("authorization".to_owned(), Secret::new("Bearer token"))].into(),
            ..TracesConfig::default()
        };
        let printed = toml::to_string(&config).unwrap();
        assert!(
            !printed.contains("password") && !printed.contains("Bearer"),
            "{printed}"
        );
        assert!(
            printed.contains("http://(hidden)@collector:4318/a@b"),
            "{printed}"
        );
        // A file made of it is not taken for one with the secrets in.
        let read: TracesConfig = toml::from_str(&printed).unwrap();
        assert_eq!(read.validate().unwrap_err().key, "traces.headers");
    }
}
