//! Continuous batching: sequences that are generated token by token, many in every step.
//!
//! ```text
//! GenerationEngine::submit ─ channel ─► runner (owns the Scheduler, runs the model) ─► token streams
//!        ▲                                                                               │
//!        └───────────── resume (a slow reader has caught up), cancel (it is gone) ◄──────┘
//! ```
//!
//! One thread a model: it asks the scheduler for a step, runs it, samples, and hands each token to
//! its sequence's bounded stream. A stream that is full pauses its own sequence and no other.

mod handle;
mod hung;
mod load;
mod messages;
mod pause;
mod runner;
mod sampling;
mod sequence;
mod stream;

pub use handle::{GenerationEngine, GenerationOptions, StartError};
pub use messages::{StepForward, StepOutput};
pub use sequence::SequenceWork;
pub use stream::{ScoredToken, SequenceEvent, SequenceStream};
