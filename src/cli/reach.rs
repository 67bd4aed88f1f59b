//! How a command reaches a server: encrypted or not, and with which token.

use std::path::PathBuf;

use clap::Args;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// What it takes to reach an encrypted listener, `https://…`.
#[derive(Debug, Default, Args)]
pub struct ClientTls {
    /// The authority whose servers are trusted, PEM.
    #[arg(long, value_name = "FILE", global = true, env = "FERRY_CA")]
    ca: Option<PathBuf>,
    /// The name that the server's certificate has, where it isn't the one in its address.
    #[arg(long, value_name = "NAME", global = true, requires = "ca")]
    server_name: Option<String>,
    /// The certificate to show, PEM, where the server wants one.
    #[arg(long, value_name = "FILE", global = true, requires_all = ["ca", "client_key"], env = "FERRY_CLIENT_CERTIFICATE")]
    client_certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        requires = "client_certificate",
        env = "FERRY_CLIENT_KEY"
    )]
    client_key: Option<PathBuf>,
}

impl ClientTls {
    /// Whether an authority is given, without which nothing is encrypted.
    pub fn is_on(&self) -> bool {
        self.ca.is_some()
    }

    /// The endpoint at `url`, encrypted where an authority is given.
    ///
    /// # Errors
    /// What is wrong with the address or a file.
    pub fn endpoint(&self, url: &str) -> Result<Endpoint, String> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .ok()
            .filter(|endpoint| endpoint.uri().host().is_some())
            .ok_or_else(|| {
                format!("found '{url}'; allowed: http://HOST:PORT or https://HOST:PORT")
            })?;
        let Some(ca) = &self.ca else {
            return if endpoint.uri().scheme_str() == Some("https") {
                Err(format!(
                    "{url} is encrypted: say with --ca FILE whose certificates to trust"
                ))
            } else {
                Ok(endpoint)
            };
        };
        if endpoint.uri().scheme_str() != Some("https") {
            return Err(format!(
                "{url} is not encrypted, and --ca is given; allowed: https://HOST:PORT"
            ));
        }
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        if let (Some(certificate), Some(key)) = (&self.client_certificate, &self.client_key) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        endpoint.tls_config(tls).map_err(|error| error.to_string())
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("can't read {}: {error}", path.display()))
}

/// What it takes to be let in where callers need a key.
#[derive(Debug, Default, Args)]
pub struct ClientKey {
    /// The API key, where the server wants one.
    #[arg(long, global = true, env = "FERRY_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

impl ClientKey {
    /// The key, to be put into each call.
    ///
    /// # Errors
    /// When no header takes it.
    pub fn token(&self) -> Result<WithToken, String> {
        // A variable that is set to nothing is none.
        WithToken::new(self.api_key.as_deref().filter(|key| !key.is_empty()))
    }
}

/// A way to a server that puts a key into each call.
pub type WithKey = InterceptedService<Channel, WithToken>;

/// Puts a token into each call.
#[derive(Debug, Clone, Default)]
pub struct WithToken(Option<MetadataValue<Ascii>>);

impl WithToken {
    /// With `token`, where there is one.
    ///
    /// # Errors
    /// When no header takes it.
    pub fn new(token: Option<&str>) -> Result<Self, String> {
        let Some(token) = token else {
            return Ok(Self(None));
        };
        let mut value = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "the token has characters that no header takes".to_owned())?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl tonic::service::Interceptor for WithToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.0 {
            let authorization = authorization.clone();
            request
                .metadata_mut()
                .insert("authorization", authorization);
        }
        Ok(request)
    }
}
