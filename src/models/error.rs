//! What can go wrong when a model is loaded, and when it runs.

use std::path::PathBuf;

/// Why a model cannot be loaded. Each variant says what was found and what is supported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file cannot be opened or read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file is not valid JSON, or is not the object that it should be.
    #[error("{path} is not valid: {reason}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, and what.
        reason: String,
    },
    /// A value in `config.json` is missing, of the wrong kind, or not supported.
    #[error("config.json: {key} is {found}; supported: {supported}")]
    Config {
        /// The key.
        key: String,
        /// Its value, or "missing".
        found: String,
        /// What it may be.
        supported: String,
    },
    /// A value of a GGUF file's metadata is missing, of the wrong kind, or not supported.
    #[error("GGUF metadata: {key} is {found}; supported: {supported}")]
    Metadata {
        /// The key.
        key: String,
        /// Its value, or "missing".
        found: String,
        /// What it may be.
        supported: String,
    },
    /// A GGUF file is damaged or lies about itself.
    #[error("{path} is not a valid GGUF file: {reason}", path = path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The directory holds no safetensors checkpoint.
    #[error(
        "{dir} has neither model.safetensors nor model.safetensors.index.json; \
         convert other formats to safetensors first", dir = dir.display()
    )]
    NoWeights {
        /// The model's directory.
        dir: PathBuf,
    },
    /// The header of a safetensors file is damaged or lies about the file.
    #[error("{path} is not a valid safetensors file: {reason}", path = path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The model needs a tensor that the checkpoint does not have.
    #[error("tensor {name} is missing; expected {expected:?} ({why})")]
    MissingTensor {
        /// Its name, without the optional prefix.
        name: String,
        /// The shape that it should have.
        expected: Vec<usize>,
        /// Which other names were tried.
        why: String,
    },
    /// A tensor has another shape than the config asks for.
    #[error("tensor {name} has shape {found:?}; expected {expected:?} by its configuration")]
    Shape {
        /// Its name in the file.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the config.
        expected: Vec<usize>,
    },
    /// A tensor has a type that encoders cannot be loaded from.
    #[error("tensor {name} is {found}; supported: F32, F16, BF16")]
    Dtype {
        /// Its name in the file.
        name: String,
        /// Type in the file.
        found: String,
    },
    /// A tensor of a GGUF file has a type that is not supported.
    #[error(
        "tensor {name} is {found}; supported: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, \
         Q3_K, Q4_K, Q5_K, Q6_K; quantize the model to one of these"
    )]
    GgmlType {
        /// Its name in the file.
        name: String,
        /// The type's name, or its number.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {name} has a value that is not finite, at index {index}")]
    NonFinite {
        /// Its name in the file.
        name: String,
        /// Index of the first such value, row-major.
        index: usize,
    },
    /// The head that was asked for does not fit the model.
    #[error("head {head}: {reason}")]
    Head {
        /// The head.
        head: &'static str,
        /// Why it does not fit.
        reason: String,
    },
    /// The device refused (out of memory, for instance).
    #[error("device: {0}")]
    Device(#[from] candle_core::Error),
}

/// Why a batch could not be run. All but [`ForwardError::Device`] are the caller's to avoid:
/// admission checks the same limits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// A row has no tokens.
    #[error("row {row} of the batch has no tokens")]
    EmptyRow {
        /// Index of the row.
        row: usize,
    },
    /// A row has more tokens than the model has positions.
    #[error("row {row} of the batch has {len} tokens; the model takes up to {max}")]
    TooLong {
        /// Index of the row.
        row: usize,
        /// Its tokens.
        len: usize,
        /// The model's limit.
        max: usize,
    },
    /// A token id is not in the vocabulary.
    #[error("row {row} of the batch has token id {token}; the vocabulary has {vocabulary}")]
    Token {
        /// Index of the row.
        row: usize,
        /// The token id.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A token type is not in the type vocabulary.
    #[error("row {row} of the batch has token type {type_id}; the model has {types}")]
    TokenType {
        /// Index of the row.
        row: usize,
        /// The token type.
        type_id: u32,
        /// Number of types.
        types: usize,
    },
    /// The rows of a step do not add up to its tokens.
    #[error("the rows of the step have {in_rows} tokens, the step has {tokens}")]
    RowSum {
        /// Tokens by the rows.
        in_rows: usize,
        /// Tokens of the step.
        tokens: usize,
    },
    /// Logits are wanted after a token that the step does not have.
    #[error("logits are wanted after token {token} of the step, which has {tokens}")]
    LogitToken {
        /// Its index.
        token: u32,
        /// Tokens of the step.
        tokens: usize,
    },
    /// A row's blocks are too few, not in the cache, or written by another row too.
    #[error("blocks of the cache: {0}")]
    Blocks(String),
    /// A cache cannot have that size.
    #[error("a cache of {blocks} blocks of {block_size} positions is empty or too large")]
    Cache {
        /// Its blocks.
        blocks: usize,
        /// Positions in a block.
        block_size: usize,
    },
    /// The device failed.
    #[error("device: {0}")]
    Device(#[from] candle_core::Error),
}
