//! Where the server is, who we are, and how long we wait for it.

use std::{future::Future, path::PathBuf, time::Duration};

use clap::Args;
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use super::AdminFailure;
use crate::{
    api::proto::ferry::v1::admin_client::AdminClient,
    cli::reach::{ClientTls, WithToken},
};

/// How long a call that changes or reads little may take.
const SHORT_CALL: Duration = Duration::from_secs(30);
/// A status has every model with its decisions.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// Where the server is, and who we are.
#[derive(Debug, Args)]
pub struct Connection {
    /// The admin listener; its address stands in the server's log as `admin=…`.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8003",
        env = "FERRY_ADMIN_SERVER",
        global = true
    )]
    server: String,
    #[command(flatten)]
    tls: ClientTls,
    /// The admin token. Better kept in a file, or in `FERRY_ADMIN_TOKEN`: other users of the machine
    /// see the arguments of commands.
    #[arg(long, global = true, conflicts_with = "token_file")]
    token: Option<String>,
    /// A file whose first token is taken, as the server's own token file has them [env:
    /// `FERRY_ADMIN_TOKEN_FILE`].
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Seconds to wait for the whole of it. By default 30, and without end for load, warm, swap,
    /// unload, drain, rollback and --watch. What is under way in the server goes on.
    #[arg(long, value_name = "SECONDS", global = true, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Seconds to wait for a connection.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, global = true, value_parser = clap::value_parser!(u64).range(1..))]
    connect_timeout: u64,
}

/// A client that carries the token.
pub type Client = AdminClient<InterceptedService<Channel, WithToken>>;

/// A connection to the admin listener.
#[derive(Debug)]
pub struct Server {
    pub client: Client,
    timeout: Option<Duration>,
}

impl Connection {
    /// Connects.
    pub async fn open(self) -> Result<Server, AdminFailure> {
        let usage = AdminFailure::Usage;
        let scheme = if self.tls.is_on() { "https" } else { "http" };
        let url = if self.server.contains("://") {
            self.server.clone()
        } else {
            format!("{scheme}://{}", self.server)
        };
        let endpoint = self
            .tls
            .endpoint(&url)
            .map_err(|reason| usage(format!("--server: {reason}")))?
            .user_agent(concat!("ferry-admin/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| usage(error.to_string()))?
            .connect_timeout(Duration::from_secs(self.connect_timeout))
            // A tunnel that is gone must not keep a watch waiting for ever.
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let authorization = self.authorization()?;
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| AdminFailure::Unreachable {
                url: url.clone(),
                reason: innermost(&error),
            })?;
        let client = AdminClient::with_interceptor(channel, authorization)
            .max_decoding_message_size(MAX_RESPONSE_BYTES);
        Ok(Server {
            client,
            timeout: self.timeout.map(Duration::from_secs),
        })
    }

    /// The token: from the flags, else from the environment, else none.
    fn authorization(&self) -> Result<WithToken, AdminFailure> {
        let set = |key| std::env::var(key).ok().filter(|value| !value.is_empty());
        let token = if let Some(token) = &self.token {
            token.clone()
        } else if let Some(path) = &self.token_file {
            first_token(path)?
        } else if let Some(token) = set("FERRY_ADMIN_TOKEN") {
            token
        } else if let Some(path) = set("FERRY_ADMIN_TOKEN_FILE") {
            first_token(&PathBuf::from(path))?
        } else {
            return WithToken::new(None).map_err(AdminFailure::Usage);
        };
        WithToken::new(Some(&token)).map_err(AdminFailure::Usage)
    }
}

/// The first token of a file that has one a line, by itself or after a name.
fn first_token(path: &std::path::Path) -> Result<String, AdminFailure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        AdminFailure::Usage(format!("the token file: can't read {shown}: {error}"))
    })?;
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .and_then(|line| line.split_whitespace().last())
        .map(str::to_owned)
        .ok_or_else(|| AdminFailure::Usage(format!("the token file: {shown} has no token")))
}

impl Server {
    /// Waits for a call that is answered at once, or says that it was not.
    pub async fn short<T>(
        &self,
        call: impl Future<Output = Result<T, AdminFailure>>,
    ) -> Result<T, AdminFailure> {
        within(Some(self.timeout.unwrap_or(SHORT_CALL)), call).await
    }

    /// Waits for a call that takes as long as it takes, or as long as it was given.
    pub async fn long<T>(
        &self,
        call: impl Future<Output = Result<T, AdminFailure>>,
    ) -> Result<T, AdminFailure> {
        within(self.timeout, call).await
    }
}

async fn within<T>(
    limit: Option<Duration>,
    call: impl Future<Output = Result<T, AdminFailure>>,
) -> Result<T, AdminFailure> {
    let Some(limit) = limit else {
        return call.await;
    };
    tokio::time::timeout(limit, call)
        .await
        .unwrap_or(Err(AdminFailure::TimedOut { limit }))
}

/// What the system said; what wraps it says only that there was an error.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_from_the_file_that_the_server_has() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# ours\n\nanna 0123456789abcdef\nother\n").unwrap();
        assert_eq!(first_token(file.path()).unwrap(), "0123456789abcdef");
        std::fs::write(file.path(), "# none\n").unwrap();
        let error = first_token(file.path()).unwrap_err().to_string();
        assert!(error.contains("has no token"), "{error}");
    }
}
