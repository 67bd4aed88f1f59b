//! The Prometheus metrics of devices under models, with the labels `model` and `version`.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::series::Registrar;

/// The metrics of what a model version runs on.
#[derive(Debug, Clone)]
pub struct DeviceMetrics {
    /// Instances that have lost their device, or hang, and take nothing.
    pub failed_instances: IntGauge,
    /// Times that an instance hung.
    pub hung: IntCounter,
    /// Times that an instance was made anew.
    pub restarts: IntCounter,
    /// Batches that the device had no memory for and that were run in parts.
    pub split_batches: IntCounter,
}

/// Instances on a device, told of for as long as this is there.
#[derive(Debug)]
pub struct InstanceCount {
    gauge: IntGauge,
    instances: i64,
}

impl Drop for InstanceCount {
    fn drop(&mut self) {
        self.gauge.sub(self.instances);
    }
}

#[derive(Debug)]
pub(super) struct DeviceFamilies {
    instances: IntGaugeVec,
    failed_instances: IntGaugeVec,
    hung: IntCounterVec,
    restarts: IntCounterVec,
    split_batches: IntCounterVec,
}

impl DeviceFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let model = &["model", "version"];
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let counter = |name: &str, help: &str| {
            let family = IntCounterVec::new(Opts::new(name, help), model)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        Ok(Self {
            instances: gauge(
                "ferry_instances",
                "Instances of a model, by the device that they run on.",
                &["model", "version", "device"],
            )?,
            failed_instances: gauge(
                "ferry_failed_instances",
                "Instances that have lost their device, or hang, and take nothing.",
                model,
            )?,
            hung: counter(
                "ferry_instance_hangs_total",
                "Times that an instance did not come back from a batch or a step.",
            )?,
            restarts: counter(
                "ferry_instance_restarts_total",
                "Times that an instance which had lost its device, or hung, was made anew.",
            )?,
            split_batches: counter(
                "ferry_split_batches_total",
                "Batches that the device had no memory for and that were run in parts.",
            )?,
        })
    }

    pub(super) fn model(&self, model: &str, version: &str) -> DeviceMetrics {
        let labels = &[model, version];
        DeviceMetrics {
            failed_instances: self.failed_instances.with_label_values(labels),
            hung: self.hung.with_label_values(labels),
            restarts: self.restarts.with_label_values(labels),
            split_batches: self.split_batches.with_label_values(labels),
        }
    }

    pub(super) fn count(
        &self,
        model: &str,
        version: &str,
        (device, instances): (&str, usize),
    ) -> InstanceCount {
        let gauge = self.instances.with_label_values(&[model, version, device]);
        let instances = instances as i64;
        gauge.add(instances);
        InstanceCount { gauge, instances }
    }
}
