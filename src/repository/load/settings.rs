//! What a load is told besides the model: where prepared weights are, and what becomes of them.

use std::path::PathBuf;

use crate::{
    config::{
        DeviceChoice, OnDeviceFailure, WatchdogConfig,
        server::{ModelsConfig, PreparedWeights},
    },
    repository::Alarm,
};

/// How versions are loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadSettings {
    /// Where prepared weights are.
    pub prepared: PreparedPlace,
    /// When they are written.
    pub upkeep: Upkeep,
    /// What happens to the recorded outputs.
    pub canary: CanaryUse,
    /// What models run on whose manifests don't say.
    pub device: DeviceChoice,
    /// What happens when a device fails for good.
    pub on_device_failure: OnDeviceFailure,
    /// What is done about a batch or a step that does not come back.
    pub watchdog: WatchdogConfig,
    /// Who is told when an instance is lost.
    pub alarm: Alarm,
    /// Whether the version's calibration is left aside, as when it is to be made anew.
    pub without_calibration: bool,
}

impl LoadSettings {
    /// As a server with this configuration loads them.
    pub fn of(config: &ModelsConfig) -> Self {
        Self {
            prepared: PreparedPlace::of(config),
            device: config.device.clone(),
            on_device_failure: config.on_device_failure,
            watchdog: config.watchdog.clone(),
            ..Self::default()
        }
    }
}

/// Where prepared weights are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PreparedPlace {
    /// Nowhere: every load lays its weights out anew.
    Off,
    /// In the version's folder, in `.ferry`.
    #[default]
    BesideVersion,
    /// In a folder of their own, below the model's and the version's name.
    In(PathBuf),
}

impl PreparedPlace {
    /// Where the server's configuration wants them.
    pub fn of(config: &ModelsConfig) -> Self {
        match &config.prepared_directory {
            _ if config.prepared == PreparedWeights::Off => Self::Off,
            Some(folder) => Self::In(folder.clone()),
            None => Self::BesideVersion,
        }
    }
}

/// When prepared weights that are missing or outdated are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Upkeep {
    /// Once the version is loaded, beside its first requests; not those of a model so small that
    /// laying it out takes no time.
    #[default]
    Behind,
    /// Before the load ends, which fails if they can't be.
    AtOnce,
    /// Not at all.
    Never,
}

/// What happens to the recorded outputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CanaryUse {
    /// They are compared with.
    #[default]
    Check,
    /// They are recorded anew.
    Record,
}
