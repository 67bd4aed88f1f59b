//! The command line: one file a command.

#![deny(clippy::print_stderr, clippy::print_stdout)]

#[macro_use]
mod say;

mod admin;
mod bench;
mod calibrate;
mod compare;
mod fetch;
mod health;
mod inspect;
mod jobs;
mod key;
mod page;
mod quantize;
mod reach;
mod replay;
mod serve;
mod warm;

pub use replay::read_log;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A batching inference server.
#[derive(Debug, Parser)]
#[command(name = "ferry", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over gRPC and HTTP.
    Serve(serve::Serve),
    /// Operate a running server: load, swap and drain versions, route traffic.
    Admin(admin::Admin),
    /// Get models ready for a fast start: prepare their weights, run their warm-up, check their
    /// outputs.
    Warm(warm::Warm),
    /// Tell what a model is made of, without loading it.
    Inspect(inspect::Inspect),
    /// Bring a model's files from the Hugging Face Hub.
    Fetch(fetch::Fetch),
    /// Ask a running server how it is.
    Health(health::Health),
    /// Write a model's weights in fewer bits, as a GGUF file.
    Quantize(quantize::Quantize),
    /// Measure a model in process and served over gRPC.
    Bench(bench::Bench),
    /// Make a classifier's or reranker's confidences probabilities, from labelled rows.
    Calibrate(calibrate::Calibrate),
    /// Compare two models on the same inputs, as a table, a picture and a gate.
    Compare(compare::Compare),
    /// Make an API key.
    Key(key::Key),
    /// Run a request log again, and compare its answers.
    Replay(replay::Replay),
    /// Submit requests that can wait to a running server, and fetch their results.
    Jobs(jobs::Jobs),
}

/// Why a command failed, for people.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command line. Errors go to standard error and exit with 1; a wrong command line exits with
/// 2, but of `compare`, where 2 says that a threshold is broken, with 1.
pub fn main() -> ExitCode {
    name_compute_threads();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let compares = std::env::args_os()
                .nth(1)
                .is_some_and(|first| first == "compare");
            // Fails only where there is nowhere to say it.
            let _ = error.print();
            return match (error.use_stderr(), compares) {
                (false, _) => ExitCode::SUCCESS,
                (true, true) => ExitCode::FAILURE,
                (true, false) => ExitCode::from(2),
            };
        }
    };
    let result = match cli.command {
        Command::Serve(command) => command.run(),
        Command::Admin(command) => return command.run(),
        Command::Warm(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Fetch(command) => command.run(),
        Command::Health(command) => command.run(),
        Command::Quantize(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Calibrate(command) => command.run(),
        Command::Compare(command) => match command.run() {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Replay(command) => match command.run() {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Jobs(command) => command.run(),
        Command::Key(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::end_if_closed(&*error);
            say_aside!("ferry: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Tells the threads that run models from those that do I/O, for `top -H` and profilers.
fn name_compute_threads() {
    // Fails only when the pool is there already, which would merely keep its name.
    let _ = rayon::ThreadPoolBuilder::new()
        .thread_name(|index| format!("compute-{index}"))
        .build_global();
}

/// The runtime of the I/O threads.
fn io_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("io")
        .build()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn no_command_contradicts_itself() {
        super::Cli::command().debug_assert();
    }
}
