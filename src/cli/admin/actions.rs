//! The actions that take time: load, warm, swap, unload, drain. What happens is told as it does.

use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::json;
use tonic::Streaming;

use super::{
    AdminFailure,
    connect::Server,
    json as to_json,
    table::{seconds, told},
};
use crate::api::proto::ferry::v1::{self as pb, progress::Step};

/// What takes time.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Load a version beside what is served; it gets traffic if the version policy says so.
    Load(AnyVersion),
    /// Load a version and warm it up; it gets no traffic yet.
    Warm(OneVersion),
    /// Serve another version from now on: load, warm, route, drain the old. No request is lost.
    Swap(OneVersion),
    /// Take a version, or a whole model, out of service and free its memory.
    Unload(AnyVersion),
    /// Let nothing more into a version, or a whole model, and wait until it has answered.
    Drain(AnyVersion),
}

/// A version, or the model as a whole.
#[derive(Debug, Args)]
pub struct AnyVersion {
    /// The model's name.
    model: String,
    /// The version; left out, what the version policy says (load), or all of them.
    // Not `version`, which is the flag that every command has.
    #[arg(id = "number", value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    version: Option<u64>,
}

/// A version.
#[derive(Debug, Args)]
pub struct OneVersion {
    /// The model's name.
    model: String,
    /// The version.
    // Not `version`, which is the flag that every command has.
    #[arg(id = "number", value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    version: u64,
}

impl Action {
    /// Has it done, and tells what happens.
    pub async fn run(self, server: Server, json: bool) -> Result<(), AdminFailure> {
        let mut client = server.client.clone();
        let call = async {
            let steps = match self {
                Self::Load(asked) => client.load(pb::LoadRequest::from(asked)).await?,
                Self::Warm(OneVersion { model, version }) => {
                    client.warm(pb::WarmRequest { model, version }).await?
                }
                Self::Swap(OneVersion { model, version }) => {
                    client.swap(pb::SwapRequest { model, version }).await?
                }
                Self::Unload(asked) => client.unload(pb::UnloadRequest::from(asked)).await?,
                Self::Drain(asked) => client.drain(pb::DrainRequest::from(asked)).await?,
            };
            follow(steps.into_inner()).await
        };
        print(&server.long(call).await?, json);
        Ok(())
    }
}

/// The requests that name a version or none are alike, and have no trait in common.
macro_rules! from_any_version {
    ($($request:ident),*) => {$(
        impl From<AnyVersion> for pb::$request {
            fn from(AnyVersion { model, version }: AnyVersion) -> Self {
                Self { model, version: version.unwrap_or_default() }
            }
        }
    )*};
}
from_any_version!(LoadRequest, UnloadRequest, DrainRequest);

/// Tells what happens until the end.
async fn follow(mut steps: Streaming<pb::Progress>) -> Result<pb::Done, AdminFailure> {
    let began = Instant::now();
    while let Some(progress) = steps.message().await? {
        let after = seconds(began.elapsed());
        match progress.step {
            Some(Step::Change(change)) => {
                say_aside!("{after:>8}  {}", told(&change));
            }
            Some(Step::Waiting(pb::Waiting { version, in_flight })) => {
                say_aside!("{after:>8}  version {version} drains, {in_flight} in flight");
            }
            Some(Step::Done(done)) => return Ok(done),
            // A step of a newer server.
            None => {}
        }
    }
    Err(AdminFailure::CutShort)
}

fn print(done: &pb::Done, json: bool) {
    if json {
        let document = json!({
            "version": done.version,
            "summary": done.summary,
            "took_ms": done.took_us as f64 / 1e3,
            "status": done.status.as_ref().map(to_json::model),
        });
        say!("{document:#}");
    } else {
        let took = std::time::Duration::from_micros(done.took_us);
        say!("{} ({})", done.summary, seconds(took));
    }
}
