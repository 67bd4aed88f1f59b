//! One row's text to token ids: tokenize, cut to the model's length, add the special tokens.
//!
//! The cut comes before the special tokens are added, as in Hugging Face's `transformers`
//! (`longest_first` for pairs), so that a cut row still begins and ends as the model expects.

use std::path::{Path, PathBuf};

use tokenizers::{
    Encoding, Tokenizer,
    utils::truncation::{
        TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
    },
};

use super::{
    GgufVocabulary, VocabularyError, tokenizer_json::read_tokenizer, word_piece::word_pieces,
};
use crate::config::Truncation;

/// What one row of a request holds.
#[derive(Debug, Clone, PartialEq)]
pub enum RowInput {
    /// A text.
    Text(String),
    /// A query and a document.
    Pair(String, String),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

impl RowInput {
    /// Bytes of its texts, or of its ids.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Pair(query, document) => query.len() + document.len(),
            Self::Tokens(ids) => ids.len() * size_of::<u32>(),
        }
    }
}

/// How a row is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// What happens to a row that is too long, if not what the manifest says.
    pub truncation: Option<Truncation>,
    /// Tokens a row may have, if fewer than the model takes.
    pub max_tokens: Option<usize>,
    /// Whether [`EncodedRow::offsets`] and [`EncodedRow::words`] are wanted; they cost time.
    pub offsets: bool,
}

/// A row as the model sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodedRow {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Segment of each token (0, or 1 for a pair's second text).
    pub type_ids: Vec<u32>,
    /// Where each token stands in the text, as half-open byte ranges; (0, 0) for special tokens.
    /// Empty unless asked for.
    pub offsets: Vec<(u32, u32)>,
    /// Which word each token belongs to; `None` for special tokens. Empty unless asked for.
    pub words: Vec<Option<u32>>,
    /// Whether each token is of a pair's second text. Empty unless offsets are asked for.
    pub second: Vec<bool>,
    /// Whether the input was cut.
    pub truncated: bool,
}

impl EncodedRow {
    /// Whether a token is of a word, not a special one; only where offsets were asked for.
    pub fn is_word(&self, token: usize) -> bool {
        self.words.get(token).is_some_and(Option::is_some)
    }

    /// Whether a token is of a pair's second text; only where offsets were asked for.
    pub fn is_second(&self, token: usize) -> bool {
        self.second.get(token).copied().unwrap_or(false)
    }
}

/// Why a tokenizer can't be loaded.
#[derive(Debug, thiserror::Error)]
#[error("can't load the tokenizer {}: {reason}", path.display())]
pub struct TokenizerError {
    pub(super) path: PathBuf,
    pub(super) reason: String,
}

/// Why a row can't be encoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EncodeError {
    /// Longer than allowed, and truncation is `error`.
    #[error("{found} tokens; at most {allowed} allowed (truncation is 'error')")]
    TooLong {
        /// Tokens found, special tokens included.
        found: usize,
        /// Tokens allowed.
        allowed: usize,
    },
    /// The length asked for leaves no room beside the special tokens.
    #[error("max_tokens {asked} leaves no room beside {special} special tokens")]
    NoRoom {
        /// Tokens asked for.
        asked: usize,
        /// Special tokens needed.
        special: usize,
    },
    /// A token id that the model doesn't have.
    #[error("token id {id}; the vocabulary has {vocabulary} ids, from 0")]
    UnknownId {
        /// The id found.
        id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// No token ids at all.
    #[error("no token ids; at least 1 needed")]
    Empty,
    /// The tokenizer itself failed.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

/// Where and how a row is cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    truncation: Truncation,
    limit: usize,
}

/// What a model takes.
#[derive(Debug, Clone, Copy)]
pub struct EncoderLimits {
    /// Token ids are below this; others are refused.
    pub vocabulary: usize,
    /// Whether a pair's second text is of segment 1. Without, every token is of segment 0, as
    /// models need that were trained with one segment only.
    pub segments: bool,
    /// Tokens a row may have, special tokens included; longer ones are cut.
    pub max_tokens: usize,
    /// Where they are cut.
    pub truncation: Truncation,
}

