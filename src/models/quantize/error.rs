//! Why a model can't be quantized.

use std::path::PathBuf;

use super::super::error::LoadError;

/// Why a model can't be quantized. What was there before is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The input doesn't load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The output can't be written.
    #[error("can't write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tokenizer beside the weights is none that GGUF files have a form for.
    #[error("{path}: {reason}", path = path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is not supported, or wrong.
        reason: String,
    },
    /// The model has something that GGUF files have no form for.
    #[error("the model can't be written as GGUF: {0}")]
    NoForm(String),
    /// The importance matrix is damaged, or of another model.
    #[error("{path} is not an importance matrix of this model: {reason}", path = path.display())]
    Importance {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A `PATTERN=TYPE` that fits no tensor.
    #[error("--keep {0}: no matrix has such a name")]
    NothingKept(String),
    /// A `PATTERN=TYPE` whose type's blocks don't divide the rows.
    #[error("--keep {pattern}: {tensor} has rows of {row}, which blocks of {block} don't divide")]
    Unfit {
        /// The pattern and the type.
        pattern: String,
        /// The first tensor that doesn't fit.
        tensor: String,
        /// Values of its rows.
        row: usize,
        /// Values of a block.
        block: usize,
    },
    /// The input is the output.
    #[error("{path} would overwrite the file that is read", path = .0.display())]
    Same(PathBuf),
    /// The encoder failed.
    #[error("encoding: {0}")]
    Encode(#[from] candle_core::Error),
}
