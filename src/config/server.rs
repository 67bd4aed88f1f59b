//! The server's own configuration, `ferry.toml`: ports, limits, threads, logs.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use super::listeners::{GrpcConfig, HttpConfig};

use super::{
    ConfigError, DeviceChoice, JobsConfig, MetricsConfig, OnDeviceFailure, RequestLogConfig,
    TracesConfig, Violation, WatchdogConfig, admin::AdminConfig, auth::AuthConfig, read_checked,
    tls::TlsConfig,
};

/// Everything `ferry serve` can be told. Each section and key may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Which models to serve.
    pub models: ModelsConfig,
    /// The gRPC listener.
    pub grpc: GrpcConfig,
    /// The HTTP listener.
    pub http: HttpConfig,
    /// The admin listener.
    pub admin: AdminConfig,
    /// Encryption of the listeners.
    pub tls: TlsConfig,
    /// Who may call.
    pub auth: AuthConfig,
    /// What one request may ask for.
    pub limits: LimitsConfig,
    /// The tokenizer pool.
    pub text: TextConfig,
    /// Requests that can wait.
    pub jobs: JobsConfig,
    /// How the server goes down.
    pub shutdown: ShutdownConfig,
    /// Logs.
    pub log: LogConfig,
    /// Metrics.
    pub metrics: MetricsConfig,
    /// Traces.
    pub traces: TracesConfig,
    /// The log of requests.
    pub request_log: RequestLogConfig,
}

/// Which models to serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelsConfig {
    /// The model repository: one folder a model.
    pub directory: PathBuf,
    /// Names to serve; empty serves every model found.
    pub serve: Vec<String>,
    /// Whether a model that fails to load at start stops the server.
    pub require_all: bool,
    /// What models run on whose manifests don't say.
    pub device: DeviceChoice,
    /// What happens when a device under a model fails for good.
    pub on_device_failure: OnDeviceFailure,
    /// Who may change what is served after the start.
    pub control: ModelControl,
    /// Whether models are loaded at the start; without, each waits for somebody to ask for it.
    pub load_at_start: bool,
    /// How often the folder is looked at, in seconds, where `control = "watch"`.
    pub poll_seconds: f64,
    /// Memory for all models together, in MiB; a load beyond it is refused before it starts. 0 for
    /// what the machine (or its cgroup) has free at the time.
    pub memory_mib: u64,
    /// Whether models that nobody has used for longest make room for one that does not fit. They are
    /// loaded again when they are asked for.
    pub evict_idle: bool,
    /// A file that keeps the routes set by operators and rollouts, so that they outlive a restart;
    /// empty for none: the manifests hold then.
    pub state_file: PathBuf,
    /// Whether weights are kept in the layout in which they are used, for the next start.
    pub prepared: PreparedWeights,
    /// The folder where they are kept; unset for the version's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepared_directory: Option<PathBuf>,
    /// What is done about a batch or a step that does not come back.
    pub watchdog: WatchdogConfig,
}

/// Who may change what is served after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelControl {
    /// Operators, through the API.
    Api,
    /// Operators, and the models folder: what changes there is loaded and unloaded.
    Watch,
    /// Nobody.
    None,
}

/// Whether weights are kept in the layout in which they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreparedWeights {
    /// In a file that the next start maps.
    Keep,
    /// Every start lays them out anew.
    Off,
}

impl Default for ModelsConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("models"),
            serve: Vec::new(),
            require_all: false,
            device: DeviceChoice::Auto,
            on_device_failure: OnDeviceFailure::Restart,
            control: ModelControl::Api,
            load_at_start: true,
            poll_seconds: 5.0,
            memory_mib: 0,
            evict_idle: false,
            state_file: PathBuf::new(),
            prepared: PreparedWeights::Keep,
            prepared_directory: None,
            watchdog: WatchdogConfig::default(),
        }
    }
}

/// What one request may ask for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Rows of one request.
    pub max_rows: usize,
    /// Bytes of one text, checked before it is tokenized.
    pub max_text_bytes: usize,
    /// Bytes of a tenant's name or a request id.
    pub max_metadata_bytes: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_rows: 1024,
            max_text_bytes: 128 << 10,
            max_metadata_bytes: 256,
        }
    }
}

/// The tokenizer pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextConfig {
    /// Threads; 0 for one for every two processors, at least one.
    pub threads: usize,
    /// Bytes of text that may wait for a thread or be at one.
    pub max_waiting_bytes: usize,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            threads: 0,
            max_waiting_bytes: 64 << 20,
        }
    }
}

impl TextConfig {
    /// The number of threads to start.
    pub fn thread_count(&self) -> usize {
        if self.threads > 0 {
            return self.threads;
        }
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        processors.div_ceil(2)
    }
}

/// How the server goes down after SIGTERM or SIGINT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// Time that accepted requests have to be answered in, in seconds.
    pub drain_seconds: u64,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { drain_seconds: 25 }
    }
}

impl ShutdownConfig {
    /// [`ShutdownConfig::drain_seconds`] as a duration.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// What is logged: a level, or `tracing` directives such as `ferry=debug,tonic=warn`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".to_owned(),
        }
    }
}

impl ServerConfig {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] when the file can't be read, isn't TOML, has an unknown key or a value
    /// outside its range; the message names file and line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        read_checked(path, Self::validate)
    }

    /// Checks every value's range.
    ///
    /// # Errors
    /// The first key that breaks its rule.
    pub fn validate(&self) -> Result<(), Violation> {
        self.grpc.validate()?;
        self.http.validate()?;
        Violation::unless(
            (1..=1 << 16).contains(&self.limits.max_rows),
            "limits.max_rows",
            self.limits.max_rows,
            "1 to 65536",
        )?;
        Violation::unless(
            (1..=16 << 20).contains(&self.limits.max_text_bytes),
            "limits.max_text_bytes",
            self.limits.max_text_bytes,
            "1 to 16777216",
        )?;
        Violation::unless(
            self.text.max_waiting_bytes >= self.limits.max_text_bytes,
            "text.max_waiting_bytes",
            self.text.max_waiting_bytes,
            "at least limits.max_text_bytes",
        )?;
        Violation::unless(
            (0.05..=3600.0).contains(&self.models.poll_seconds),
            "models.poll_seconds",
            self.models.poll_seconds,
            "0.05 to 3600",
        )?;
        Violation::unless(
            self.text.threads <= 1024,
            "text.threads",
            self.text.threads,
            "0 to 1024",
        )?;
        self.models.watchdog.validate()?;
        self.admin.validate()?;
        self.tls.validate()?;
        self.auth.validate()?;
        self.metrics.validate()?;
        self.traces.validate()?;
        self.request_log.validate()?;
        self.jobs.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ServerConfig, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        ServerConfig::read(file.path())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(read("").unwrap(), ServerConfig::default());
    }

    #[test]
    fn the_defaults_are_valid_and_survive_printing() {
        let defaults = ServerConfig::default();
        assert_eq!(defaults.validate(), Ok(()));
        let printed = toml::to_string(&defaults).unwrap();
        assert_eq!(toml::from_str::<ServerConfig>(&printed).unwrap(), defaults);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = read("[grpc]\nport = 1\nprot = 2\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 3") && error.contains("prot"),
            "{error}"
        );
    }

    #[test]
    fn a_value_outside_its_range_is_refused_with_its_line() {
        let error = read("[limits]\n\nmax_rows = 0\n").unwrap_err().to_string();
        assert!(
            error.ends_with("line 3: limits.max_rows = 0; allowed: 1 to 65536"),
            "{error}"
        );
    }
}
