//! Connections as they come in, handed over when they are ready to be spoken on.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Connection, Tls, connection::Stream as Spoken};

/// Time a client has for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way at a time; further connections wait in the system's line.
const HANDSHAKES: usize = 256;
/// How long to wait where the system has no more descriptors.
const EXHAUSTED: Duration = Duration::from_millis(200);

/// Bytes that a client of HTTP/2 opens with (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// What is spoken at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, which gRPC is.
    Http2,
}

/// What comes in at one address.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    tls: Option<Tls>,
    /// Places of connections that are still free.
    places: Arc<Semaphore>,
    /// Bytes that a client opens with, before any answer.
    opening: usize,
    /// Handshakes under way: a slow client must not keep others out.
    shaking: JoinSet<Option<(Connection, SocketAddr)>>,
}

impl Incoming {
    /// What comes in at `listener`, encrypted with `tls` where it is given; `most` at a time. Further
    /// connections wait in the system's line.
    pub fn new(listener: TcpListener, tls: Option<Tls>, protocol: Protocol, most: usize) -> Self {
        Self {
            listener,
            tls,
            places: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            opening: match protocol {
                Protocol::Http1 => 1,
                Protocol::Http2 => PREFACE,
            },
            shaking: JoinSet::new(),
        }
    }

    /// As a stream that never ends.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold(self, |mut incoming| async move {
            let (connection, _) = incoming.next().await;
            Some((Ok(connection), incoming))
        })
    }

    /// The next connection. Nothing is lost when this is dropped before it is there.
    pub async fn next(&mut self) -> (Connection, SocketAddr) {
        loop {
            let accepting = accept(&self.listener, &self.places);
            let opening = self.opening;
            let Some(tls) = &self.tls else {
                let (tcp, peer, place) = accepting.await;
                let connection = Connection::new(Spoken::Plain(tcp), place, opening);
                return (connection, peer);
            };
            tokio::select! {
                (tcp, peer, place) = accepting, if self.shaking.len() < HANDSHAKES => {
                    let acceptor = tls.acceptor();
                    self.shaking.spawn(async move {
                        let tls = shake_hands(acceptor, tcp, peer).await?;
                        let stream = Spoken::Tls(Box::new(tls));
                        Some((Connection::new(stream, place, opening), peer))
                    });
                }
                Some(done) = self.shaking.join_next() => {
                    if let Ok(Some(ready)) = done {
                        return ready;
                    }
                }
            }
        }
    }
}

/// The next connection that there is a place for, over failures of single ones.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let Ok(place) = Arc::clone(places).acquire_owned().await else {
        // It is never closed.
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                // A token must not wait for the client to have acknowledged the one before.
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY");
                }
                return (tcp, peer, place);
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "can't accept connections; trying again");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionRefused | K::ConnectionAborted | K::ConnectionReset
    )
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    peer: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => Some(tls),
        Ok(Err(error)) => {
            tracing::info!(%peer, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::info!(%peer, limit_s = HANDSHAKE.as_secs(), "TLS handshake took too long");
            None
        }
    }
}
