//! Token generation: which tokens of which sequences are computed next, where their keys and values
//! stand in the cache, and what is sampled from the logits.
//!
//! Pure: no I/O, no clock, no tensors. Time is an argument; the engine runs the model between
//! [`Scheduler::compose`] and [`Scheduler::complete`], samples a token from each row that asks for
//! one, and appends it.

mod blocks;
mod compose;
mod options;
mod sampling;
mod scheduler;
mod sequence;
mod step;
mod stop;

#[cfg(test)]
mod property_tests;

pub use blocks::BlockCounts;
pub use options::{OptionsError, Refused, SchedulerOptions};
pub use sampling::{
    InvalidParameter, MAX_TOP_LOGPROBS, Random, RowStatistics, SampleError, Sampled, Sampler,
    SamplingParameters, TokenConstraint,
};
pub use scheduler::Scheduler;
pub use sequence::{NewSequence, Sequence, SequenceId, SequenceState};
pub use step::{Counts, Step, StepRow};
pub use stop::{Emitted, FinishReason, InvalidStop, MAX_STOP_BYTES, MAX_STOP_STRINGS, StopText};
