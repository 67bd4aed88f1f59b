//! Traces: what became of one request, as spans that a collector shows.
//!
//! Nothing is built while a request is under way: its parts note the times that they measure anyway,
//! and when the request is over these go through a bounded queue to a thread that makes spans of them
//! and sends them (OTLP). A request that isn't traced costs the branches that see so.
//!
//! ```text
//! server span ─┬─ admission ─ tokenize ─┬─ queue ─ execute ──────┬─ postprocess ─ reply
//!              │                        └─ queue ─ prefill ─ decode ┘
//! batch span (a trace of its own, linked to the rows in it; `execute` is linked to it)
//! ```
//!
//! A row of a job has the spans of a request, in a trace of its own that is linked to who submitted the
//! job: a trace with all the rows of a large job in it is one that nobody can read.

mod export;
mod notes;
mod request;
mod spans;
mod tls;
mod tracer;

#[cfg(test)]
mod tests;

pub use notes::{BatchNotes, Ending, RowTrace, Sequence, Stages};
pub use request::{JobRow, RequestTrace, TraceLink, current, scope};
pub use tracer::{Flush, Tracer, caller_of};
