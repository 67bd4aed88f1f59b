//! The queue in which rows board batches, and the rule by which a batch leaves.
//!
//! Pure: no I/O, no clock, no tensors. Time is an argument, so that everything here is tested in
//! simulated time; the engine's dispatcher is the only thread that owns a queue.

mod arrivals;
mod lines;
mod policy;
mod queue;
mod row;
mod run_time;

pub use lines::{Lines, Place};
pub use policy::{BatchPolicy, PolicyError};
pub use queue::{BatchQueue, Decision, RejectReason, Rejected, Waiting};
pub use row::{Batch, FlushReason, Priority, Row, RowId};
pub use run_time::RunTimeModel;
