//! Who did what, and how it went: one event of the target `ferry::audit` for each action.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::http::HeaderValue;
use tonic::{Request, Status, transport::server::TcpConnectInfo};

use crate::{
    admission::{Operator, Operators},
    api::status::status_of,
    error::RequestError,
};

/// Tells who is calling, by peer and token.
///
/// # Errors
/// `UNAUTHENTICATED`, or `RESOURCE_EXHAUSTED` after too many wrong tokens; both are logged.
pub fn identify<T>(operators: &Operators, request: &Request<T>) -> Result<Operator, Status> {
    let peer = peer_of(request);
    let authorization = request.metadata().as_ref().get("authorization");
    let authorization = authorization.map(HeaderValue::as_bytes);
    operators
        .identify(peer.map(|peer| peer.ip()), authorization, Instant::now())
        .map_err(|error| {
            let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
            if matches!(error, RequestError::Unauthenticated { .. }) {
                tracing::warn!(target: "ferry::audit", peer, %error, "operator refused");
            } else {
                // The ones before it were logged; a flood must not fill the disk.
                tracing::debug!(target: "ferry::audit", peer, %error, "operator refused");
            }
            status_of(&error)
        })
}

/// Someone who needs no token.
pub fn anonymous<T>(request: &Request<T>) -> Operator {
    Operator {
        peer: peer_of(request).map(|peer| peer.ip()),
        token: Arc::from("none"),
    }
}

fn peer_of<T>(request: &Request<T>) -> Option<SocketAddr> {
    let connection = request.extensions().get::<TcpConnectInfo>();
    connection.and_then(TcpConnectInfo::remote_addr)
}

/// The account of one action. Its end is logged and counted.
#[derive(Debug)]
pub struct Audit {
    operators: Arc<Operators>,
    operator: Operator,
    action: &'static str,
    model: String,
    /// What was asked for, in a few words.
    asked: String,
    began: Instant,
}

impl Audit {
    /// Opens the account of an action on `model`.
    pub fn open(
        operators: Arc<Operators>,
        operator: Operator,
        action: &'static str,
        model: &str,
        asked: String,
    ) -> Self {
        Self {
            operators,
            operator,
            action,
            model: model.to_owned(),
            asked,
            began: Instant::now(),
        }
    }

    /// Closes it with how the action went.
    pub fn close<T>(self, result: &Result<T, RequestError>) {
        self.operators
            .metrics()
            .count_action(self.action, result.is_ok());
        let (peer, token) = (self.operator.peer(), &*self.operator.token);
        let took_ms = self.began.elapsed().as_millis() as u64;
        let (action, model, asked) = (self.action, self.model.as_str(), self.asked.as_str());
        match result {
            Ok(_) => tracing::info!(
                target: "ferry::audit",
                action, model, asked, peer, token, took_ms, result = "ok",
                "operator"
            ),
            Err(error) => tracing::warn!(
                target: "ferry::audit",
                action, model, asked, peer, token, took_ms, result = "failed", %error,
                "operator"
            ),
        }
    }
}
