//! Between text and token ids, both ways, as the model was trained: one tokenizer a model, one
//! bounded pool of threads for all of them. For models that generate also chat templates, and
//! masks that hold an output to a form.

mod added_tokens;
mod chat;
mod chat_date;
mod constraint;
mod detokenizer;
mod encode;
mod folder;
mod gguf_tokenizer;
mod pool;
mod pre_tokenizer;
mod prompt;
mod python_json;
mod sentence_piece;
mod stop_tokens;
mod token_table;
mod tokenizer_json;
mod vocabulary;
mod word_piece;

pub use chat::{ChatError, ChatMessage, ChatOptions, ChatTemplate};
pub use constraint::{Constraint, ConstraintError, ConstraintFactory, ConstraintState};
pub use detokenizer::{Detokenizer, SpecialTokens};
pub use encode::{
    EncodeError, EncodeOptions, EncodedRow, EncoderLimits, RowInput, TextEncoder, TokenizerError,
};
pub use pool::{CpuPool, PoolFull};
pub use prompt::GenerationText;
pub use vocabulary::{GgufVocabulary, VocabularyError};
