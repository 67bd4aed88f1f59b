//! A model version that is loaded, warm and takes requests.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;

use super::{CanaryDone, DriftWatch, LoadTimes, Mirror, PreparedUse, lease::Lease};
use crate::{
    cache::{RowCache, SequenceCache},
    config::{Activation, ModelManifest, Task},
    device::Place,
    engine::{Engine, GenerationEngine, GradientEngine},
    error::RequestError,
    quality::{self, Classified, calibration::Calibration},
    telemetry::{
        CascadeMetrics, GenerationMetrics, InstanceCount, ModelMetrics, ModelStatistics, Traffic,
    },
    text::{GenerationText, TextEncoder},
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
    /// Length of its output: dimensions of an embedding, labels, or 1 score; 0 for text.
    pub output_size: usize,
    /// How a classifier's logits become probabilities.
    pub activation: Activation,
    /// What makes its probabilities those of being right, where that was fitted.
    pub calibration: Option<Calibration>,
    /// Counts what it hands on, where its manifest has a cascade.
    pub cascade: Option<CascadeMetrics>,
    /// What runs it.
    pub runner: Runner,
    /// Its metrics.
    pub metrics: ModelMetrics,
    /// Its cumulative statistics.
    pub statistics: Arc<ModelStatistics>,
    /// How its requests end.
    pub traffic: Traffic,
    /// Whether its rows are as usual, where that is looked for.
    pub drift: Option<DriftWatch>,
    /// Who gets copies of its requests.
    pub(super) mirror: ArcSwapOption<Mirror>,
    /// Where its instances run, each one's place.
    pub places: Vec<Place>,
    /// Says how many there are on each device, while it is there.
    pub(super) _counted: Vec<InstanceCount>,
    /// Bytes of its weights and caches in memory.
    pub memory_bytes: u64,
    /// Bytes of its weights alone.
    pub weight_bytes: u64,
    /// How long it took to load and warm.
    pub load_time: Duration,
    /// What of it went where.
    pub load_times: LoadTimes,
    /// Whether its weights were found prepared.
    pub prepared: PreparedUse,
    /// Whether its outputs are as recorded.
    pub canary: CanaryDone,
    /// When it was ready.
    pub loaded_at: SystemTime,
    /// Last, so that it tells of the end when all else is freed.
    pub(super) lease: Lease,
}

/// What runs a model.
#[derive(Debug)]
pub enum Runner {
    /// Each row in one forward pass.
    Encoder(ServedEncoder),
    /// Token by token.
    Decoder(Arc<ServedDecoder>),
}

/// The parts of a model that answers a row in one forward pass.
#[derive(Debug)]
pub struct ServedEncoder {
    /// Its tokenizer.
    pub text: Arc<TextEncoder>,
    /// What runs it.
    pub engine: Arc<Engine>,
    /// Its answers, where they are kept.
    pub cache: Option<Arc<RowCache>>,
    /// What finds gradients of its outputs, or what is allowed instead where it has none.
    pub gradients: Result<GradientEngine, String>,
}

/// The parts of a model that generates.
#[derive(Debug)]
pub struct ServedDecoder {
    /// Its tokenizer and chat template.
    pub text: Arc<GenerationText>,
    /// What runs it.
    pub engine: GenerationEngine,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Tokens of prompt and answer together at most.
    pub max_sequence_tokens: usize,
    /// Tokens generated at most where a request doesn't say; 0 for what the context leaves.
    pub default_max_tokens: u32,
    /// Its generations, where they are kept.
    pub cache: Option<Arc<SequenceCache>>,
    /// Its further metrics.
    pub metrics: GenerationMetrics,
}

impl ServedModel {
    /// The parts of a model that answers a row in one forward pass.
    ///
    /// # Errors
    /// [`RequestError::WrongTask`] when it generates.
    pub fn encoder(&self) -> Result<&ServedEncoder, RequestError> {
        match &self.runner {
            Runner::Encoder(encoder) => Ok(encoder),
            Runner::Decoder(_) => Err(self.does_not("embed, classify, rerank or tokens")),
        }
    }

    /// The parts of a model that generates.
    ///
    /// # Errors
    /// [`RequestError::WrongTask`] when it doesn't.
    pub fn decoder(&self) -> Result<&Arc<ServedDecoder>, RequestError> {
        match &self.runner {
            Runner::Decoder(decoder) => Ok(decoder),
            Runner::Encoder(_) => Err(self.does_not("generate")),
        }
    }

    /// Whether its answers are kept.
    pub fn is_caching(&self) -> bool {
        self.manifest.cache.max_bytes().is_some()
    }

    /// The text of one token; empty for an id it doesn't have.
    pub fn token_text(&self, id: u32) -> String {
        match &self.runner {
            Runner::Encoder(encoder) => encoder.text.token_text(id).unwrap_or_default(),
            Runner::Decoder(decoder) => decoder.text.token_text(id),
        }
    }

    /// What a classifier says of a row of logits `[labels]`, by calibrated probabilities where the
    /// version has a calibration.
    pub fn classify(&self, logits: &[f32]) -> Classified {
        match &self.calibration {
            None => quality::classify(logits, self.activation),
            Some(calibration) => Classified::of(calibration.probabilities(logits, self.activation)),
        }
    }

    /// The probability that a pair fits, of its logit.
    pub fn score(&self, logit: f32) -> f32 {
        let calibrated = self.calibration.as_ref().and_then(|calibration| {
            let all = calibration.probabilities(&[logit], Activation::Sigmoid);
            all.first().copied()
        });
        calibrated.unwrap_or_else(|| quality::sigmoid(logit))
    }

    fn does_not(&self, asked: &str) -> RequestError {
        RequestError::WrongTask {
            model: self.name.clone(),
            task: self.task().to_string(),
            asked: asked.to_owned(),
        }
    }

    /// The version as a number.
    pub fn number(&self) -> u64 {
        self.version.parse().unwrap_or_default()
    }

    /// Who gets copies of its requests.
    pub fn mirror(&self) -> Option<Arc<Mirror>> {
        self.mirror.load_full()
    }

    /// Why its devices are lost, if all are: it refuses everything then.
    pub fn lost(&self) -> Option<String> {
        match &self.runner {
            Runner::Encoder(encoder) => encoder.engine.lost(),
            Runner::Decoder(decoder) => decoder.engine.lost(),
        }
    }

    /// Whether requests wait for it: what can be put off had better be.
    pub fn is_busy(&self) -> bool {
        match &self.runner {
            Runner::Encoder(encoder) => encoder.engine.waiting_rows() > 0,
            Runner::Decoder(decoder) => decoder.engine.is_busy(),
        }
    }

    /// What the model does.
    pub fn task(&self) -> Task {
        self.manifest.task
    }
}
