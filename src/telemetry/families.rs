//! The families of metrics: their names, what they tell, their buckets.

use std::sync::Arc;

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, exponential_buckets,
};

use super::{
    cache::CacheFamilies,
    callers::CallerFamilies,
    cascade::CascadeFamilies,
    device::DeviceFamilies,
    drift::DriftFamilies,
    explain::ExplainFamilies,
    generation::GenerationFamilies,
    jobs::JobsMetrics,
    machine::MachineFamilies,
    memory::MemoryFamilies,
    operators::OperatorFamilies,
    series::Registrar,
    trace_metrics::{RequestLogMetrics, TraceMetrics},
    usage::UsageFamilies,
    work::WorkFamilies,
};
use crate::config::MetricsConfig;

#[derive(Debug)]
pub(super) struct Families {
    pub(super) requests: IntCounterVec,
    pub(super) rows: IntCounterVec,
    pub(super) tokens: IntCounterVec,
    pub(super) batches: IntCounterVec,
    pub(super) batch_rows: HistogramVec,
    pub(super) batch_tokens: HistogramVec,
    pub(super) queue_delay: HistogramVec,
    pub(super) execute: HistogramVec,
    pub(super) request_time: HistogramVec,
    pub(super) tokenize: HistogramVec,
    pub(super) waiting_rows: IntGaugeVec,
    pub(super) isolated_batches: IntCounterVec,
    /// Requests that named no model that is here.
    pub(super) unrouted: IntCounterVec,
    /// Copies of requests, by what became of them.
    pub(super) mirrored: IntCounterVec,
    pub(super) agreement: GaugeVec,
    pub(super) generation: GenerationFamilies,
    pub(super) callers: CallerFamilies,
    pub(super) operators: OperatorFamilies,
    pub(super) cache: CacheFamilies,
    pub(super) device: DeviceFamilies,
    pub(super) memory: MemoryFamilies,
    pub(super) machine: MachineFamilies,
    pub(super) cascade: CascadeFamilies,
    pub(super) explain: ExplainFamilies,
    pub(super) jobs: JobsMetrics,
    pub(super) traces: TraceMetrics,
    pub(super) request_log: RequestLogMetrics,
    pub(super) drift: DriftFamilies,
    pub(super) work: WorkFamilies,
    pub(super) usage: Arc<UsageFamilies>,
}

impl Families {
    pub(super) fn register(
        registry: &Registrar,
        config: &MetricsConfig,
    ) -> prometheus::Result<Self> {
        let model = &["model", "version"];
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            let family = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), model)?;
            registry.register(Box::new(family.clone()))?;
            Ok::<_, prometheus::Error>(family)
        };
        // 100 µs to 52 s, doubling: from a GPU's short batch to a CPU's full one.
        let seconds = || exponential_buckets(1e-4, 2.0, 20);
        Ok(Self {
            mirrored: counter(
                "ferry_mirrored_requests_total",
                "Copies of requests for a candidate version's trial, by what became of them.",
                &["model", "stable", "candidate", "result"],
            )?,
            agreement: agreement(registry)?,
            requests: counter(
                "ferry_requests_total",
                "Requests, by how they ended.",
                &["model", "version", "outcome"],
            )?,
            rows: counter("ferry_rows_total", "Rows executed.", model)?,
            tokens: counter(
                "ferry_tokens_total",
                "Tokens executed, special tokens included.",
                model,
            )?,
            batches: counter(
                "ferry_batches_total",
                "Batches, by why they left.",
                &["model", "version", "reason"],
            )?,
            batch_rows: histogram(
                "ferry_batch_rows",
                "Rows of a batch.",
                exponential_buckets(1.0, 2.0, 11)?,
            )?,
            batch_tokens: histogram(
                "ferry_batch_tokens",
                "Tokens of a batch.",
                exponential_buckets(8.0, 2.0, 13)?,
            )?,
            queue_delay: histogram(
                "ferry_queue_delay_seconds",
                "Time a row waited to board a batch.",
                seconds()?,
            )?,
            execute: histogram("ferry_execute_seconds", "Time a batch ran.", seconds()?)?,
            request_time: histogram(
                "ferry_request_seconds",
                "Time from a request's arrival to its answer.",
                seconds()?,
            )?,
            tokenize: histogram(
                "ferry_tokenize_seconds",
                "Time a request's texts took to be tokenized, waiting included.",
                exponential_buckets(1e-5, 2.0, 20)?,
            )?,
            waiting_rows: waiting_rows(registry)?,
            isolated_batches: counter(
                "ferry_isolated_batches_total",
                "Batches that failed and were run again row by row.",
                model,
            )?,
            unrouted: counter(
                "ferry_unrouted_requests_total",
                "Requests that ended before they found a model, by how.",
                &["outcome"],
            )?,
            generation: GenerationFamilies::register(registry)?,
            callers: CallerFamilies::register(registry)?,
            operators: OperatorFamilies::register(registry)?,
            cache: CacheFamilies::register(registry)?,
            device: DeviceFamilies::register(registry)?,
            memory: MemoryFamilies::register(registry)?,
            machine: MachineFamilies::register(registry)?,
            cascade: CascadeFamilies::register(registry)?,
            explain: ExplainFamilies::register(registry)?,
            jobs: JobsMetrics::register(registry)?,
            traces: TraceMetrics::register(registry)?,
            request_log: RequestLogMetrics::register(registry)?,
            drift: DriftFamilies::register(registry)?,
            work: WorkFamilies::register(registry)?,
            usage: Arc::new(UsageFamilies::register(registry, config)?),
        })
    }
}

fn waiting_rows(registry: &Registrar) -> prometheus::Result<IntGaugeVec> {
    let family = IntGaugeVec::new(
        Opts::new("ferry_waiting_rows", "Rows waiting to board a batch."),
        &["model", "version"],
    )?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

fn agreement(registry: &Registrar) -> prometheus::Result<GaugeVec> {
    let family = GaugeVec::new(
        Opts::new(
            "ferry_candidate_agreement",
            "How far a candidate version's answers agree with the stable version's, 0 to 1.",
        ),
        &["model", "stable", "candidate"],
    )?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}