/// A model's tokenizer with the model's limits.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    /// The token for what the vocabulary lacks, where it has one.
    unknown: Option<u32>,
    vocabulary: usize,
    segments: bool,
    max_tokens: usize,
    truncation: Truncation,
}

impl TextEncoder {
    /// Loads `tokenizer.json` from `dir`.
    ///
    /// # Errors
    /// [`TokenizerError`] when the file is missing or isn't a tokenizer.
    pub fn load(dir: &Path, limits: EncoderLimits) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let json = std::fs::read(&path).map_err(|error| error.to_string());
        let tokenizer = json.and_then(|json| read_tokenizer(&json));
        Self::new(tokenizer, limits).map_err(|reason| TokenizerError { path, reason })
    }

    /// From the text of a `tokenizer.json`, which was found in `path`.
    ///
    /// # Errors
    /// [`TokenizerError`] when it isn't a tokenizer.
    pub fn from_json(
        json: &str,
        path: &Path,
        limits: EncoderLimits,
    ) -> Result<Self, TokenizerError> {
        let tokenizer = read_tokenizer(json.as_bytes());
        Self::new(tokenizer, limits).map_err(|reason| TokenizerError {
            path: path.to_owned(),
            reason,
        })
    }

    /// From a GGUF file's `WordPiece` vocabulary, as llama.cpp encodes with it: `separator` ends a
    /// text, and texts are made lower-case unless the file says otherwise.
    ///
    /// # Errors
    /// [`VocabularyError`] when the vocabulary is of another kind or contradicts itself.
    pub fn from_word_pieces(
        vocabulary: &GgufVocabulary,
        separator: Option<u32>,
        lowercase: Option<bool>,
        limits: EncoderLimits,
    ) -> Result<Self, VocabularyError> {
        let tokenizer = word_pieces(vocabulary, separator, lowercase.unwrap_or(true))?;
        Self::new(Ok(tokenizer), limits).map_err(VocabularyError::Failed)
    }

    fn new(tokenizer: Result<Tokenizer, String>, limits: EncoderLimits) -> Result<Self, String> {
        let mut tokenizer = tokenizer?;
        // Ours to decide per request; what the file says would cut or pad a second time.
        tokenizer
            .with_truncation(None)
            .map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        let unknown = ["[UNK]", "<unk>"]
            .iter()
            .find_map(|token| tokenizer.token_to_id(token));
        Ok(Self {
            tokenizer,
            unknown,
            vocabulary: limits.vocabulary,
            segments: limits.segments,
            max_tokens: limits.max_tokens,
            truncation: limits.truncation,
        })
    }

    /// Tokens a row may have, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How many of these tokens stand for what the vocabulary lacks.
    pub fn unknown_in(&self, ids: &[u32]) -> u32 {
        let Some(unknown) = self.unknown else {
            return 0;
        };
        ids.iter().filter(|&&id| id == unknown).count() as u32
    }

    /// The token that says nothing: the padding, or else the mask.
    pub fn blank(&self) -> Option<u32> {
        ["[PAD]", "<pad>", "[MASK]", "<mask>"]
            .iter()
            .find_map(|token| self.tokenizer.token_to_id(token))
            .filter(|&id| (id as usize) < self.vocabulary)
    }

    /// The token that a text is, where it is just one.
    pub fn single_token(&self, text: &str) -> Option<u32> {
        let named = self.tokenizer.token_to_id(text);
        let id = named.or_else(|| match *self.tokenize(text, false).ok()?.get_ids() {
            [id] => Some(id),
            _ => None,
        });
        id.filter(|&id| (id as usize) < self.vocabulary)
    }

    /// The text of a token id, if there is one.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Encodes a row. A `max_tokens` above the model's is the model's.
    ///
    /// # Errors
    /// [`EncodeError`] when the row is too long and may not be cut, or has ids the model lacks.
    pub fn encode(
        &self,
        input: &RowInput,
        options: EncodeOptions,
    ) -> Result<EncodedRow, EncodeError> {
        let cut = Cut {
            truncation: options.truncation.unwrap_or(self.truncation),
            limit: options
                .max_tokens
                .map_or(self.max_tokens, |asked| asked.min(self.max_tokens)),
        };
        let (first, second) = match input {
            RowInput::Tokens(ids) => return self.take_ids(ids, cut),
            RowInput::Text(text) => (text, None),
            RowInput::Pair(query, document) => (query, Some(document)),
        };
        let first = self.tokenize(first, options.offsets)?;
        let second = second.map(|text| self.tokenize(text, options.offsets));
        let (encoding, truncated) = self.cut(first, second.transpose()?, cut)?;
        Ok(self.row_of(&encoding, truncated, options.offsets))
    }

    /// Encodes a text without adding special tokens and without cutting it.
    ///
    /// # Errors
    /// [`EncodeError::Failed`] when the tokenizer fails.
    pub fn encode_bare(&self, text: &str) -> Result<EncodedRow, EncodeError> {
        Ok(self.row_of(&self.tokenize(text, true)?, false, true))
    }

    fn tokenize(&self, text: &str, offsets: bool) -> Result<Encoding, EncodeError> {
        let encoding = if offsets {
            self.tokenizer.encode(text, false)
        } else {
            self.tokenizer.encode_fast(text, false)
        };
        encoding.map_err(failed)
    }

    /// Cuts what is too long and adds the special tokens; tells whether it was cut.
    fn cut(
        &self,
        first: Encoding,
        second: Option<Encoding>,
        Cut { truncation, limit }: Cut,
    ) -> Result<(Encoding, bool), EncodeError> {
        let special = self.tokenizer.get_post_processor().map_or(0, |processor| {
            tokenizers::PostProcessor::added_tokens(processor, second.is_some())
        });
        let found = first.len() + second.as_ref().map_or(0, Encoding::len) + special;
        let truncated = found > limit;
        let direction = match truncation {
            Truncation::Error if truncated => {
                return Err(EncodeError::TooLong {
                    found,
                    allowed: limit,
                });
            }
            Truncation::Left => TruncationDirection::Left,
            Truncation::Right | Truncation::Error => TruncationDirection::Right,
        };
        let (first, second) = if truncated {
            let room = limit.checked_sub(special).filter(|&room| room > 0);
            let room = room.ok_or(EncodeError::NoRoom {
                asked: limit,
                special,
            })?;
            let params = TruncationParams {
                max_length: room,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
                direction,
            };
            truncate_encodings(first, second, &params).map_err(failed)?
        } else {
            (first, second)
        };
        let encoding = self.tokenizer.post_process(first, second, true);
        Ok((encoding.map_err(failed)?, truncated))
    }

    fn take_ids(
        &self,
        ids: &[u32],
        Cut { truncation, limit }: Cut,
    ) -> Result<EncodedRow, EncodeError> {
        if ids.is_empty() {
            return Err(EncodeError::Empty);
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            return Err(EncodeError::UnknownId {
                id,
                vocabulary: self.vocabulary,
            });
        }
        let truncated = ids.len() > limit;
        let kept = match truncation {
            _ if !truncated => ids,
            Truncation::Right => &ids[..limit],
            Truncation::Left => &ids[ids.len() - limit..],
            Truncation::Error => {
                return Err(EncodeError::TooLong {
                    found: ids.len(),
                    allowed: limit,
                });
            }
        };
        Ok(EncodedRow {
            ids: kept.to_vec(),
            type_ids: vec![0; kept.len()],
            offsets: Vec::new(),
            words: Vec::new(),
            second: Vec::new(),
            truncated,
        })
    }

    fn row_of(&self, encoding: &Encoding, truncated: bool, offsets: bool) -> EncodedRow {
        let places = encoding.get_offsets().iter().filter(|_| offsets);
        EncodedRow {
            ids: encoding.get_ids().to_vec(),
            type_ids: if self.segments {
                encoding.get_type_ids().to_vec()
            } else {
                vec![0; encoding.len()]
            },
            offsets: places
                .map(|&(start, end)| (start as u32, end as u32))
                .collect(),
            words: if offsets {
                encoding.get_word_ids().to_vec()
            } else {
                Vec::new()
            },
            second: if offsets {
                let sequences = encoding.get_sequence_ids().into_iter();
                sequences.map(|sequence| sequence == Some(1)).collect()
            } else {
                Vec::new()
            },
            truncated,
        }
    }
}

fn failed(error: impl std::fmt::Display) -> EncodeError {
    EncodeError::Failed(error.to_string())
}
