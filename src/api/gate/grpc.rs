//! The gate as a layer of the gRPC server.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::http::{Request, Response};
use tonic::{body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service};

use super::{body::Held, enter, needs, restricted};
use crate::{admission::Callers, api::status::status_of, config::admin::RepositoryRpcs};

/// Puts the gate before all services of a server.
#[derive(Debug, Clone)]
pub struct GrpcGate {
    callers: Arc<Callers>,
    repository_rpcs: RepositoryRpcs,
}

impl GrpcGate {
    /// The gate that `callers` keeps.
    pub fn new(callers: Arc<Callers>, repository_rpcs: RepositoryRpcs) -> Self {
        Self {
            callers,
            repository_rpcs,
        }
    }
}

impl<S> Layer<S> for GrpcGate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            gate: self.clone(),
            inner,
        }
    }
}

/// A service behind the gate.
#[derive(Debug, Clone)]
pub struct Gated<S> {
    gate: GrpcGate,
    inner: S,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Held<Body>>, E>> + Send>>;

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Held<Body>>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answer<S::Error> {
        let need = needs::of_grpc(request.uri().path(), self.gate.repository_rpcs);
        let peer = request
            .extensions()
            .get::<TcpConnectInfo>()
            .and_then(|connection| Some(connection.remote_addr?.ip()));
        match enter(&self.gate.callers, need, request.headers_mut(), peer) {
            Ok((place, models)) => {
                let answer = restricted(models, self.inner.call(request));
                Box::pin(async move { Ok(answer.await?.map(|body| Held::new(body, place))) })
            }
            Err(error) => {
                let refused = status_of(&error).into_http();
                Box::pin(async move { Ok(refused) })
            }
        }
    }
}
