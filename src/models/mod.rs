//! Model definitions and weight loading: from a directory of files to a forward pass over packed
//! batches.
//!
//! [`EncoderModel::load`] reads `config.json`, or a GGUF file's metadata, into an [`EncoderSpec`],
//! derives from it every tensor that the model needs, checks the headers against that list, and only
//! then reads weights; [`DecoderModel::load`] likewise. Files are hostile input: what is wrong with them is a [`LoadError`], never a panic.

pub mod decoder;
pub mod encoder;
pub mod error;
pub mod gguf;
pub mod heads;
pub mod inspect;
pub mod packed;
pub mod prepared;
pub mod quantize;
pub mod spec;
pub mod weights;

mod config_json;
mod loader;
mod mapping;
mod plan;
mod projection;
mod source;
mod spec_gguf;
mod tensor_plan;

#[cfg(test)]
mod testing;

pub use decoder::{
    DecoderBatch, DecoderModel, DecoderOptions, DecoderRow, DecoderSpec, DecoderSummary, KvCache,
    StepLogits,
};
pub use encoder::{DifferentiableEncoder, EncoderModel, Line, LoadOptions};
pub use error::{ForwardError, LoadError};
pub use heads::{Head, RowOutput};
pub use inspect::{FileContents, ModelSummary};
pub use packed::PackedBatch;
pub use prepared::PreparedWeights;
pub use spec::{EncoderSpec, Family};
pub use spec_gguf::StoredTask;
