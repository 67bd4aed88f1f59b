//! What the server tells about itself: metrics, statistics, logs, traces.
//!
//! Handles are resolved once, when a model is loaded; recording is a few atomic additions.

pub mod logs;
pub mod request_log;
pub mod traces;

mod cache;
mod callers;
mod cascade;
mod device;
mod drift;
mod explain;
mod families;
mod generation;
mod jobs;
pub mod machine;
mod memory;
mod metrics;
mod operators;
mod series;
mod statistics;
mod trace_metrics;
mod traffic;
mod usage;
mod work;

pub use cache::CacheMetrics;
pub use callers::CallerMetrics;
pub use cascade::CascadeMetrics;
pub use device::{DeviceMetrics, InstanceCount};
pub use drift::DriftMetrics;
pub use explain::ExplainMetrics;
pub use generation::GenerationMetrics;
pub use jobs::JobsMetrics;
pub use machine::MachineMetrics;
pub use memory::ModelMemory;
pub use metrics::{FlushCounters, Metrics, ModelMetrics, Outcome, TrialMetrics};
pub use operators::OperatorMetrics;
pub use statistics::{BatchTimes, ModelStatistics, RequestTimes, Snapshot, StatDuration};
pub use trace_metrics::{RequestLogMetrics, TraceMetrics};
pub use traffic::{Traffic, TrafficReading};
pub use usage::{ModelUsage, Used};
pub use work::WorkMetrics;
