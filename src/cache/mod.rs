//! Answers kept for those who ask the same again, for models whose manifest wants that.
//!
//! Every loaded version has a cache of its own, so a swap starts with an empty one and the old goes
//! with its version. What was asked is hashed to a [`Key`]; a [`Store`] of bounded size keeps what
//! was answered. [`RowCache`] stands before an engine that answers row by row, and lets equal rows
//! that are under way share one run; [`SequenceCache`] keeps whole generations.

mod key;
mod rows;
mod run;
mod sequences;
mod store;

pub use key::{Key, KeyBuilder};
pub use rows::{CacheOptions, CachedAnswers, RowCache};
pub use sequences::{RecordedSequence, Recorder, Replay, SequenceCache};
pub use store::Store;
