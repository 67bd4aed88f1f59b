//! `ferry admin`: operates a running server over `ferry.v1.Admin`.
//!
//! What happens goes to standard error as it happens, the result to standard output: a line or table
//! for people, one JSON document with `--json`. Exit codes: 0 it is done; 1 the server was not
//! reached, did not know the operator or did not understand the request; 3 the server understood and
//! refused, or a version did not load, and what was served before is served still.

mod actions;
mod connect;
mod failure;
mod json;
mod route;
mod status;
mod table;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use self::{connect::Connection, failure::AdminFailure};
use super::io_runtime;

/// Operate a running server: load, swap and drain versions, route traffic, see what is served.
#[derive(Debug, Args)]
pub struct Admin {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON, one document on standard output (`status --watch`: one a line).
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show models, versions, their states and their traffic.
    Status(status::Status),
    #[command(flatten)]
    Act(actions::Action),
    /// Split a model's traffic: stable version, canary, shadow, labels. Alone, show the route.
    Route(route::SetRoute),
    /// Make the canary (without one, the shadow) the stable version, if the manifest's rules hold.
    Promote(route::Promote),
    /// Make what a version was asked and said until now what is usual for it; drift is told from that.
    Baseline(route::Baseline),
    /// End the canary; without one, go back to the stable version before this one.
    Rollback(route::Rollback),
}

impl Admin {
    pub fn run(self) -> ExitCode {
        let json = self.json;
        match self.execute() {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                if json {
                    say!("{}", failure.to_json());
                }
                say_aside!("ferry: {failure}");
                failure.exit_code()
            }
        }
    }

    fn execute(self) -> Result<(), AdminFailure> {
        io_runtime()?.block_on(async {
            let Self {
                connection,
                json,
                command,
            } = self;
            let server = connection.open().await?;
            match command {
                Command::Status(command) => command.run(server, json).await,
                Command::Act(command) => command.run(server, json).await,
                Command::Route(command) => command.run(server, json).await,
                Command::Promote(command) => command.run(server, json).await,
                Command::Baseline(command) => command.run(server, json).await,
                Command::Rollback(command) => command.run(server, json).await,
            }
        })
    }
}
