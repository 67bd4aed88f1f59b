//! A model version that is loaded, warm and takes requests.

use std::{sync::Arc, time::Duration};

use crate::{
    config::{Activation, ModelManifest, Task},
    engine::Engine,
    telemetry::{ModelMetrics, ModelStatistics},
    text::TextEncoder,
};

/// A model version that takes requests. When the last request that holds it is done it is freed.
#[derive(Debug)]
pub struct ServedModel {
    /// The model's name.
    pub name: String,
    /// The version's name.
    pub version: String,
    /// What it was told to do.
    pub manifest: ModelManifest,
    /// Labels of a classifier, in the order of its logits.
    pub labels: Vec<String>,
    /// Length of its output: dimensions of an embedding, labels, or 1 score.
    pub output_size: usize,
    /// How a classifier's logits become probabilities.
    pub activation: Activation,
    /// Its tokenizer.
    pub text: Arc<TextEncoder>,
    /// What runs it.
    pub engine: Engine,
    /// Its metrics.
    pub metrics: ModelMetrics,
    /// Its cumulative statistics.
    pub statistics: Arc<ModelStatistics>,
    /// Bytes of its weights in memory.
    pub memory_bytes: u64,
    /// How long it took to load and warm.
    pub load_time: Duration,
}

impl ServedModel {
    /// What the model does.
    pub fn task(&self) -> Task {
        self.manifest.task
    }
}
