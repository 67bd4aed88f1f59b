//! How far an answer can be trusted: from raw logits to probabilities, confidence and margin; and how
//! far two models' answers agree; whether what comes has become other than usual.

pub mod comparison;
mod confidence;
pub mod drift;
mod spans;

pub use confidence::{Classified, classify, sigmoid, top_probability};
pub use spans::{LabelledSpan, characters_before, label_spans};
