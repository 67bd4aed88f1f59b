//! Encrypted ways to a collector: gRPC's, and a connector for the client that speaks HTTP.

use std::{
    future::Future,
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tower::Service;

use crate::config::TracesConfig;

/// How gRPC encrypts; `None` where nothing says whom to trust.
pub(super) fn of_grpc(config: &TracesConfig) -> io::Result<Option<ClientTlsConfig>> {
    let Some(ca) = config.authority() else {
        return Ok(None);
    };
    // So that a file which is no certificate says so now, and not at each export.
    authorities(&ca)?;
    let authority =
        Certificate::from_pem(std::fs::read(&ca).map_err(|error| of_file(&ca, &error))?);
    let mut tls = ClientTlsConfig::new().ca_certificate(authority);
    if let (Some(certificate), Some(key)) = (&config.client_certificate, &config.client_key) {
        chain(certificate)?;
        private_key(key)?;
        let read = |path: &Path| std::fs::read(path).map_err(|error| of_file(path, &error));
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(Some(tls))
}

/// Connects and shakes hands; for the HTTP client.
#[derive(Clone)]
pub(super) struct EncryptedConnector {
    tcp: HttpConnector,
    tls: TlsConnector,
}

impl EncryptedConnector {
    /// A connector that trusts `ca`'s authorities.
    pub(super) fn new(config: &TracesConfig, ca: &Path) -> io::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(authorities(ca)?);
        let mut tls = match (&config.client_certificate, &config.client_key) {
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(chain(certificate)?, private_key(key)?)
                .map_err(|error| of_file(certificate, &error))?,
            _ => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        Ok(Self {
            tcp,
            tls: TlsConnector::from(Arc::new(tls)),
        })
    }
}

impl std::fmt::Debug for EncryptedConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncryptedConnector").finish_non_exhaustive()
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for EncryptedConnector {
    type Response = Encrypted;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Encrypted, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let host = to.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let (connecting, tls) = (self.tcp.call(to), self.tls.clone());
        Box::pin(async move {
            let tcp = connecting.await?.into_inner();
            let stream = tls.connect(name?, tcp).await?;
            Ok(Encrypted(TokioIo::new(stream)))
        })
    }
}

/// A connection that is encrypted.
pub(super) struct Encrypted(TokioIo<TlsStream<TcpStream>>);

impl Connection for Encrypted {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Encrypted {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, into)
    }
}

impl Write for Encrypted {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}

fn authorities(path: &Path) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for authority in chain(path)? {
        roots
            .add(authority)
            .map_err(|error| of_file(path, &error))?;
    }
    Ok(roots)
}

/// The certificates of a file.
fn chain(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| of_file(path, &error))?;
    if found.is_empty() {
        return Err(of_file(path, &"no certificate in it"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| of_file(path, &error))
}

fn of_file(path: &Path, reason: &dyn std::fmt::Display) -> io::Error {
    let reason = format!("{}: {reason}", path.display());
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}
