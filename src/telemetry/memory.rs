//! The Prometheus metrics of what models take of the memory, with the labels `model` and `version`.

use prometheus::{IntGaugeVec, Opts};

use super::series::Registrar;

#[derive(Debug)]
pub(super) struct MemoryFamilies {
    bytes: IntGaugeVec,
}

/// What a loaded version takes of the memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelMemory {
    /// Weights, of all its instances.
    pub weights: u64,
    /// Room for the keys and values of what it generates.
    pub kv_cache: u64,
    /// Room for answers that are kept.
    pub answers: u64,
}

impl MemoryFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let bytes = IntGaugeVec::new(
            Opts::new(
                "ferry_model_memory_bytes",
                "Memory that a loaded version takes, by what for.",
            ),
            &["model", "version", "kind"],
        )?;
        registry.register(Box::new(bytes.clone()))?;
        Ok(Self { bytes })
    }

    pub(super) fn set(&self, model: &str, version: &str, memory: ModelMemory) {
        for (kind, bytes) in [
            ("weights", memory.weights),
            ("kv_cache", memory.kv_cache),
            ("answers", memory.answers),
        ] {
            let series = self.bytes.with_label_values(&[model, version, kind]);
            series.set(bytes as i64);
        }
    }
}
