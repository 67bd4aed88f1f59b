//! Runs models: where the async world hands work to OS threads, and the only place it does.
//!
//! Two engines, for the two kinds of batching: [`dynamic`] for models that answer a row in one
//! forward pass, [`continuous`] for models that generate it token by token. Beside them, [`gradients`] for
//! explanations that want a way back through a model.

pub mod continuous;
pub mod dynamic;
pub mod gradients;

mod panics;
mod recovery;
mod sync;
mod watchdog;

pub(crate) use panics::panic_message;

pub use continuous::{GenerationEngine, GenerationOptions};
pub use dynamic::{
    Answers, Departure, Engine, EngineOptions, Forward, RowAnswer, RowWork, is_finite,
};
pub use gradients::{GradientEngine, GradientWork, Integrated};
pub use recovery::{Changed, Recovery, Reload, Supervision};
pub use watchdog::{Limit, Spent, Watchdog};
