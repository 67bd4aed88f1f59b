//! Configuration: the server's file (`ferry.toml`) and each model's manifest (`model.toml`).
//!
//! Both are read once, refused as a whole when anything in them is wrong, and the error shows the
//! line. Defaults stand in the structs' `Default` and nowhere else.

pub mod admin;
pub mod auth;
pub mod cache;
pub mod cascade;
pub mod device;
pub mod drift;
pub mod generate;
pub mod jobs;
mod listeners;
pub mod locate;
pub mod manifest;
pub mod metrics;
pub mod precision;
pub mod quantize;
pub mod request_log;
pub mod rollout;
mod secret;
pub mod server;
pub mod thresholds;
pub mod tls;
pub mod traces;
pub mod warmup;
pub mod watchdog;

use std::path::{Path, PathBuf};

pub use cache::CacheConfig;
pub use cascade::CascadeConfig;
pub use device::{DeviceChoice, OnDeviceFailure};
pub use drift::DriftConfig;
pub use generate::{CacheType, GenerateConfig};
pub use jobs::JobsConfig;
pub use manifest::{Activation, ModelManifest, Pooling, Task, Truncation};
pub use metrics::MetricsConfig;
pub use precision::Precision;
pub use quantize::Quantize;
pub use request_log::RequestLogConfig;
pub use rollout::{RolloutConfig, ServedVersions, ShareConfig, VersionRule, VersionsConfig};
pub use secret::Secret;
pub use server::ServerConfig;
pub use thresholds::{Bound, Thresholds};
pub use traces::TracesConfig;
pub use watchdog::{WatchdogConfig, WhenSpent};

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file isn't TOML, or has a key or a type that is not known.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        message: String,
    },
    /// A value is outside its range.
    #[error("{}{}: {key} = {found}; allowed: {allowed}", path.display(), line_suffix(*line))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line of the key, when the file has it.
        line: Option<usize>,
        /// The key's full path.
        key: String,
        /// The value found.
        found: String,
        /// What would be right.
        allowed: String,
    },
}

fn line_suffix(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" line {line}"))
}

/// A value that breaks a rule, before it is known where in the file it stands.
#[derive(Debug, PartialEq)]
pub struct Violation {
    /// The key's full path, such as `batching.max_rows`.
    pub key: &'static str,
    /// The value found.
    pub found: String,
    /// What would be right.
    pub allowed: &'static str,
}

impl Violation {
    fn unless(
        right: bool,
        key: &'static str,
        found: impl std::fmt::Display,
        allowed: &'static str,
    ) -> Result<(), Self> {
        if right {
            return Ok(());
        }
        Err(Self {
            key,
            found: found.to_string(),
            allowed,
        })
    }
}

/// Reads a TOML file into `T` and checks it with `validate`.
fn read_checked<T: serde::de::DeserializeOwned>(
    path: &Path,
    validate: impl FnOnce(&T) -> Result<(), Violation>,
) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let value: T = toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    validate(&value).map_err(|violation| ConfigError::Invalid {
        path: path.to_owned(),
        line: locate::line_of(&text, violation.key),
        key: violation.key.to_owned(),
        found: violation.found,
        allowed: violation.allowed.to_owned(),
    })?;
    Ok(value)
}
