//! What the machine does: the GPUs' memory and load, and this process's share of the processors.
//!
//! Read by a thread of its own every few seconds: a driver may take its time to answer, and neither a
//! request nor a scrape waits for it.

mod cpu;
mod gpu;

use std::{io, path::Path, time::Duration};

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use prometheus::{Gauge, GaugeVec, Opts};

use super::series::Registrar;
use cpu::CpuClock;

pub use gpu::{Gpus, Reading};

/// Time between two readings.
const EVERY: Duration = Duration::from_secs(5);

/// GPUs that are told of at most.
const MAX_GPUS: u32 = 64;

#[derive(Debug)]
pub(super) struct MachineFamilies {
    memory_used: GaugeVec,
    memory_total: GaugeVec,
    utilization: GaugeVec,
    temperature: GaugeVec,
    power: GaugeVec,
    cpu: Gauge,
}

/// What the machine does is told here.
#[derive(Debug, Clone)]
pub struct MachineMetrics {
    memory_used: GaugeVec,
    memory_total: GaugeVec,
    utilization: GaugeVec,
    temperature: GaugeVec,
    power: GaugeVec,
    cpu: Gauge,
}

/// The thread that reads; it ends when this is dropped.
#[derive(Debug)]
pub struct Watching(#[expect(dead_code, reason = "what its drop says is heard")] Sender<()>);

impl MachineFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| {
            let family = GaugeVec::new(Opts::new(name, help), &["gpu", "uuid"])?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let cpu = Gauge::new(
            "ferry_process_cpu_ratio",
            "Processors that the process keeps busy, of those it may use, 0 to 1.",
        )?;
        registry.register(Box::new(cpu.clone()))?;
        Ok(Self {
            memory_used: gauge(
                "ferry_device_memory_used_bytes",
                "Memory of a GPU that is in use, by whichever process.",
            )?,
            memory_total: gauge("ferry_device_memory_total_bytes", "Memory of a GPU.")?,
            utilization: gauge(
                "ferry_device_utilization_ratio",
                "Time for which a GPU ran kernels, of the driver's last sampling period, 0 to 1.",
            )?,
            temperature: gauge("ferry_device_temperature_celsius", "Temperature of a GPU.")?,
            power: gauge("ferry_device_power_watts", "Power that a GPU draws.")?,
            cpu,
        })
    }

    pub(super) fn metrics(&self) -> MachineMetrics {
        MachineMetrics {
            memory_used: self.memory_used.clone(),
            memory_total: self.memory_total.clone(),
            utilization: self.utilization.clone(),
            temperature: self.temperature.clone(),
            power: self.power.clone(),
            cpu: self.cpu.clone(),
        }
    }
}

impl MachineMetrics {
    /// Tells of a GPU; what its driver doesn't say has no series.
    pub fn tell(&self, index: u32, reading: &Reading) {
        let labels = &[&*index.to_string(), &*reading.uuid];
        let set = |family: &GaugeVec, value: Option<f64>| {
            if let Some(value) = value {
                family.with_label_values(labels).set(value);
            }
        };
        let memory = reading.memory;
        set(&self.memory_used, memory.map(|(used, _)| used as f64));
        set(&self.memory_total, memory.map(|(_, total)| total as f64));
        set(&self.utilization, reading.utilization);
        set(&self.temperature, reading.celsius);
        set(&self.power, reading.watts);
    }
}

/// Starts to read, with the driver's library at `library` or else where the system has it. Without one
/// there are no series of GPUs.
///
/// # Errors
/// When there is no thread to be had.
pub fn watch(metrics: MachineMetrics, library: Option<&Path>) -> io::Result<Watching> {
    let gpus = match Gpus::open(library) {
        Ok(gpus) => Some(gpus),
        Err(reason) => {
            tracing::debug!(reason, "no metrics of GPUs");
            None
        }
    };
    let (alive, ended) = bounded::<()>(0);
    std::thread::Builder::new()
        .name("machine".to_owned())
        .spawn(move || {
            let mut cpu = CpuClock::start();
            loop {
                if let Some(gpus) = &gpus {
                    for index in 0..gpus.count().min(MAX_GPUS) {
                        if let Some(reading) = gpus.read(index) {
                            metrics.tell(index, &reading);
                        }
                    }
                }
                if ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                if let Some(share) = cpu.share() {
                    metrics.cpu.set(share);
                }
            }
        })?;
    Ok(Watching(alive))
}
