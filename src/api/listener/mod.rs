//! The listeners' side towards the network: connections, plain or encrypted.

mod connection;
mod incoming;
mod tls;

pub use connection::Connection;
pub use incoming::{Incoming, Protocol};
pub use tls::{Tls, TlsError};
