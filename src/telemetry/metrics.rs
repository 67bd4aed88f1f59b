//! The Prometheus metrics, with the labels `model` and `version`.

use std::sync::Arc;

use prometheus::{Encoder as _, Gauge, Histogram, IntCounter, IntGauge, Registry, TextEncoder};

use super::{
    cache::CacheMetrics,
    callers::CallerMetrics,
    cascade::CascadeMetrics,
    device::{DeviceMetrics, InstanceCount},
    drift::DriftMetrics,
    explain::ExplainMetrics,
    families::Families,
    generation::GenerationMetrics,
    jobs::JobsMetrics,
    machine::MachineMetrics,
    memory::ModelMemory,
    operators::OperatorMetrics,
    series::{Lease, Registrar, Series},
    trace_metrics::{RequestLogMetrics, TraceMetrics},
    usage::ModelUsage,
    work::WorkMetrics,
};
use crate::config::MetricsConfig;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Ok,
    /// The caller's mistake.
    Invalid,
    /// Refused: a bound was reached.
    Overloaded,
    /// Too late.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// The server or the model is not there.
    Unavailable,
    /// Ferry's fault.
    Internal,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::Ok,
        Self::Invalid,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::Unavailable,
        Self::Internal,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

/// Every metric of the process.
#[derive(Debug, Clone)]
pub struct Metrics {
    config: MetricsConfig,
    registry: Registry,
    families: Arc<Families>,
    series: Arc<Series>,
}

/// Names for why a batch left; the values of the label `reason`.
const FLUSH_REASONS: [&str; 5] = ["full", "queue_delay", "deadline", "idle", "drain"];

/// One counter for each reason a batch leaves for.
#[derive(Debug, Clone)]
pub struct FlushCounters([IntCounter; FLUSH_REASONS.len()]);

impl FlushCounters {
    /// Counts a batch that left because it was full.
    pub fn full(&self) {
        self.0[0].inc();
    }
    /// Counts a batch whose oldest row had waited long enough.
    pub fn queue_delay(&self) {
        self.0[1].inc();
    }
    /// Counts a batch that left for a deadline.
    pub fn deadline(&self) {
        self.0[2].inc();
    }
    /// Counts a batch that left since an executor was idle.
    pub fn idle(&self) {
        self.0[3].inc();
    }
    /// Counts a batch that left at shutdown or unload.
    pub fn drain(&self) {
        self.0[4].inc();
    }
}

/// The metrics of a candidate version beside the stable one.
#[derive(Debug, Clone)]
pub struct TrialMetrics {
    /// Requests that both have answered.
    pub compared: IntCounter,
    /// Copies that were not sent.
    pub dropped: IntCounter,
    /// Copies that were not answered.
    pub failed: IntCounter,
    /// How far the answers agree, 0 to 1.
    pub agreement: Gauge,
}

/// The metrics of one model version.
#[derive(Debug, Clone)]
pub struct ModelMetrics {
    requests: [IntCounter; Outcome::ALL.len()],
    /// Rows executed.
    pub rows: IntCounter,
    /// Tokens executed.
    pub tokens: IntCounter,
    /// Batches, by why they left.
    pub batches: FlushCounters,
    /// Rows of a batch.
    pub batch_rows: Histogram,
    /// Tokens of a batch.
    pub batch_tokens: Histogram,
    /// Seconds a row waited to board.
    pub queue_delay: Histogram,
    /// Seconds a batch ran.
    pub execute: Histogram,
    /// Seconds from a request's arrival to its answer.
    pub request_time: Histogram,
    /// Seconds a request's texts took to be tokenized, waiting included.
    pub tokenize: Histogram,
    /// Rows waiting now.
    pub waiting_rows: IntGauge,
    /// Batches that failed and were run again row by row.
    pub isolated_batches: IntCounter,
    /// What it runs on.
    pub device: DeviceMetrics,
    /// How well its work goes.
    pub work: WorkMetrics,
    /// Who used it for how much.
    pub usage: Arc<ModelUsage>,
    /// All these are there for as long as somebody counts.
    _lease: Arc<Lease>,
}

impl ModelMetrics {
    /// Counts a request that ended so.
    pub fn count_request(&self, outcome: Outcome) {
        self.requests[outcome as usize].inc();
    }

    /// Requests that ended so.
    pub fn requests(&self, outcome: Outcome) -> u64 {
        self.requests[outcome as usize].get()
    }
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Panics
    /// Never: the names are constants, checked by a test.
    pub fn new() -> Self {
        Self::with(&MetricsConfig::default())
    }

