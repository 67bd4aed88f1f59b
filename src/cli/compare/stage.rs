//! Both sides, ready to be asked: models of a running server, or loaded into one of our own.
//!
//! Our own serves on loopback, so that what is compared took the whole way of a request: admission,
//! tokenizer, packed batches, engine.

use std::{path::Path, time::Duration};

use tempfile::TempDir;
use tonic::transport::Endpoint;

use super::{
    client::Client,
    subject::{Subject, split_version},
};
use crate::{
    cli::{
        Failure,
        reach::{WithKey, WithToken},
    },
    config::{Activation, ServerConfig, Task, server::ModelControl},
    server::Server,
};

/// A side that answers.
#[derive(Debug)]
pub struct Side {
    /// As the user named it.
    pub name: String,
    /// The version that answers; empty for files given by path.
    pub version: String,
    /// How a classifier's logits become probabilities, where it is known.
    pub activation: Option<Activation>,
    /// Bytes of its weights, where they are known.
    pub memory_bytes: Option<u64>,
    /// Where to ask.
    pub client: Client,
}

/// Both sides.
#[derive(Debug)]
pub struct Stage {
    /// What is compared with.
    pub reference: Side,
    /// What is judged.
    pub candidate: Side,
    /// What both do.
    pub task: Task,
    server: Option<Server>,
    _folder: Option<TempDir>,
}

impl Stage {
    /// Two models of the server at `address`.
    ///
    /// # Errors
    /// When the server or a model isn't there, or they do different things.
    pub async fn live(
        (address, key): (&str, WithToken),
        names: [&str; 2],
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let channel = WithKey::new(connect(&format!("http://{address}")).await?, key);
        let side = async |given: &str| -> Result<(Side, Task), Failure> {
            let (name, version) = split_version(given);
            let client = Client::new(channel.clone(), name, version, timeout);
            let (task, version) = client.describe().await?;
            let side = Side {
                name: given.to_owned(),
                version,
                activation: None,
                memory_bytes: None,
                client,
            };
            Ok((side, task))
        };
        let (reference, candidate) = (side(names[0]).await?, side(names[1]).await?);
        Ok(Self {
            task: one_task([&reference, &candidate])?,
            reference: reference.0,
            candidate: candidate.0,
            server: None,
            _folder: None,
        })
    }

    /// Two models loaded here: named by path, or in the folder `models`.
    ///
    /// # Errors
    /// When one isn't there or doesn't load, or they do different things.
    pub async fn load(models: &Path, names: [&str; 2], timeout: Duration) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        for (given, place) in names.iter().zip(PLACES) {
            Subject::find(given, models)?.place(folder.path(), place)?;
        }
        let mut config = ServerConfig::default();
        config.models.directory = folder.path().to_owned();
        config.models.control = ModelControl::None;
        config.admin.enabled = false;
        config.models.serve = PLACES.map(str::to_owned).to_vec();
        config.grpc.host = "127.0.0.1".parse()?;
        config.http.host = config.grpc.host;
        (config.grpc.port, config.http.port) = (0, 0);
        let mut server = Server::start(config).await?;
        server.loaded().await;

        let channel = connect(&format!("http://{}", server.grpc_address)).await?;
        let channel = WithKey::new(channel, WithToken::default());
        let side = |at: usize| -> Result<(Side, Task), Failure> {
            let (given, place) = (names[at], PLACES[at]);
            let model = server
                .repository()
                .find(place, "", None)
                .map_err(|error| error.to_string().replace(&format!("'{place}'"), given))?;
            let (_, version) = split_version(given);
            let side = Side {
                name: given.to_owned(),
                version: version.to_owned(),
                activation: Some(model.activation),
                memory_bytes: Some(model.weight_bytes),
                client: Client::new(channel.clone(), place, "", timeout),
            };
            Ok((side, model.task()))
        };
        let (reference, candidate) = (side(0)?, side(1)?);
        Ok(Self {
            task: one_task([&reference, &candidate])?,
            reference: reference.0,
            candidate: candidate.0,
            server: Some(server),
            _folder: Some(folder),
        })
    }

    /// Takes down what was started here.
    pub async fn close(self) {
        if let Some(server) = self.server {
            server.shut_down().await;
        }
    }
}

/// What the sides are called in a server of our own.
const PLACES: [&str; 2] = ["reference", "candidate"];

async fn connect(url: &str) -> Result<tonic::transport::Channel, Failure> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.connect_timeout(Duration::from_secs(5));
    endpoint.connect().await.map_err(|error| {
        let cause = std::error::Error::source(&error);
        let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
        format!("can't reach {url}: {cause}").into()
    })
}

fn one_task(sides: [&(Side, Task); 2]) -> Result<Task, Failure> {
    let [(reference, one), (candidate, other)] = sides;
    if one == other {
        return Ok(*one);
    }
    let (reference, candidate) = (&reference.name, &candidate.name);
    Err(
        format!("'{reference}' does {one} and '{candidate}' does {other}: nothing to compare")
            .into(),
    )
}
