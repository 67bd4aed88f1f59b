//! Connections as they come in, handed over when they are ready to be spoken on.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{Stream, stream};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{Connection, Tls};

/// Time a client has for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way at a time; further connections wait in the system's line.
const HANDSHAKES: usize = 256;
/// How long to wait where the system has no more descriptors.
const EXHAUSTED: Duration = Duration::from_millis(200);

/// What comes in at one address.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    tls: Option<Tls>,
    /// Handshakes under way: a slow client must not keep others out.
    shaking: JoinSet<Option<(Connection, SocketAddr)>>,
}

impl Incoming {
    /// What comes in at `listener`, encrypted with `tls` where it is given.
    pub fn new(listener: TcpListener, tls: Option<Tls>) -> Self {
        Self {
            listener,
            tls,
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
    async fn next(&mut self) -> (Connection, SocketAddr) {
        loop {
            let Some(tls) = &self.tls else {
                let (tcp, peer) = accept(&self.listener).await;
                return (Connection::Plain(tcp), peer);
            };
            tokio::select! {
                (tcp, peer) = accept(&self.listener), if self.shaking.len() < HANDSHAKES => {
                    let acceptor = tls.acceptor();
                    self.shaking.spawn(shake_hands(acceptor, tcp, peer));
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

/// The next connection, over failures of single ones.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                // A token must not wait for the client to have acknowledged the one before.
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY");
                }
                return (tcp, peer);
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
) -> Option<(Connection, SocketAddr)> {
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => Some((Connection::Tls(Box::new(tls)), peer)),
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

impl axum::serve::Listener for Incoming {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        self.next().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