    /// Registers every metric; `config` says how usage is told apart.
    ///
    /// # Panics
    /// Never: the names are constants, checked by a test.
    pub fn with(config: &MetricsConfig) -> Self {
        let registry = Registry::new();
        let registrar = Registrar::new(&registry);
        let families =
            Families::register(&registrar, config).expect("constant, distinct metric names");
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(
                prometheus::process_collector::ProcessCollector::for_self(),
            ))
            .expect("constant, distinct metric names");
        Self {
            config: config.clone(),
            registry,
            families: Arc::new(families),
            series: registrar.finish(),
        }
    }

    /// How usage is told apart, and what names there are beside.
    pub fn config(&self) -> &MetricsConfig {
        &self.config
    }

    /// The handles of one model version. Its gauges, here and in its further handles, go when the last of
    /// these has gone.
    pub fn model(&self, model: &str, version: &str) -> ModelMetrics {
        let families = &self.families;
        let labels = &[model, version];
        ModelMetrics {
            _lease: Arc::new(self.series.hold(model, version)),
            requests: Outcome::ALL.map(|outcome| {
                families
                    .requests
                    .with_label_values(&[model, version, outcome.label()])
            }),
            rows: families.rows.with_label_values(labels),
            tokens: families.tokens.with_label_values(labels),
            batches: FlushCounters(FLUSH_REASONS.map(|reason| {
                families
                    .batches
                    .with_label_values(&[model, version, reason])
            })),
            batch_rows: families.batch_rows.with_label_values(labels),
            batch_tokens: families.batch_tokens.with_label_values(labels),
            queue_delay: families.queue_delay.with_label_values(labels),
            execute: families.execute.with_label_values(labels),
            request_time: families.request_time.with_label_values(labels),
            tokenize: families.tokenize.with_label_values(labels),
            waiting_rows: families.waiting_rows.with_label_values(labels),
            isolated_batches: families.isolated_batches.with_label_values(labels),
            device: families.device.model(model, version),
            work: families.work.model(model, version),
            usage: Arc::new(families.usage.model(model, version)),
        }
    }

    /// The further handles of a model version that generates.
    pub fn generation(&self, model: &str, version: &str) -> GenerationMetrics {
        self.families.generation.model(model, version)
    }

    /// The handles of a candidate version beside the stable one.
    pub fn trial(&self, model: &str, stable: &str, candidate: &str) -> TrialMetrics {
        let families = &self.families;
        let copies = |result| {
            families
                .mirrored
                .with_label_values(&[model, stable, candidate, result])
        };
        TrialMetrics {
            compared: copies("compared"),
            dropped: copies("dropped"),
            failed: copies("failed"),
            agreement: families
                .agreement
                .with_label_values(&[model, stable, candidate]),
        }
    }

    /// The handles of who is refused at the gate of the callers.
    pub fn callers(&self) -> CallerMetrics {
        self.families.callers.metrics()
    }

    /// The handles of what operators do.
    pub fn operators(&self) -> OperatorMetrics {
        self.families.operators.metrics()
    }

    /// The further handles of a model version whose answers are kept.
    pub fn cache(&self, model: &str, version: &str) -> CacheMetrics {
        self.families.cache.model(model, version)
    }

    /// Counts the instances of a model version's copy on a device.
    pub fn count_instances(&self, model: &str, version: &str, on: (&str, usize)) -> InstanceCount {
        self.families.device.count(model, version, on)
    }

    /// Tells what a loaded version takes of the memory.
    pub fn set_memory(&self, model: &str, version: &str, memory: ModelMemory) {
        self.families.memory.set(model, version, memory);
    }

    /// The handles of what the machine does.
    pub fn machine(&self) -> MachineMetrics {
        self.families.machine.metrics()
    }

    /// The handles of a model version that hands on to the model `to` what it is not sure of.
    pub fn cascade(&self, model: &str, version: &str, to: &str) -> CascadeMetrics {
        self.families.cascade.step(model, version, to)
    }

    /// The handles of a model version's explanations by a method.
    pub fn explain(&self, model: &str, version: &str, method: &str) -> ExplainMetrics {
        self.families.explain.of(model, version, method)
    }

    /// The handles of the jobs.
    pub fn jobs(&self) -> JobsMetrics {
        self.families.jobs.clone()
    }

    /// The handles of the request log.
    pub fn request_log(&self) -> RequestLogMetrics {
        self.families.request_log.clone()
    }

    /// The further handles of a model version whose answers are compared with a baseline.
    pub fn drift(&self, model: &str, version: &str) -> DriftMetrics {
        let lease = self.series.hold(model, version);
        self.families.drift.model(model, version, lease)
    }

    /// The handles of the traces.
    pub fn traces(&self) -> TraceMetrics {
        self.families.traces.clone()
    }

    /// Counts a request that ended before it found a model.
    pub fn count_unrouted(&self, outcome: Outcome) {
        self.families
            .unrouted
            .with_label_values(&[outcome.label()])
            .inc();
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> Vec<u8> {
        let mut page = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut page) {
            tracing::error!(%error, "metrics can't be rendered");
        }
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_on_the_page() {
        let metrics = Metrics::new();
        let model = metrics.model("minilm", "1");
        model.count_request(Outcome::Ok);
        model.queue_delay.observe(0.001);
        model.batches.deadline();
        let page = String::from_utf8(metrics.render()).unwrap();
        for line in [
            r#"ferry_requests_total{model="minilm",outcome="ok",version="1"} 1"#,
            r#"ferry_queue_delay_seconds_count{model="minilm",version="1"} 1"#,
            r#"ferry_batches_total{model="minilm",reason="deadline",version="1"} 1"#,
        ] {
            assert!(page.contains(line), "{line} not in\n{page}");
        }
    }
}
