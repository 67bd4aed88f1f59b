//! What every request brings before its parameters are looked at: context, version, body.

use axum::{
    body::{Body, Bytes},
    http::HeaderMap,
};

use super::{
    body::{MAX_BODY_BYTES, read_body},
    errors::ApiError,
};
use crate::{
    admission::CallContext,
    api::{context, grpc::Shared, status},
    error::RequestError,
    telemetry::Outcome,
};

/// A request whose body has come in.
#[derive(Debug)]
pub struct Incoming {
    /// Deadline, tenant, priority.
    pub context: CallContext,
    /// The version asked for, by `x-ferry-model-version`; empty for the one in service.
    pub version: String,
    body: Bytes,
}

impl Incoming {
    /// Takes a request in. A request that is refused here is counted.
    ///
    /// # Errors
    /// [`ApiError`] when a header isn't understood or the body doesn't come in.
    pub async fn take(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<Self, ApiError> {
        let most = shared.admission.limits().max_metadata_bytes;
        let read = context::read_headers(headers, most).and_then(|context| {
            let version = context::read(headers, "x-ferry-model-version", most)?;
            Ok((context, version.unwrap_or_default().to_owned()))
        });
        let (context, version) = read.map_err(|error| refuse(shared, error))?;
        let context = CallContext {
            endpoint: "openai",
            ..context
        };
        let body = read_body(headers, body, MAX_BODY_BYTES)
            .await
            .inspect_err(|_| shared.metrics.count_unrouted(Outcome::Invalid))?;
        Ok(Self {
            context,
            version,
            body,
        })
    }

    /// Reads the body. A request that isn't understood is counted.
    ///
    /// # Errors
    /// What `read` says.
    pub fn read<T>(
        &self,
        shared: &Shared,
        read: impl FnOnce(&[u8]) -> Result<T, RequestError>,
    ) -> Result<T, ApiError> {
        read(&self.body).map_err(|error| refuse(shared, error))
    }
}

/// Counts a request that is refused before its model is known.
pub fn refuse(shared: &Shared, error: RequestError) -> ApiError {
    shared.metrics.count_unrouted(status::map(&error).outcome);
    error.into()
}
