//! Speaks HTTP/1.1 on each connection that comes in. Beside what `axum::serve` does, one that sends
//! nothing, or its headers byte by byte, does not keep its place.

use std::{future::Future, io, pin::pin, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use futures_util::FutureExt as _;
use hyper::{body::Incoming as HyperBody, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::Peer;
use crate::{
    api::listener::{Connection, Incoming},
    config::server::HttpConfig,
};

/// Headers of a request at most.
const MAX_HEADERS: usize = 100;

/// Bytes that hyper reads ahead at least.
const LEAST_BUFFER: usize = 8 << 10;

/// Serves `routes` on what comes in until `shutdown` is done and what is in flight has ended.
pub(super) async fn serve(
    routes: Router,
    config: &HttpConfig,
    mut incoming: Incoming,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let mut speak = http1::Builder::new();
    speak
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(config.idle_seconds))
        .max_headers(MAX_HEADERS)
        .max_buf_size((config.max_header_bytes as usize).max(LEAST_BUFFER));
    let (closing, is_closing) = watch::channel(false);
    // Each connection has a receiver; when the last has gone, all have ended.
    let mut shutdown = pin!(shutdown.fuse());
    loop {
        let (connection, peer) = tokio::select! {
            () = &mut shutdown => break,
            next = incoming.next() => next,
        };
        let routes = routes
            .clone()
            .map_request(move |request: hyper::Request<HyperBody>| {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(ConnectInfo(Peer(peer)));
                request
            });
        let speaking =
            speak.serve_connection(TokioIo::new(connection), TowerToHyperService::new(routes));
        tokio::spawn(until_closed(speaking, is_closing.clone()));
    }
    drop((incoming, is_closing));
    closing.send_replace(true);
    closing.closed().await;
    Ok(())
}

async fn until_closed<S>(
    speaking: http1::Connection<TokioIo<Connection>, S>,
    mut closing: watch::Receiver<bool>,
) where
    S: hyper::service::HttpService<HyperBody, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut speaking = pin!(speaking);
    let ended = tokio::select! {
        ended = speaking.as_mut() => Some(ended),
        _ = closing.wait_for(|closing| *closing) => None,
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        speaking.as_mut().graceful_shutdown();
        speaking.await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
