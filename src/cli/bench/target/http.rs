//! A connection over HTTP/1.1, one a client, kept from call to call.

use std::fmt;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, Uri,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Asked, Refusal};
use crate::cli::Failure;

/// Bytes of an answer at most.
const MAX_ANSWER: usize = 64 << 20;

/// Letters of a refusal that are kept.
const MAX_MESSAGE: usize = 300;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
    /// What comes before the paths of the protocol; without a slash at its end.
    prefix: String,
}

impl Address {
    /// Reads `http://HOST[:PORT][/PREFIX]`, or `HOST:PORT`. A `/v1` at the end is no prefix: the paths
    /// have it.
    ///
    /// # Errors
    /// When it is none, or wants TLS.
    pub fn parse(url: &str) -> Result<Self, Failure> {
        let full = if url.contains("://") {
            url.to_owned()
        } else {
            format!("http://{url}")
        };
        let uri: Uri = full.parse().map_err(|error| format!("{url}: {error}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(
                format!("{url}: over HTTP, bench speaks to plain listeners only, http://").into(),
            );
        }
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| format!("{url}: no host in it"))?;
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(80),
            prefix: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:{}", self.host, self.port)
    }
}

/// A connection.
#[derive(Debug)]
pub struct HttpConnection {
    address: Address,
    sender: SendRequest<Full<Bytes>>,
    /// Whether it has carried a call already.
    used: bool,
}

impl HttpConnection {
    /// Connects.
    ///
    /// # Errors
    /// When nothing answers.
    pub async fn open(address: &Address) -> Result<Self, Refusal> {
        Ok(Self {
            sender: connect(address).await?,
            address: address.clone(),
            used: false,
        })
    }

    /// Sends JSON; the answer's status is a good one.
    ///
    /// # Errors
    /// When the connection breaks, or the server refuses.
    pub async fn post(
        &mut self,
        path: &str,
        asked: &Asked,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, Refusal> {
        let body = Bytes::from(body);
        let was_used = std::mem::replace(&mut self.used, true);
        let first = self.send(path, asked, body.clone()).await;
        let response = match first {
            // A server may end a connection that it has kept; on a new one it owes an answer.
            Err(refusal) if refusal.broken && was_used => {
                self.sender = connect(&self.address).await?;
                self.send(path, asked, body).await?
            }
            other => other?,
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let said = read(response).await.unwrap_or_default();
        let said: String = String::from_utf8_lossy(&said)
            .chars()
            .take(MAX_MESSAGE)
            .collect();
        Err(Refusal::new(format!("HTTP {}", status.as_u16()), said))
    }

    async fn send(
        &mut self,
        path: &str,
        asked: &Asked,
        body: Bytes,
    ) -> Result<Response<Incoming>, Refusal> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{path}", self.address.prefix))
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in &asked.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Refusal::new("HEADER", error.to_string()))?;
        self.sender.ready().await.map_err(|error| lost(&error))?;
        self.sender
            .send_request(request)
            .await
            .map_err(|error| lost(&error))
    }
}

async fn connect(address: &Address) -> Result<SendRequest<Full<Bytes>>, Refusal> {
    // The brackets of an IPv6 address are the URL's.
    let host = address.host.trim_start_matches('[').trim_end_matches(']');
    let unreachable =
        |error: &dyn fmt::Display| Refusal::broken("CONNECT", format!("{address}: {error}"));
    let socket = TcpStream::connect((host, address.port))
        .await
        .map_err(|error| unreachable(&error))?;
    socket
        .set_nodelay(true)
        .map_err(|error| unreachable(&error))?;
    let (sender, connection) = http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|error| unreachable(&error))?;
    // Ends with the sender, or with the server; either is seen by the next call.
    tokio::spawn(connection);
    Ok(sender)
}

/// Reads an answer to its end.
///
/// # Errors
/// When the connection breaks, or there is too much of it.
pub async fn read(response: Response<Incoming>) -> Result<Bytes, Refusal> {
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await;
    let body = body.map_err(|error| Refusal::broken("CONNECTION", error.to_string()))?;
    Ok(body.to_bytes())
}

/// What a broken connection is called.
pub fn lost(error: &hyper::Error) -> Refusal {
    Refusal::broken("CONNECTION", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_scheme_port_and_prefix() {
        for (url, host, port, prefix) in [
            ("127.0.0.1:8000", "127.0.0.1", 8000, ""),
            ("http://localhost:80/", "localhost", 80, ""),
            ("http://host/v1", "host", 80, ""),
            ("http://[::1]:9/openai/v1/", "[::1]", 9, "/openai"),
        ] {
            let wanted = Address {
                host: host.to_owned(),
                port,
                prefix: prefix.to_owned(),
            };
            assert_eq!(Address::parse(url).unwrap(), wanted, "{url}");
        }
        for url in ["https://host", "", "http://", "http://a b"] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }
}
