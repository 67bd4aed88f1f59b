//! What the server tells about itself: metrics, statistics, logs.
//!
//! Handles are resolved once, when a model is loaded; recording is a few atomic additions.

pub mod logs;

mod cache;
mod callers;
mod cascade;
mod explain;
mod generation;
mod jobs;
mod metrics;
mod operators;
mod statistics;
mod traffic;

pub use cache::CacheMetrics;
pub use callers::CallerMetrics;
pub use cascade::CascadeMetrics;
pub use explain::ExplainMetrics;
pub use generation::GenerationMetrics;
pub use jobs::JobsMetrics;
pub use metrics::{FlushCounters, Metrics, ModelMetrics, Outcome, TrialMetrics};
pub use operators::OperatorMetrics;
pub use statistics::{BatchTimes, ModelStatistics, RequestTimes, Snapshot, StatDuration};
pub use traffic::{Traffic, TrafficReading};
