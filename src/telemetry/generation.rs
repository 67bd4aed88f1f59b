//! The Prometheus metrics of models that generate, with the labels `model` and `version`.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    exponential_buckets,
};

use super::series::Registrar;

#[derive(Debug)]
pub(super) struct GenerationFamilies {
    time_to_first_token: HistogramVec,
    inter_token_latency: HistogramVec,
    prompt_tokens: IntCounterVec,
    cached_tokens: IntCounterVec,
    generated_tokens: IntCounterVec,
    preemptions: IntCounterVec,
    sequences: IntGaugeVec,
    cache_blocks: IntGaugeVec,
}

/// The metrics of one model version.
#[derive(Debug, Clone)]
pub struct GenerationMetrics {
    /// Seconds from a sequence's submission to its first token.
    pub time_to_first_token: Histogram,
    /// Seconds from one token of a sequence to its next.
    pub inter_token_latency: Histogram,
    /// Tokens of accepted prompts.
    pub prompt_tokens: IntCounter,
    /// Of those, the ones whose keys and values were found in the cache.
    pub cached_tokens: IntCounter,
    /// Tokens generated.
    pub generated_tokens: IntCounter,
    /// Sequences that gave their blocks to others and were computed again.
    pub preemptions: IntCounter,
    /// Sequences running now.
    pub running: IntGauge,
    /// Sequences waiting now.
    pub waiting: IntGauge,
    /// Sequences whose reader is behind.
    pub paused: IntGauge,
    /// Blocks that sequences hold.
    pub used_blocks: IntGauge,
    /// Blocks that are kept for those who may begin alike.
    pub cached_blocks: IntGauge,
    /// Blocks with nothing in them.
    pub free_blocks: IntGauge,
}

impl GenerationFamilies {
    pub(super) fn register(registry: &Registrar) -> prometheus::Result<Self> {
        let model = &["model", "version"];
        let counter = |name: &str, help: &str| {
            let family = IntCounterVec::new(Opts::new(name, help), model)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let gauge = |name: &str, help: &str| {
            let family = IntGaugeVec::new(Opts::new(name, help), &["model", "version", "state"])?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let histogram = |name: &str, help: &str| {
            // 500 µs to 131 s, growing by half: latencies that people compare deserve fine steps.
            let buckets = exponential_buckets(5e-4, 1.5, 32)?;
            let family = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), model)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        Ok(Self {
            time_to_first_token: histogram(
                "ferry_time_to_first_token_seconds",
                "Time from a sequence's submission to its first token.",
            )?,
            inter_token_latency: histogram(
                "ferry_inter_token_latency_seconds",
                "Time from one token of a sequence to its next.",
            )?,
            prompt_tokens: counter("ferry_prompt_tokens_total", "Tokens of accepted prompts.")?,
            cached_tokens: counter(
                "ferry_cached_prompt_tokens_total",
                "Prompt tokens whose keys and values were found in the cache.",
            )?,
            generated_tokens: counter("ferry_generated_tokens_total", "Tokens generated.")?,
            preemptions: counter(
                "ferry_preemptions_total",
                "Sequences that gave their cache blocks to others and were computed again.",
            )?,
            sequences: gauge("ferry_sequences", "Sequences in the engine, by state.")?,
            cache_blocks: gauge("ferry_cache_blocks", "Blocks of the KV cache, by state.")?,
        })
    }

    pub(super) fn model(&self, model: &str, version: &str) -> GenerationMetrics {
        let labels = &[model, version];
        let sequences = |state| self.sequences.with_label_values(&[model, version, state]);
        let blocks = |state| {
            self.cache_blocks
                .with_label_values(&[model, version, state])
        };
        GenerationMetrics {
            time_to_first_token: self.time_to_first_token.with_label_values(labels),
            inter_token_latency: self.inter_token_latency.with_label_values(labels),
            prompt_tokens: self.prompt_tokens.with_label_values(labels),
            cached_tokens: self.cached_tokens.with_label_values(labels),
            generated_tokens: self.generated_tokens.with_label_values(labels),
            preemptions: self.preemptions.with_label_values(labels),
            running: sequences("running"),
            waiting: sequences("waiting"),
            paused: sequences("paused"),
            used_blocks: blocks("used"),
            cached_blocks: blocks("cached"),
            free_blocks: blocks("free"),
        }
    }
}
