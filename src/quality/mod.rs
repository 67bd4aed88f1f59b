//! How far an answer can be trusted: from raw logits to probabilities, confidence and margin; and how
//! far two models' answers agree; whether what comes has become other than usual.

pub mod calibration;
pub mod comparison;
mod confidence;
mod draws;
pub mod drift;
pub mod explain;
mod spans;

pub use confidence::{Classified, classify, sigmoid, top_probability};
pub use spans::{LabelledSpan, characters_before, label_spans};
