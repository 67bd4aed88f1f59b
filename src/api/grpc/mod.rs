//! The gRPC listener: which services it has and how it treats connections.

pub mod admin;
mod duplex;
mod health;
mod inference;
mod jobs;
mod oip;
mod reflection;

pub use inference::{TypedInference, shorten};
pub use jobs::DEFAULT_TENANT;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::middleware::from_fn_with_state;
use tokio::{net::TcpListener, sync::watch};
use tonic::{codec::CompressionEncoding, service::Routes, transport::Server};

use super::{gate::GrpcGate, listener::Incoming};
use crate::{
    admission::{Admission, Callers, Operators},
    api::proto::{
        ferry::v1::{inference_server::InferenceServer, jobs_server::JobsServer},
        inference::grpc_inference_service_server::GrpcInferenceServiceServer,
    },
    api::trace::trace_request,
    config::{admin::RepositoryRpcs, server::GrpcConfig},
    error::RequestError,
    jobs::Jobs,
    telemetry::{Metrics, traces::Tracer},
};

/// Calls that a client has taken back before they were looked at, at most; with more, it is flooding
/// the server with work that it doesn't want ("rapid reset", CVE-2023-44487), and its connection ends.
const MAX_PENDING_RESETS: usize = 20;

/// Calls that were cut since the client broke HTTP/2's rules in them, at most, before its connection is.
const MAX_ERROR_RESETS: usize = 1024;

/// What the services share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The gate to the models.
    pub admission: Arc<Admission>,
    /// Where requests are counted.
    pub metrics: Metrics,
    /// Whether the models to be served have been loaded.
    pub started: watch::Receiver<bool>,
    /// Becomes true when streams are to end.
    pub closing: watch::Receiver<bool>,
    /// Requests of one stream that may be in the server at a time.
    pub max_stream_requests: usize,
    /// The gate of the callers.
    pub callers: Arc<Callers>,
    /// Whether the HTTP side has the page that shows what the server does.
    pub dashboard: bool,
    /// Whether the metrics can be read without a key.
    pub open_metrics: bool,
    /// The gate of the operators.
    pub operators: Arc<Operators>,
    /// Who may use the repository RPCs.
    pub repository_rpcs: RepositoryRpcs,
    /// Requests that can wait, where they are on.
    pub jobs: Option<Jobs>,
    /// Which requests are traced.
    pub tracer: Tracer,
}

impl Shared {
    /// Whether requests should come here.
    pub fn is_ready(&self) -> bool {
        *self.started.borrow() && !self.admission.is_closed() && self.lost().is_empty()
    }

    /// The models that refuse everything since their devices are lost.
    pub fn lost(&self) -> Vec<String> {
        self.admission.repository().lost()
    }

    /// Requests that can wait.
    ///
    /// # Errors
    /// [`RequestError::Refused`] where they are off.
    pub fn jobs(&self) -> Result<&Jobs, RequestError> {
        self.jobs.as_ref().ok_or_else(Jobs::off)
    }
}

/// Message size and compressions of a service. The generated services have these methods in common
/// but no trait.
macro_rules! with_limits {
    ($service:expr, $config:expr) => {
        $service
            .max_decoding_message_size($config.max_request_bytes)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
            .accept_compressed(CompressionEncoding::Zstd)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Deflate)
            .send_compressed(CompressionEncoding::Zstd)
    };
}

/// Why the listener ended.
pub type ListenError = Box<dyn std::error::Error + Send + Sync>;

/// Serves gRPC on what comes in until `shutdown` is done, then lets what is in flight end.
///
/// # Errors
/// When the services can't be built or the listener fails.
pub async fn serve(
    shared: Shared,
    config: &GrpcConfig,
    incoming: Incoming,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ListenError> {
    let inference = GrpcInferenceServiceServer::new(oip::OpenInference::new(shared.clone()));
    let inference = with_limits!(inference, config);
    let typed = InferenceServer::new(TypedInference::new(shared.clone()));
    let typed = with_limits!(typed, config);
    let jobs = JobsServer::new(jobs::JobsService::new(shared.clone()));
    let jobs = with_limits!(jobs, config);

    let mut routes = Routes::new(health::serve_health(&shared))
        .add_service(reflection::of_public_services().build_v1()?)
        .add_service(reflection::of_public_services().build_v1alpha()?)
        .add_service(inference)
        .add_service(typed)
        .add_service(jobs);
    if shared.tracer.is_on() {
        let traced = from_fn_with_state(shared.tracer.clone(), trace_request);
        routes = routes.into_axum_router().layer(traced).into();
    }

    let keepalive = Some(config.keepalive_seconds)
        .filter(|&seconds| seconds > 0)
        .map(Duration::from_secs);
    let gate = GrpcGate::new(Arc::clone(&shared.callers), shared.repository_rpcs);
    Server::builder()
        .layer(gate)
        .http2_keepalive_interval(keepalive)
        .http2_keepalive_timeout(Some(Duration::from_secs(config.keepalive_timeout_seconds)))
        .max_concurrent_streams(config.max_concurrent_streams)
        .http2_max_header_list_size(config.max_header_bytes)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        // A large batch of texts or embeddings shouldn't wait for window updates.
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming.into_stream(), shutdown)
        .await?;
    Ok(())
}

/// Binds a listener; port 0 takes a free one.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}
