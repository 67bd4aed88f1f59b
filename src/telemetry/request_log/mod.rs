//! The log of requests: what was asked and answered, a JSON object a line, for those who want it.
//!
//! A request that is sampled is copied as it comes and goes; one thread behind a queue of bounded
//! bytes covers what is not to be kept, and writes. When the disk is full lines are dropped and
//! counted, and the server serves on.

mod cover;
mod line;
mod queue;
mod writer;

#[cfg(test)]
mod tests;

pub use line::{Class, Generated, Input, Line, Message, Output, Sampling, Span, Times};
pub use queue::RequestLog;
