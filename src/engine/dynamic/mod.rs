//! Dynamic batching: whole batches of rows, each answered in one forward pass.
//!
//! ```text
//! Engine::submit ─ channel ─► dispatcher (owns the BatchQueue) ─ channel ─► executors ─► replies
//!                                  ▲                                            │
//!                                  └──────────── done: how long it took ────────┘
//! ```
//!
//! No lock is held anywhere on this way. The dispatcher only decides; executors only run.

mod dispatcher;
mod executor;
mod handle;
mod hung;
mod load;
mod messages;
mod row;

pub use executor::is_finite;
pub use handle::{Engine, EngineOptions};
pub use messages::Forward;
pub use row::{Answers, Departure, RowAnswer, RowWork, WorkRow};
