//! `ferry.v1.Admin`, for operators, on a listener of its own.

mod action;
mod audit;
mod check;
mod encode;
mod errors;
mod service;
mod watch;

use std::{future::Future, sync::Arc, time::Duration};

use tonic::transport::Server;
use tonic_health::ServingStatus;

pub use audit::{Audit, anonymous, identify};
pub use encode::named;

use super::{ListenError, MAX_ERROR_RESETS, MAX_PENDING_RESETS, Shared, reflection};
use crate::api::{listener::Incoming, proto::ferry::v1::admin_server::AdminServer};

/// The service's full name, for health.
const SERVICE: &str = "ferry.v1.Admin";
/// A route with all its labels is far smaller.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Calls of one connection.
const MAX_CONCURRENT_CALLS: u32 = 128;

/// Bytes of a call's headers taken in.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// How often an idle connection is looked after: a `--watch` through a tunnel that is gone must not
/// keep its place.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Serves operators on what comes in until `shutdown` is done.
///
/// # Errors
/// When the services can't be built or the listener fails.
pub async fn serve(
    shared: Shared,
    incoming: Incoming,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ListenError> {
    let operators = Arc::clone(&shared.operators);
    let needs_token = move |mut request: tonic::Request<()>| {
        let operator = identify(&operators, &request)?;
        request.extensions_mut().insert(operator);
        Ok(request)
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_service_status(SERVICE, ServingStatus::Serving)
        .await;
    let closing = closed(shared.closing.clone());
    tokio::spawn(async move {
        closing.await;
        for name in ["", SERVICE] {
            health
                .set_service_status(name, ServingStatus::NotServing)
                .await;
        }
    });
    let admin = AdminServer::new(service::AdminService::new(shared))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let with_token = tonic::service::InterceptorLayer::new(needs_token);
    let guarded = tower::ServiceBuilder::new().layer(with_token);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE / 3))
        .max_concurrent_streams(MAX_CONCURRENT_CALLS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        // Probes have no token, and health tells nothing that the port itself doesn't.
        .add_service(health_service)
        .add_service(guarded.service(reflection::of_admin().build_v1()?))
        .add_service(guarded.service(reflection::of_admin().build_v1alpha()?))
        .add_service(guarded.service(admin))
        .serve_with_incoming_shutdown(incoming.into_stream(), shutdown)
        .await?;
    Ok(())
}

/// Waits until the server goes down.
async fn closed(mut closing: tokio::sync::watch::Receiver<bool>) {
    // An error means that it is gone, which is closed enough.
    let _ = closing.wait_for(|closing| *closing).await;
}
