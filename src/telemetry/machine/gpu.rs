//! GPUs as their driver's management library (NVML) tells of them. It is opened at run time, where it
//! is; nothing is linked to it.

use std::path::Path;

use nvml_wrapper::{Nvml, enum_wrappers::device::TemperatureSensor};

/// The library, opened.
#[derive(Debug)]
pub struct Gpus(Nvml);

/// What a GPU does. What the driver doesn't tell of it (as of a slice of one) is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Its name for ever.
    pub uuid: String,
    /// Bytes of memory in use, and in all.
    pub memory: Option<(u64, u64)>,
    /// Share of the driver's last sampling period in which kernels ran.
    pub utilization: Option<f64>,
    /// Its temperature.
    pub celsius: Option<f64>,
    /// What it draws.
    pub watts: Option<f64>,
}

impl Gpus {
    /// Opens the library at `path`, or else where the system has it.
    ///
    /// # Errors
    /// Why it can't be had.
    pub fn open(path: Option<&Path>) -> Result<Self, String> {
        let opened = match path {
            Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
            None => Nvml::init(),
        };
        opened.map(Self).map_err(|error| error.to_string())
    }

    /// How many there are; 0 where the driver doesn't say.
    pub fn count(&self) -> u32 {
        self.0.device_count().unwrap_or(0)
    }

    /// Reads the one with this number of the driver's; `None` where it is not to be reached.
    pub fn read(&self, index: u32) -> Option<Reading> {
        let gpu = self.0.device_by_index(index).ok()?;
        let percent = gpu.utilization_rates().ok().map(|rates| rates.gpu);
        Some(Reading {
            uuid: gpu.uuid().ok()?,
            memory: gpu
                .memory_info()
                .ok()
                .map(|memory| (memory.used, memory.total)),
            utilization: percent.map(|percent| f64::from(percent) / 100.0),
            celsius: gpu.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            watts: gpu
                .power_usage()
                .ok()
                .map(|milliwatts| f64::from(milliwatts) / 1e3),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library_there_is_a_reason_and_no_gpu() {
        let reason = Gpus::open(Some(Path::new("/nowhere/libnvidia-ml.so.1"))).unwrap_err();
        assert!(reason.contains("/nowhere/libnvidia-ml.so.1"), "{reason}");
    }
}
