//! `[grpc]` and `[http]`: where callers are served, and what their connections may do.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::Violation;

/// The gRPC listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpcConfig {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Largest message taken in, in bytes.
    pub max_request_bytes: usize,
    /// Concurrent calls of one connection.
    pub max_concurrent_streams: u32,
    /// Requests of one bidirectional stream that may be in the server at a time; the stream is read
    /// no further until one is answered.
    pub max_stream_requests: usize,
    /// Idle time after which a connection is pinged, in seconds; 0 for never.
    pub keepalive_seconds: u64,
    /// Time a pinged peer has to answer, in seconds.
    pub keepalive_timeout_seconds: u64,
    /// Bytes of request headers taken in.
    pub max_header_bytes: u32,
    /// Connections at a time; further ones wait in the system's line.
    pub max_connections: usize,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 8001,
            max_request_bytes: 64 << 20,
            max_concurrent_streams: 1024,
            max_stream_requests: 256,
            keepalive_seconds: 60,
            keepalive_timeout_seconds: 20,
            max_header_bytes: 16 << 10,
            max_connections: 4096,
        }
    }
}

/// The HTTP listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Whether there is a page that shows what the server does, at `/dashboard/`.
    pub dashboard: bool,
    /// Time that a connection may wait for all headers of its next request, in seconds; then it ends.
    pub idle_seconds: u64,
    /// Bytes of request headers taken in.
    pub max_header_bytes: u32,
    /// Connections at a time; further ones wait in the system's line.
    pub max_connections: usize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 8000,
            dashboard: true,
            idle_seconds: 75,
            max_header_bytes: 64 << 10,
            max_connections: 4096,
        }
    }
}

impl GrpcConfig {
    pub(super) fn validate(&self) -> Result<(), Violation> {
        let least = 1 << 10;
        Violation::unless(
            (least..=2 << 30).contains(&self.max_request_bytes),
            "grpc.max_request_bytes",
            self.max_request_bytes,
            "1024 to 2147483648",
        )?;
        Violation::unless(
            self.max_concurrent_streams > 0,
            "grpc.max_concurrent_streams",
            self.max_concurrent_streams,
            "1 or more",
        )?;
        Violation::unless(
            (1..=65_536).contains(&self.max_stream_requests),
            "grpc.max_stream_requests",
            self.max_stream_requests,
            "1 to 65536",
        )?;
        Violation::unless(
            self.max_header_bytes >= 1 << 10,
            "grpc.max_header_bytes",
            self.max_header_bytes,
            "1024 or more",
        )?;
        Violation::unless(
            (1..=MOST_CONNECTIONS).contains(&self.max_connections),
            "grpc.max_connections",
            self.max_connections,
            "1 to 1048576",
        )
    }
}

impl HttpConfig {
    pub(super) fn validate(&self) -> Result<(), Violation> {
        Violation::unless(
            (1..=86_400).contains(&self.idle_seconds),
            "http.idle_seconds",
            self.idle_seconds,
            "1 to 86400",
        )?;
        Violation::unless(
            (8 << 10..=1 << 20).contains(&self.max_header_bytes),
            "http.max_header_bytes",
            self.max_header_bytes,
            "8192 to 1048576",
        )?;
        Violation::unless(
            (1..=MOST_CONNECTIONS).contains(&self.max_connections),
            "http.max_connections",
            self.max_connections,
            "1 to 1048576",
        )
    }
}

/// Connections that a listener may be told to have, at most.
const MOST_CONNECTIONS: usize = 1 << 20;
