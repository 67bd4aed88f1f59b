//! `[tls]`: encryption of the listeners, and whether clients must show a certificate.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Violation;

/// TLS of the listeners. Off unless there is a certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate and those between it and its authority, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Certificates of the authorities whose clients are let in, PEM. Without, clients show none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Which listeners are encrypted.
    pub listeners: Vec<TlsListener>,
    /// How often the files are looked at, in seconds; what has changed holds for new connections.
    pub reload_seconds: f64,
}

/// A listener that can be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsListener {
    /// gRPC.
    Grpc,
    /// HTTP, with health and metrics.
    Http,
    /// The operators'.
    Admin,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            certificate: None,
            key: None,
            client_ca: None,
            listeners: vec![TlsListener::Grpc, TlsListener::Http],
            reload_seconds: 10.0,
        }
    }
}

impl TlsConfig {
    /// Whether a listener is encrypted.
    pub fn covers(&self, listener: TlsListener) -> bool {
        self.certificate.is_some() && self.listeners.contains(&listener)
    }

    pub(super) fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            self.certificate.is_some() == self.key.is_some(),
            "tls.certificate",
            "without the other",
            "tls.certificate and tls.key together",
        )?;
        Violation::unless(
            self.client_ca.is_none() || self.certificate.is_some(),
            "tls.client_ca",
            "without tls.certificate",
            "clients' certificates need TLS: set tls.certificate and tls.key too",
        )?;
        Violation::unless(
            (0.05..=86_400.0).contains(&self.reload_seconds),
            "tls.reload_seconds",
            self.reload_seconds,
            "0.05 to 86400",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_needs_its_key_and_clients_certificates_need_both() {
        let mut config = TlsConfig {
            certificate: Some("server.pem".into()),
            ..TlsConfig::default()
        };
        assert_eq!(config.validate().unwrap_err().key, "tls.certificate");
        config.key = Some("server.key".into());
        assert_eq!(config.validate(), Ok(()));
        assert!(config.covers(TlsListener::Grpc) && !config.covers(TlsListener::Admin));
        let config = TlsConfig {
            client_ca: Some("ca.pem".into()),
            ..TlsConfig::default()
        };
        assert_eq!(config.validate().unwrap_err().key, "tls.client_ca");
    }
}
