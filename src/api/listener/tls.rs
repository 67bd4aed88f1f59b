//! The certificates of the listeners, read anew when their files change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use crate::config::tls::TlsConfig;

/// Why certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read, or isn't PEM.
    #[error("{key}: {}: {reason}; allowed: {allowed}", path.display())]
    File {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What would be right.
        allowed: &'static str,
    },
    /// Each file is right by itself, and together they are not.
    #[error("tls.certificate and tls.key: {0}")]
    Pair(#[from] rustls::Error),
    /// Clients can't be checked against the authorities given.
    #[error("tls.client_ca: {0}")]
    ClientCa(#[from] rustls::server::VerifierBuilderError),
}

/// The certificates of one listener; clones share them.
#[derive(Debug, Clone)]
pub struct Tls {
    current: Arc<ArcSwap<ServerConfig>>,
    /// What the listener speaks, in ALPN's names.
    protocol: &'static [u8],
}

impl Tls {
    /// Reads the certificates of a listener that speaks `protocol` (`h2`, `http/1.1`).
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn read(config: &TlsConfig, protocol: &'static [u8]) -> Result<Self, TlsError> {
        Ok(Self {
            current: Arc::new(ArcSwap::new(read(config, protocol)?)),
            protocol,
        })
    }

    /// Reads them again, for connections from now on. Those that were there before stay as they are.
    ///
    /// # Errors
    /// [`TlsError`]; what was there before holds then.
    pub fn reload(&self, config: &TlsConfig) -> Result<(), TlsError> {
        self.current.store(read(config, self.protocol)?);
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

fn read(config: &TlsConfig, protocol: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
    // A checked configuration that is on has both.
    let certificate = config.certificate.as_deref().unwrap_or(Path::new(""));
    let key = config.key.as_deref().unwrap_or(Path::new(""));
    let chain = certificates("tls.certificate", certificate)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
        key: "tls.key",
        path: key.to_owned(),
        reason: reason_of(&error),
        allowed: "a private key in PEM (PKCS#8, PKCS#1 or SEC1), without a passphrase",
    })?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates("tls.client_ca", path)? {
                roots.add(authority)?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder.with_single_cert(chain, key)?;
    server.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(server))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::File {
        key,
        path: path.to_owned(),
        reason,
        allowed: "one or more certificates in PEM",
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| failed(reason_of(&error)))?;
    if found.is_empty() {
        return Err(failed("no certificate in it".to_owned()));
    }
    Ok(found)
}

/// What happened, without the file's contents.
fn reason_of(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("can't read it: {error}"),
        pem::Error::NoItemsFound => "nothing of that kind in it".to_owned(),
        _ => "it is damaged".to_owned(),
    }
}
