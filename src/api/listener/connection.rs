//! One connection, whatever it is made of: it has a place among those that may be there, and not much
//! time to say its first words.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Time that a connection has to begin to speak.
const OPENING: Duration = Duration::from_secs(10);

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// Until its first words are in.
    opening: Option<Opening>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(super) enum Stream {
    /// As it came.
    Plain(TcpStream),
    /// Encrypted; the handshake is done.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that has yet to begin.
#[derive(Debug)]
struct Opening {
    /// Bytes still to come; of HTTP/2, all of the preface that every connection opens with.
    missing: usize,
    until: Pin<Box<Sleep>>,
}

impl Connection {
    /// A connection whose client has to send `first` bytes soon.
    pub(super) fn new(stream: Stream, place: OwnedSemaphorePermit, first: usize) -> Self {
        let opening = Opening {
            missing: first,
            until: Box::pin(tokio::time::sleep(OPENING)),
        };
        Self {
            stream,
            opening: Some(opening),
            _place: place,
        }
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp().connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = match &mut this.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Stream::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        };
        let Some(opening) = &mut this.opening else {
            return read;
        };
        let Poll::Ready(read) = read else {
            ready!(opening.until.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        };
        let came = buffer.filled().len() - before;
        opening.missing = opening.missing.saturating_sub(came);
        if opening.missing == 0 {
            this.opening = None;
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write_vectored(context, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(tcp) => tcp.is_write_vectored(),
            Stream::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}
