//! `ferry health`: asks a running server how it is, for images that have no shell and no curl.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use clap::Args;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{Failure, io_runtime, reach::ClientTls};

/// Ask a running server how it is. Exits with 0 when it is well, with 1 and the reason otherwise.
#[derive(Debug, Args)]
pub struct Health {
    /// Its HTTP listener. A port alone is of this machine.
    #[arg(
        long,
        value_name = "[HOST:]PORT",
        default_value = "8000",
        env = "FERRY_HTTP_PORT"
    )]
    http: String,
    /// Ask its gRPC listener instead, by `grpc.health.v1`.
    #[arg(long, value_name = "[HOST:]PORT")]
    grpc: Option<String>,
    #[command(flatten)]
    tls: ClientTls,
    /// Whether it takes requests (the default).
    #[arg(long, conflicts_with = "live")]
    ready: bool,
    /// Whether it answers at all.
    #[arg(long)]
    live: bool,
    /// Whether this model takes requests.
    #[arg(long, value_name = "NAME", requires = "grpc", conflicts_with = "live")]
    model: Option<String>,
    /// How long it may take to answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    timeout: f64,
}

impl Health {
    pub fn run(self) -> Result<(), Failure> {
        let timeout = Duration::try_from_secs_f64(self.timeout)
            .ok()
            .filter(|timeout| !timeout.is_zero())
            .ok_or_else(|| format!("--timeout {}; allowed: more than 0", self.timeout))?;
        if self.tls.is_on() && self.grpc.is_none() {
            return Err("--ca: an encrypted server is asked by --grpc [HOST:]PORT".into());
        }
        match &self.grpc {
            Some(address) => {
                let asking = ask_grpc(
                    with_host(address),
                    &self.tls,
                    self.model.unwrap_or_default(),
                    self.live,
                );
                io_runtime()?.block_on(async {
                    tokio::time::timeout(timeout, asking)
                        .await
                        .unwrap_or_else(|_| Err("no answer in time".into()))
                })
            }
            None => ask_http(&with_host(&self.http), self.live, timeout),
        }
    }
}

fn with_host(address: &str) -> String {
    if address.parse::<u16>().is_ok() {
        format!("127.0.0.1:{address}")
    } else {
        address.to_owned()
    }
}

/// One GET by hand: a client library is more than this needs.
fn ask_http(address: &str, live: bool, timeout: Duration) -> Result<(), Failure> {
    let until = Instant::now() + timeout;
    let left = || {
        let left = until.saturating_duration_since(Instant::now());
        // The system takes 0 for no limit.
        left.max(Duration::from_millis(1))
    };
    let failed = |error: std::io::Error| format!("{address}: {error}");
    let resolved = address.to_socket_addrs().map_err(failed)?.next();
    let resolved = resolved.ok_or_else(|| format!("{address}: no such address"))?;
    let mut socket = TcpStream::connect_timeout(&resolved, left()).map_err(failed)?;
    socket.set_write_timeout(Some(left())).map_err(failed)?;
    let path = if live { "live" } else { "ready" };
    let request = format!("GET /health/{path} HTTP/1.0\r\nhost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = [0; 1024];
    let mut taken = 0;
    while taken < answer.len() && Instant::now() < until {
        socket.set_read_timeout(Some(left())).map_err(failed)?;
        match socket.read(&mut answer[taken..]).map_err(failed)? {
            0 => break,
            more => taken += more,
        }
    }
    let answer = String::from_utf8_lossy(&answer[..taken]);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let first = head.lines().next().unwrap_or("no answer");
    Err(format!("{address}: {first}: {}", body.trim()).into())
}

async fn ask_grpc(
    address: String,
    tls: &ClientTls,
    service: String,
    live: bool,
) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| format!("{address}: {error}");
    let scheme = if tls.is_on() { "https" } else { "http" };
    let endpoint = tls
        .endpoint(&format!("{scheme}://{address}"))?
        .connect()
        .await
        .map_err(|error| failed(&root_cause(&error)))?;
    let answer = HealthClient::new(endpoint)
        .check(HealthCheckRequest { service })
        .await
        .map_err(|status| failed(&status.message()))?;
    let status = answer.into_inner().status();
    if live || status == ServingStatus::Serving {
        return Ok(());
    }
    Err(failed(&status.as_str_name()).into())
}

/// What happened, behind "transport error" and "tcp connect error".
fn root_cause(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .last()
        .map_or_else(String::new, ToString::to_string)
}
