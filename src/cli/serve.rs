//! `ferry serve`: reads the configuration, starts the server, ends it on SIGTERM or SIGINT.

use std::{io::Write as _, path::PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, io_runtime};
use crate::{
    config::{DeviceChoice, Secret, ServerConfig, Task, server::LogFormat},
    server::Server,
    telemetry::logs,
};

/// Serve models over gRPC and HTTP. Flags win over environment variables, and these over the file.
#[derive(Debug, Args)]
pub struct Serve {
    /// Configuration file (ferry.toml); without one the defaults hold.
    #[arg(long, value_name = "FILE", env = "FERRY_CONFIG")]
    config: Option<PathBuf>,
    /// The models folder.
    #[arg(long, value_name = "DIR", env = "FERRY_MODELS")]
    models: Option<PathBuf>,
    /// Serve only this model; may be given more than once.
    #[arg(long = "model", value_name = "NAME")]
    only: Vec<String>,
    /// gRPC port; 0 takes a free one.
    #[arg(long, value_name = "PORT", env = "FERRY_GRPC_PORT")]
    grpc_port: Option<u16>,
    /// HTTP port; 0 takes a free one.
    #[arg(long, value_name = "PORT", env = "FERRY_HTTP_PORT")]
    http_port: Option<u16>,
    /// Port of the admin listener; 0 takes a free one.
    #[arg(long, value_name = "PORT", env = "FERRY_ADMIN_PORT")]
    admin_port: Option<u16>,
    /// Address of the admin listener; one that other machines reach needs a token.
    #[arg(long, value_name = "ADDRESS", env = "FERRY_ADMIN_HOST")]
    admin_host: Option<std::net::IpAddr>,
    /// File with the admin tokens, one a line. A single one may be in `FERRY_ADMIN_TOKEN`.
    #[arg(long, value_name = "FILE", env = "FERRY_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// Address to listen on, for gRPC and HTTP.
    #[arg(long, value_name = "ADDRESS", env = "FERRY_HOST")]
    host: Option<std::net::IpAddr>,
    /// What models run on whose manifests don't say: auto, cpu, cuda, cuda:N, or several with commas.
    #[arg(long, value_name = "DEVICE", env = "FERRY_DEVICE")]
    device: Option<DeviceChoice>,
    /// Keep jobs in this folder; without one there are no jobs.
    #[arg(long, value_name = "DIR", env = "FERRY_JOBS")]
    jobs: Option<PathBuf>,
    /// What to log: a level or tracing directives.
    #[arg(long, value_name = "FILTER", env = "FERRY_LOG")]
    log: Option<String>,
    /// Print the configuration in force and exit.
    #[arg(long)]
    print_config: bool,
}

impl Serve {
    pub fn run(self) -> Result<(), Failure> {
        let print = self.print_config;
        let config = self.configure()?;
        if print {
            say_part!("{}", toml::to_string(&config)?);
            return Ok(());
        }
        logs::start(&config.log.filter, config.log.format == LogFormat::Json)?;
        io_runtime()?.block_on(serve(config))
    }

    fn configure(self) -> Result<ServerConfig, Failure> {
        let mut config = match &self.config {
            Some(path) => ServerConfig::read(path)?,
            None => ServerConfig::default(),
        };
        if let Some(models) = self.models {
            config.models.directory = models;
        }
        if !self.only.is_empty() {
            config.models.serve = self.only;
        }
        if let Some(port) = self.grpc_port {
            config.grpc.port = port;
        }
        if let Some(port) = self.http_port {
            config.http.port = port;
        }
        if let Some(host) = self.host {
            config.grpc.host = host;
            config.http.host = host;
        }
        if let Some(port) = self.admin_port {
            config.admin.port = port;
        }
        if let Some(host) = self.admin_host {
            config.admin.host = host;
        }
        // Not a flag: other users of the machine see those.
        let token = std::env::var("FERRY_ADMIN_TOKEN").ok();
        if let Some(path) = self.admin_token_file {
            config.admin.token = None;
            config.admin.token_file = Some(path);
        } else if let Some(token) = token.filter(|token| !token.is_empty()) {
            config.admin.token = Some(Secret::new(token));
            config.admin.token_file = None;
        }
        if let Some(device) = self.device {
            config.models.device = device;
        }
        if let Some(directory) = self.jobs {
            config.jobs.directory = directory;
        }
        if let Some(filter) = self.log {
            config.log.filter = filter;
        }
        Ok(config)
    }
}

async fn serve(config: ServerConfig) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let require_all = config.models.require_all;
    let load_at_start = config.models.load_at_start;
    let mut server = Server::start(config).await?;
    tracing::info!(
        grpc = %server.grpc_address,
        http = %server.http_address,
        admin = server.admin_address.map(tracing::field::display),
        "listening; loading models"
    );
    let mut lost = None;
    let stopped = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
        ready = server.loaded() => {
            announce(&server, ready, require_all, load_at_start)?;
            false
        }
    };
    if !stopped {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            reason = server.device_lost() => lost = Some(reason),
        }
    }
    if let Some(reason) = &lost {
        tracing::error!(
            reason,
            "an instance of a model is lost, and the configuration says to end; ending"
        );
    }
    let in_time = server.shut_down().await;
    if let Some(reason) = lost {
        return Err(format!("a model is lost: {reason}").into());
    }
    if in_time {
        Ok(())
    } else {
        Err("not every accepted request could be answered before the drain limit".into())
    }
}

/// Prints a line, if anybody reads it: a server goes on without.
macro_rules! tell {
    ($($part:tt)*) => {
        let _ = writeln!(std::io::stdout(), $($part)*);
    };
}

/// Says what is served and gives a call to try.
fn announce(
    server: &Server,
    ready: usize,
    require_all: bool,
    load_at_start: bool,
) -> Result<(), Failure> {
    let states = server.repository().status();
    let failed = states.iter().filter(|model| {
        let mut versions = model.versions.iter();
        versions.any(|version| version.state == "failed")
    });
    let failed = failed.count();
    if require_all && failed > 0 {
        return Err(format!("{failed} models failed to load and models.require_all is set").into());
    }
    if ready == 0 && load_at_start {
        return Err(
            "no model is ready; bring some with `python3 models/fetch.py` and see the log above"
                .into(),
        );
    }
    tracing::info!(models = ready, not_served = failed, grpc = %server.grpc_address, http = %server.http_address, "serving");
    let models = server.repository().ready();
    if let Some(model) = models.iter().rfind(|model| model.task() == Task::Generate) {
        tell!("\nTry it:");
        tell!(
            "  curl -N localhost:{}/v1/completions -d '{{\"model\":\"{}\",\"prompt\":\"The ferry \
             leaves\",\"max_tokens\":32,\"stream\":true}}'",
            server.http_address.port(),
            model.name
        );
    }
    let Some(model) = models.iter().find(|model| model.task() == Task::Embed) else {
        return Ok(());
    };
    let port = server.grpc_address.port();
    tell!("\nTry it:");
    tell!(
        "  grpcurl -plaintext -d '{{\"options\":{{\"model\":\"{}\"}},\"texts\":[\"All aboard!\"]}}' \
         localhost:{port} ferry.v1.Inference/Embed",
        model.name
    );
    tell!("or, with nothing but pip install grpcio grpcio-reflection protobuf:");
    tell!("  python3 docs/examples/embed.py --port {port} \"All aboard!\"\n");
    Ok(())
}
