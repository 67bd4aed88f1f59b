//! Where the server listens, how that is encrypted, and how many may come.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use tokio::{net::TcpListener, sync::watch};

use super::{StartError, reload};
use crate::{
    api::{
        grpc,
        listener::{Incoming, Protocol, Tls, TlsError},
    },
    config::{
        ServerConfig,
        tls::{TlsConfig, TlsListener},
    },
};

/// Connections of operators at a time.
const ADMIN_CONNECTIONS: usize = 256;

/// What the server listens on.
pub(super) struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
    admin: Option<TcpListener>,
}

/// Where that is.
pub(super) struct Addresses {
    pub(super) grpc: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) admin: Option<SocketAddr>,
}

/// What comes in there.
pub(super) struct Opened {
    pub(super) grpc: Incoming,
    pub(super) http: Incoming,
    pub(super) admin: Option<Incoming>,
}

impl Listeners {
    /// Takes the addresses.
    pub(super) async fn bind(config: &ServerConfig) -> Result<Self, StartError> {
        let http_at = SocketAddr::new(config.http.host, config.http.port);
        let http = listen(http_at, "http.port").await?;
        let grpc_at = SocketAddr::new(config.grpc.host, config.grpc.port);
        let grpc = listen(grpc_at, "grpc.port").await?;
        let admin = if config.admin.enabled {
            let admin_at = SocketAddr::new(config.admin.host, config.admin.port);
            Some(listen(admin_at, "admin.port").await?)
        } else {
            None
        };
        Ok(Self { grpc, http, admin })
    }

    /// Where it listens, for whoever left the ports to the system.
    pub(super) fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            grpc: self.grpc.local_addr()?,
            http: self.http.local_addr()?,
            admin: self
                .admin
                .as_ref()
                .map(TcpListener::local_addr)
                .transpose()?,
        })
    }

    /// Takes connections in.
    pub(super) fn open(self, config: &ServerConfig, certificates: &Certificates) -> Opened {
        let open = |listener, tls: &Option<Tls>, protocol, most| {
            Incoming::new(listener, tls.clone(), protocol, most)
        };
        let (grpc, http) = (config.grpc.max_connections, config.http.max_connections);
        Opened {
            grpc: open(self.grpc, &certificates.grpc, Protocol::Http2, grpc),
            http: open(self.http, &certificates.http, Protocol::Http1, http),
            admin: self.admin.map(|listener| {
                let tls = &certificates.admin;
                open(listener, tls, Protocol::Http2, ADMIN_CONNECTIONS)
            }),
        }
    }
}

/// The certificates of the listeners that are encrypted.
pub(super) struct Certificates {
    grpc: Option<Tls>,
    http: Option<Tls>,
    admin: Option<Tls>,
}

impl Certificates {
    pub(super) fn read(config: &TlsConfig) -> Result<Self, TlsError> {
        let read = |listener, protocol| {
            let covered = config.covers(listener);
            covered.then(|| Tls::read(config, protocol)).transpose()
        };
        Ok(Self {
            grpc: read(TlsListener::Grpc, b"h2")?,
            http: read(TlsListener::Http, b"http/1.1")?,
            admin: read(TlsListener::Admin, b"h2")?,
        })
    }

    /// Reads them again whenever one of their files changes.
    pub(super) fn follow(self, config: &TlsConfig, closing: watch::Receiver<bool>) {
        let all: Vec<Tls> = [self.grpc, self.http, self.admin]
            .into_iter()
            .flatten()
            .collect();
        if all.is_empty() {
            return;
        }
        let files = [&config.certificate, &config.key, &config.client_ca];
        let files: Vec<PathBuf> = files.into_iter().flatten().cloned().collect();
        let every = Duration::from_secs_f64(config.reload_seconds);
        let config = config.clone();
        let reload = move || match all.iter().try_for_each(|tls| tls.reload(&config)) {
            Ok(()) => tracing::info!("certificates read again"),
            Err(error) => {
                tracing::error!(%error, "new certificates can't be used; the old ones stay");
            }
        };
        tokio::spawn(reload::follow_files(files, every, closing, reload));
    }
}

async fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, StartError> {
    grpc::bind(address)
        .await
        .map_err(|source| StartError::Listen {
            address,
            key,
            source,
        })
}
