//! Who is asked, and in which protocol.

mod events;
mod grpc;
mod http;
mod openai;
mod tei;

use std::{fmt, time::Duration, time::Instant};

use clap::ValueEnum;
use serde::Serialize;
use tonic::transport::Channel;

use self::http::{Address, HttpConnection};
use crate::cli::{Failure, reach::ClientTls};

/// Pieces of a stream at most; one that has more never ends.
const MAX_PIECES: usize = 1 << 20;

/// What is asked for, and in which protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// Ferry's own `ferry.v1.Inference/Embed` over gRPC.
    Embed,
    /// Ferry's own `ferry.v1.Inference/Generate` over gRPC, streamed.
    Generate,
    /// The Open Inference Protocol over gRPC, as Triton and others speak it; a model that takes text.
    OpenInference,
    /// `POST /embed` of text-embeddings-inference.
    Tei,
    /// `POST /v1/embeddings`, as OpenAI has it.
    OpenaiEmbeddings,
    /// `POST /v1/completions`, streamed.
    Completions,
    /// `POST /v1/chat/completions`, streamed.
    Chat,
}

impl Endpoint {
    /// Whether it is spoken over gRPC, not HTTP/1.1.
    pub fn is_grpc(self) -> bool {
        matches!(self, Self::Embed | Self::Generate | Self::OpenInference)
    }

    /// Whether it writes text.
    pub fn generates(self) -> bool {
        matches!(self, Self::Generate | Self::Completions | Self::Chat)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_possible_value() {
            Some(value) => to.write_str(value.get_name()),
            None => Ok(()),
        }
    }
}

/// What every call asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The protocol.
    pub endpoint: Endpoint,
    /// The model.
    pub model: String,
    /// Headers of every call, in lower case.
    pub headers: Vec<(String, String)>,
    /// Tokens to write.
    pub max_tokens: u32,
    /// Whether an answer may end before it has so many.
    pub may_end_early: bool,
    /// The tensor that takes the text, where the server's word on it is not to be taken.
    pub input: Option<String>,
}

/// A server, and what it is asked.
#[derive(Debug)]
pub struct Target {
    asked: Asked,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Grpc(grpc::Channels),
    OpenInference(grpc::Channels, grpc::TextInput),
    Http(Address),
}

/// An answer.
#[derive(Debug, Default)]
pub struct Reply {
    /// Rows in it.
    pub rows: usize,
    /// When each piece of text came, of a stream.
    pub pieces: Vec<Instant>,
    /// Tokens that were written, where the server tells.
    pub written_tokens: Option<u64>,
    /// Tokens that were read, where the server tells.
    pub read_tokens: Option<u64>,
    /// How long the batch ran, where the server tells.
    pub execute: Option<Duration>,
    /// Rows of that batch, where the server tells.
    pub batch_rows: Option<u32>,
}

impl Reply {
    /// Notes a piece of text.
    ///
    /// # Errors
    /// When there is no end of them.
    fn note_piece(&mut self, came: Instant) -> Result<(), Refusal> {
        if self.pieces.len() >= MAX_PIECES {
            let what = format!("more than {MAX_PIECES} pieces in one answer");
            return Err(Refusal::broken("ENDLESS", what));
        }
        self.pieces.push(came);
        Ok(())
    }
}

/// Why a call has no answer.
#[derive(Debug)]
pub struct Refusal {
    /// gRPC's name of the code, `HTTP` and the status, or what went wrong on this side.
    pub code: String,
    /// What the server said.
    pub message: String,
    /// Whether the connection is of no more use.
    pub broken: bool,
}

impl Refusal {
    /// One after which the connection goes on.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            broken: false,
        }
    }

    /// One that ends the connection.
    pub fn broken(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            broken: true,
            ..Self::new(code, message)
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}: {}", self.code, self.message)
    }
}

/// A client's way to the server.
#[derive(Debug)]
pub enum Connection {
    /// A channel, which several clients share.
    Grpc(Channel),
    /// A connection of its own.
    Http(HttpConnection),
}

impl Target {
    /// The server at `url`.
    ///
    /// # Errors
    /// When the address is none, the server can't be reached, or its model takes no text.
    pub async fn find(url: &str, asked: Asked, tls: &ClientTls) -> Result<Self, Failure> {
        let way = match asked.endpoint {
            Endpoint::Embed | Endpoint::Generate => {
                Way::Grpc(grpc::Channels::open(url, tls).await?)
            }
            Endpoint::OpenInference => {
                let channels = grpc::Channels::open(url, tls).await?;
                let input = grpc::TextInput::of(&channels, &asked).await?;
                Way::OpenInference(channels, input)
            }
            _ if tls.is_on() => {
                return Err("--ca: over HTTP, bench speaks to plain listeners only".into());
            }
            _ => Way::Http(Address::parse(url)?),
        };
        Ok(Self { asked, way })
    }

    /// A way for the client with this number.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub async fn connect(&self, client: usize) -> Result<Connection, Refusal> {
        match &self.way {
            Way::Grpc(channels) | Way::OpenInference(channels, _) => {
                channels.channel(client).await.map(Connection::Grpc)
            }
            Way::Http(address) => HttpConnection::open(address).await.map(Connection::Http),
        }
    }
}

impl Connection {
    /// Sends a call and reads its answer to the end.
    ///
    /// # Errors
    /// What the server, or the way to it, refuses.
    pub async fn call(&mut self, target: &Target, rows: Vec<String>) -> Result<Reply, Refusal> {
        let asked = &target.asked;
        match (self, &target.way) {
            (Self::Grpc(channel), Way::OpenInference(_, input)) => {
                grpc::infer(channel, asked, input, rows).await
            }
            (Self::Grpc(channel), _) if asked.endpoint == Endpoint::Generate => {
                grpc::generate(channel, asked, rows).await
            }
            (Self::Grpc(channel), _) => grpc::embed(channel, asked, rows).await,
            (Self::Http(connection), _) => match asked.endpoint {
                Endpoint::Tei => tei::embed(connection, asked, &rows).await,
                Endpoint::OpenaiEmbeddings => openai::embed(connection, asked, &rows).await,
                _ => openai::generate(connection, asked, rows).await,
            },
        }
    }
}
