//! From text to token ids, as the model was trained: one tokenizer a model, one bounded pool of
//! threads for all of them.

mod encode;
mod pool;

pub use encode::{EncodeError, EncodeOptions, EncodedRow, RowInput, TextEncoder, TokenizerError};
pub use pool::{CpuPool, PoolFull};
