//! The server as a whole: starts every part, and takes it down without losing a request.
//!
//! Going down: health says no, admission lets nothing more in, streams stop reading; what was
//! accepted is answered; then the listeners end. A limit bounds the time.

mod listeners;
mod reload;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle};

use self::listeners::{Addresses, Certificates, Listeners};
use crate::{
    admission::{Admission, Callers, Operators, TokenError},
    api::jobs::row_runner,
    api::{
        grpc::{self, ListenError, Shared, admin},
        http,
        listener::TlsError,
    },
    config::{ConfigError, ServerConfig, server::ModelControl},
    device::{self, DeviceError},
    jobs::{self, Jobs, Runner},
    repository::{Repository, follow_folder, run_rollouts},
    telemetry::{Metrics, machine, request_log::RequestLog, traces::Tracer},
    text::CpuPool,
};

/// Time that the last spans have to be sent in.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Why the server can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("can't listen on {address}: {source}; set another {key} or stop what is there")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The configuration key.
        key: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The models folder can't be read.
    #[error("can't read the models folder {}: {source}", folder.display())]
    Models {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A model that was named is not in the folder.
    #[error("models.serve names '{name}', which is not in {}", folder.display())]
    NoSuchModel {
        /// The name.
        name: String,
        /// The folder.
        folder: PathBuf,
    },
    /// Models are to run where they can't.
    #[error("models.{0}")]
    Device(#[from] DeviceError),
    /// Operators can't be told from others.
    #[error(transparent)]
    Operators(#[from] TokenError),
    /// Callers can't be told from others.
    #[error("auth.keys_file: {0}")]
    Callers(#[from] ConfigError),
    /// Listeners can't be encrypted.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The jobs can't be opened.
    #[error(transparent)]
    Jobs(#[from] jobs::StartError),
    /// Spans can't be sent as the configuration says.
    #[error("can't send traces: {0}; see [traces] and OTEL_EXPORTER_OTLP_ENDPOINT")]
    Traces(std::io::Error),
    /// The log of requests can't be written.
    #[error("can't write the request log {}: {source}; see request_log.file", file.display())]
    RequestLog {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread or socket was refused by the system.
    #[error("can't start: {0}")]
    System(#[from] std::io::Error),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where gRPC is served.
    pub grpc_address: SocketAddr,
    /// Where HTTP is served.
    pub http_address: SocketAddr,
    /// Where operators are served, if they are.
    pub admin_address: Option<SocketAddr>,
    shared: Shared,
    closing: watch::Sender<bool>,
    grpc: JoinHandle<Result<(), ListenError>>,
    http: JoinHandle<std::io::Result<()>>,
    admin: Option<JoinHandle<Result<(), ListenError>>>,
    loading: JoinHandle<()>,
    jobs: JoinHandle<()>,
    /// Reads what the machine does.
    _machine: machine::Watching,
    /// Kept so that those who watch it never see it close while the server runs.
    _started: Arc<watch::Sender<bool>>,
    drain: Duration,
}

impl Server {
    /// Opens the listeners and begins to load the models. Health says "not ready" until every model
    /// to be served has been loaded or has failed to.
    ///
    /// # Errors
    /// [`StartError`] when a port is taken or the models folder can't be read.
    pub async fn start(config: ServerConfig) -> Result<Self, StartError> {
        // Not when the first model is loaded: a server that can't do what it is told says so at once.
        device::resolve(&config.models.device)?;
        let metrics = Metrics::with(&config.metrics);
        let repository = Arc::new(Repository::new(config.models.clone(), metrics.clone()));
        let operators = Operators::read(&config.admin, metrics.operators())?;
        let keys_file = config.auth.keys_file.as_deref();
        let callers = Arc::new(Callers::read(keys_file, metrics.callers())?);
        let certificates = Certificates::read(&config.tls)?;
        let names = names_to_serve(&config, &repository)?;
        let pool = CpuPool::start(config.text.thread_count(), config.text.max_waiting_bytes)?;
        let request_log = open_request_log(&config, &metrics)?;
        let admission = Admission::new(Arc::clone(&repository), pool, config.limits.clone());
        let admission = Arc::new(admission.with_request_log(request_log));
        let started = Arc::new(watch::Sender::new(false));
        let (closing, is_closing) = watch::channel(false);
        let jobs = open_jobs(&config, &metrics).await?;
        let tracer = Tracer::start(&config.traces, metrics.traces()).map_err(StartError::Traces)?;
        let machine = machine::watch(metrics.machine(), None)?;
        let shared = Shared {
            admission,
            metrics,
            started: started.subscribe(),
            closing: is_closing,
            max_stream_requests: config.grpc.max_stream_requests,
            callers: Arc::clone(&callers),
            dashboard: config.http.dashboard,
            open_metrics: config.auth.open_metrics,
            operators: Arc::new(operators),
            repository_rpcs: config.admin.repository_rpcs(),
            jobs,
            tracer,
        };

        let listeners = Listeners::bind(&config).await?;
        let Addresses {
            grpc: grpc_address,
            http: http_address,
            admin: admin_address,
        } = listeners.addresses()?;
        let incoming = listeners.open(&config, &certificates);

        let has_started = Arc::clone(&started);
        let models = Arc::clone(&repository);
        let loading = tokio::task::spawn_blocking(move || {
            for name in &names {
                // Why one failed is in its state and in the log.
                let _ = repository.load(name, None);
            }
            has_started.send_replace(true);
        });
        run_rollouts(&models)?;
        if config.models.control == ModelControl::Watch {
            let only = config.models.serve.clone();
            follow_folder(&models, move |name| {
                only.is_empty() || only.iter().any(|wanted| wanted == name)
            })?;
        }
        let jobs = tokio::spawn(run_jobs(shared.clone()));
        let http = tokio::spawn(http::serve(
            shared.clone(),
            config.http.clone(),
            incoming.http,
            closed(closing.subscribe()),
        ));
        let admin = incoming.admin.map(|incoming| {
            let stop = closed(closing.subscribe());
            tokio::spawn(admin::serve(shared.clone(), incoming, stop))
        });
        let grpc_shared = shared.clone();
        let stop = closed(closing.subscribe());
        let drain = config.shutdown.drain();
        follow_keys(callers, &config, closing.subscribe());
        certificates.follow(&config.tls, closing.subscribe());
        let grpc = tokio::spawn(async move {
            grpc::serve(grpc_shared, &config.grpc, incoming.grpc, stop).await
        });
        Ok(Self {
            grpc_address,
            http_address,
            admin_address,
            shared,
            closing,
            grpc,
            http,
            admin,
            loading,
            jobs,
            _machine: machine,
            _started: started,
            drain,
        })
    }

    /// Waits until every model to be served has been loaded or has failed to; returns how many are
    /// ready.
    pub async fn loaded(&mut self) -> usize {
        let mut started = self.shared.started.clone();
        // An error means that the loading task is gone; what is ready then is all there will be.
        let _ = started.wait_for(|started| *started).await;
        self.shared.admission.repository().ready().len()
    }

    /// Waits until a model is lost, with its device or since it hangs, and the process is to end for
    /// it; says why.
    pub async fn device_lost(&self) -> String {
        let mut fatal = self.repository().fatal();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The repository is gone, and with it all devices.
            Err(_) => std::future::pending().await,
        }
    }

    /// The models of this server.
    pub fn repository(&self) -> &Arc<Repository> {
        self.shared.admission.repository()
    }

    /// The metrics of this server.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Lets nothing more in, waits until what was accepted is answered, and ends. True when that
    /// was done within the limit.
    pub async fn shut_down(self) -> bool {
        tracing::info!(limit_s = self.drain.as_secs(), "draining");
        self.shared.admission.close();
        self.closing.send_replace(true);
        let listeners = async {
            let admin = async {
                match self.admin {
                    Some(admin) => admin.await.is_ok_and(|admin| admin.is_ok()),
                    None => true,
                }
            };
            // Jobs drop what they run, to go on after the next start, and so hold nothing up.
            let (grpc, http, admin, _) = tokio::join!(self.grpc, self.http, admin, self.jobs);
            let grpc = grpc.is_ok_and(|grpc| grpc.is_ok());
            grpc && http.is_ok_and(|http| http.is_ok()) && admin
        };
        let in_time = tokio::time::timeout(self.drain, listeners).await == Ok(true);
        self.loading.abort();
        let flush = self.shared.tracer.flush();
        // What a collector that is down would not take is not worth a longer wait.
        let log = self.shared.admission.request_log().clone();
        let flushing = tokio::task::spawn_blocking(move || {
            log.flush(FLUSH_LIMIT);
            flush.wait(FLUSH_LIMIT);
        });
        let _ = flushing.await;
        if in_time {
            tracing::info!("every accepted request is answered");
        } else {
            tracing::warn!("the drain limit passed; connections that were still open are cut");
        }
        in_time
    }
}

fn names_to_serve(
    config: &ServerConfig,
    repository: &Repository,
) -> Result<Vec<String>, StartError> {
    let folder = config.models.directory.clone();
    let found = repository
        .find_on_disk()
        .map_err(|source| StartError::Models {
            folder: folder.clone(),
            source,
        })?;
    for name in &config.models.serve {
        if !found.iter().any(|model| model.name == *name) {
            let name = name.clone();
            return Err(StartError::NoSuchModel { name, folder });
        }
    }
    let mut names = Vec::new();
    for model in found {
        let asked_for = config.models.serve.contains(&model.name);
        if !asked_for && !config.models.serve.is_empty() {
            continue;
        }
        if model.versions.is_empty() && !asked_for {
            // A manifest whose weights were not fetched is no fault, unless it was named.
            let reason =
                "no version on disk; fetch its weights with models/fetch.py or ferry fetch";
            tracing::warn!(model = model.name, "not served: {reason}");
            repository.mark_unavailable(&model.name, reason.to_owned());
            continue;
        }
        if !config.models.load_at_start && !asked_for {
            continue;
        }
        names.push(model.name);
    }
    Ok(names)
}

/// Opens the log of requests where it is on.
fn open_request_log(config: &ServerConfig, metrics: &Metrics) -> Result<RequestLog, StartError> {
    RequestLog::start(&config.request_log, metrics.request_log()).map_err(|source| {
        StartError::RequestLog {
            file: config.request_log.file.clone(),
            source,
        }
    })
}

/// Opens the jobs where they are on, off the I/O threads: after a crash it may take a while.
async fn open_jobs(config: &ServerConfig, metrics: &Metrics) -> Result<Option<Jobs>, StartError> {
    if !config.jobs.is_on() {
        return Ok(None);
    }
    let (config, metrics) = (config.jobs.clone(), metrics.jobs());
    let opening = tokio::task::spawn_blocking(move || Jobs::open(config, metrics));
    let jobs = opening.await.map_err(std::io::Error::other)??;
    Ok(Some(jobs))
}

/// Runs jobs, where they are on, from when the models have been loaded until the server closes.
async fn run_jobs(mut shared: Shared) {
    let Some(jobs) = shared.jobs.clone() else {
        return;
    };
    let closing = shared.closing.clone();
    tokio::select! {
        started = shared.started.wait_for(|started| *started) => drop(started),
        () = closed(closing.clone()) => return,
    }
    Runner::new(&jobs, row_runner(shared), closing).run().await;
}

/// Reads the keys again whenever their file changes.
fn follow_keys(callers: Arc<Callers>, config: &ServerConfig, closing: watch::Receiver<bool>) {
    let Some(file) = callers.file() else {
        return;
    };
    let files = vec![file.to_owned()];
    let every = Duration::from_secs_f64(config.auth.reload_seconds);
    let reload = move || match callers.reload() {
        Ok(keys) => tracing::info!(keys, "API keys read again"),
        Err(error) => tracing::error!(%error, "new API keys can't be used; the old ones stay"),
    };
    tokio::spawn(reload::follow_files(files, every, closing, reload));
}

async fn closed(mut closing: watch::Receiver<bool>) {
    // An error means that the server is gone, which is closed enough.
    let _ = closing.wait_for(|closing| *closing).await;
}
