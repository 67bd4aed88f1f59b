//! A vocabulary as a GGUF file's metadata gives it, checked before anything is built from it.
//!
//! The file is a stranger's: ids may point nowhere and arrays may disagree in length, so a
//! tokenizer is only ever built from a [`CheckedVocabulary`].

use std::collections::HashSet;

/// Ids that a vocabulary may have; the largest known has 0.3 million.
const MAX_TOKENS: usize = 2_000_000;
/// Bytes that all token texts may have together.
const MAX_TOTAL_BYTES: usize = 256 << 20;

/// The `tokenizer.*` metadata of a GGUF file, as it stands there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (`SentencePiece`, merged by score).
    pub model: String,
    /// `tokenizer.ggml.pre`: how a byte-level BPE splits a text into words first.
    pub pre: Option<String>,
    /// Text of each token; its index is its id.
    pub tokens: Vec<String>,
    /// Score of each token; needed by `llama`, else may be empty.
    pub scores: Vec<f32>,
    /// Type of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    /// Empty means all are normal.
    pub types: Vec<i32>,
    /// Pairs to merge, best first, as `left right`; needed by `gpt2`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// Why no tokenizer can be built from a vocabulary.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VocabularyError {
    /// A tokenizer model that isn't done here.
    #[error("tokenizer.ggml.model is '{0}'; 'gpt2' and 'llama' are supported")]
    UnknownModel(String),
    /// A pre-tokenizer that isn't done here.
    #[error("tokenizer.ggml.pre is '{0}', which is not supported; known: {1}")]
    UnknownPreTokenizer(String, String),
    /// No tokens, or more than can be right.
    #[error("tokenizer.ggml.tokens has {found} entries; from 1 to {MAX_TOKENS} allowed")]
    Size {
        /// Entries found.
        found: usize,
    },
    /// The token texts are too long.
    #[error(
        "the texts of tokenizer.ggml.tokens have {found} bytes; at most {MAX_TOTAL_BYTES} allowed"
    )]
    TooManyBytes {
        /// Bytes found.
        found: usize,
    },
    /// Two arrays that should be of one length.
    #[error("{key} has {found} entries beside {tokens} tokens; the same number needed")]
    Length {
        /// The array's key.
        key: &'static str,
        /// Its entries.
        found: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// An id beyond the vocabulary.
    #[error("{key} is {id}; the vocabulary has {tokens} ids, from 0")]
    IdOutOfRange {
        /// The id's key.
        key: &'static str,
        /// The id.
        id: u32,
        /// The number of tokens.
        tokens: usize,
    },
    /// Two tokens of one text.
    #[error("token {id} has the same text as an earlier one: {text:?}")]
    Duplicate {
        /// The later one.
        id: usize,
        /// Their text.
        text: String,
    },
    /// A merge that isn't two tokens that make a third.
    #[error("merge {index}, {merge:?}, is not two tokens that make a third: no token {missing:?}")]
    Merge {
        /// Its rank.
        index: usize,
        /// What the file has.
        merge: String,
        /// The part that is no token.
        missing: String,
    },
    /// A token of type byte whose text isn't `<0xHH>`.
    #[error("token {id} is of type byte but reads {text:?}; '<0x00>' to '<0xFF>' expected")]
    Byte {
        /// The token.
        id: usize,
        /// Its text.
        text: String,
    },
    /// A vocabulary that encoders can't be run with.
    #[error(
        "tokenizer.ggml.model is '{0}', and there is no tokenizer.huggingface.json; without it, only \
         'bert' is supported for encoders. `ferry quantize` writes it"
    )]
    NoEncoder(String),
    /// A score that can't be compared.
    #[error("the score of token {id} is not a number")]
    Score {
        /// The token.
        id: usize,
    },
    /// A token is to be added that the file doesn't name.
    #[error("{add} is true but {key} is missing")]
    NothingToAdd {
        /// The switch's key.
        add: &'static str,
        /// The id's key.
        key: &'static str,
    },
    /// The chat template in the file is none.
    #[error("tokenizer.chat_template: {0}")]
    ChatTemplate(String),
    /// The tokenizer's own parts failed.
    #[error("can't build the tokenizer: {0}")]
    Failed(String),
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// Text, made by merging.
    Text,
    /// Text that is found in the input before anything is merged.
    UserDefined,
    /// A mark of the model's format (or the unknown token): no text.
    Control,
    /// One byte of a character that has no token.
    Byte,
}

/// The two ways in which the texts of GGUF tokens stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each character stands for a byte (GPT-2).
    ByteLevel,
    /// As is, with ▁ for a space; bytes as `<0xHH>` (`SentencePiece`).
    SentencePiece,
}

/// A [`GgufVocabulary`] whose parts agree.
#[derive(Debug)]
pub(super) struct CheckedVocabulary {
    pub(super) spelling: Spelling,
    pub(super) kinds: Vec<TokenKind>,
    pub(super) raw: GgufVocabulary,
}

impl CheckedVocabulary {
    pub(super) fn new(mut raw: GgufVocabulary) -> Result<Self, VocabularyError> {
        let spelling = match raw.model.as_str() {
            "gpt2" => Spelling::ByteLevel,
            "llama" => Spelling::SentencePiece,
            _ => return Err(VocabularyError::UnknownModel(raw.model)),
        };
        let tokens = raw.tokens.len();
        if tokens == 0 || tokens > MAX_TOKENS {
            return Err(VocabularyError::Size { found: tokens });
        }
        let total = raw.tokens.iter().map(String::len).sum();
        if total > MAX_TOTAL_BYTES {
            return Err(VocabularyError::TooManyBytes { found: total });
        }
        let scores_needed = spelling == Spelling::SentencePiece;
        check_length(
            "tokenizer.ggml.scores",
            raw.scores.len(),
            tokens,
            scores_needed,
        )?;
        check_length("tokenizer.ggml.token_type", raw.types.len(), tokens, false)?;
        if let Some(id) = raw.scores.iter().position(|score| score.is_nan()) {
            return Err(VocabularyError::Score { id });
        }
        if scores_needed {
            // What the files of this model mean when they say nothing.
            raw.bos = raw.bos.or((tokens > 1).then_some(1));
            raw.eos = raw.eos.or((tokens > 2).then_some(2));
            raw.unknown = raw.unknown.or(Some(0));
        }
        for (key, id) in [
            ("tokenizer.ggml.bos_token_id", raw.bos),
            ("tokenizer.ggml.eos_token_id", raw.eos),
            ("tokenizer.ggml.eot_token_id", raw.eot),
            ("tokenizer.ggml.unknown_token_id", raw.unknown),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= tokens) {
                return Err(VocabularyError::IdOutOfRange { key, id, tokens });
            }
        }
        check_texts(&raw.tokens)?;
        let kinds = kinds_of(&raw)?;
        Ok(Self {
            spelling,
            kinds,
            raw,
        })
    }

    /// Ids of the tokens of a kind, with their texts.
    pub(super) fn of_kind(&self, kind: TokenKind) -> impl Iterator<Item = (u32, &str)> {
        let texts = self.raw.tokens.iter().zip(&self.kinds).enumerate();
        texts.filter_map(move |(id, (text, &found))| {
            (found == kind && !text.is_empty()).then_some((id as u32, text.as_str()))
        })
    }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let well_formed = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    well_formed.then(|| u8::from_str_radix(digits, 16).ok())?
}

fn check_length(
    key: &'static str,
    found: usize,
    tokens: usize,
    needed: bool,
) -> Result<(), VocabularyError> {
    if found == tokens || (found == 0 && !needed) {
        return Ok(());
    }
    Err(VocabularyError::Length { key, found, tokens })
}

fn check_texts(tokens: &[String]) -> Result<(), VocabularyError> {
    let mut seen = HashSet::with_capacity(tokens.len());
    for (id, text) in tokens.iter().enumerate() {
        // An empty text is a gap in the ids; there may be several.
        if !text.is_empty() && !seen.insert(text.as_str()) {
            let text = text.clone();
            return Err(VocabularyError::Duplicate { id, text });
        }
    }
    Ok(())
}

fn kinds_of(raw: &GgufVocabulary) -> Result<Vec<TokenKind>, VocabularyError> {
    if raw.types.is_empty() {
        return Ok(vec![TokenKind::Text; raw.tokens.len()]);
    }
    let typed = raw.types.iter().zip(&raw.tokens).enumerate();
    typed
        .map(|(id, (&kind, text))| match kind {
            2 | 3 => Ok(TokenKind::Control),
            4 => Ok(TokenKind::UserDefined),
            6 if byte_of(text).is_none() => Err(VocabularyError::Byte {
                id,
                text: text.clone(),
            }),
            6 => Ok(TokenKind::Byte),
            _ => Ok(TokenKind::Text),
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A `SentencePiece` vocabulary of a few words.
    pub(crate) fn small_sentence_piece() -> GgufVocabulary {
        let mut vocabulary = GgufVocabulary {
            model: "llama".into(),
            bos: Some(1),
            eos: Some(2),
            unknown: Some(0),
            ..GgufVocabulary::default()
        };
        let mut add = |text: &str, score: f32, kind: i32| {
            vocabulary.tokens.push(text.into());
            vocabulary.scores.push(score);
            vocabulary.types.push(kind);
        };
        add("<unk>", 0.0, 2);
        add("<s>", 0.0, 3);
        add("</s>", 0.0, 3);
        for byte in 0..=255_u8 {
            add(&format!("<0x{byte:02X}>"), 0.0, 6);
        }
        let pieces = [
            "▁", "a", "b", "c", "▁a", "ab", "bc", "▁ab", "abc", "é", "aa",
        ];
        for (rank, text) in pieces.into_iter().enumerate() {
            add(text, -(rank as f32), 1);
        }
        add("<tag>", -1000.0, 4);
        add("\n\n", -1000.0, 4);
        add("\n", -1000.0, 4);
        vocabulary
    }

    /// A byte-level vocabulary of all bytes and a few words.
    pub(crate) fn small_byte_level() -> GgufVocabulary {
        let mut tokens: Vec<String> = vec!["<|endoftext|>".into(), "<|im_end|>".into()];
        let mut types = vec![3, 3];
        let alphabet = (0..=255).map(crate::text::token_table::byte_to_char);
        tokens.extend(alphabet.map(String::from));
        let merges = ["h e", "l l", "he ll", "hell o", "Ġ w"];
        tokens.extend(merges.map(|merge| merge.replace(' ', "")));
        types.resize(tokens.len(), 1);
        GgufVocabulary {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            tokens,
            types,
            merges: merges.map(String::from).to_vec(),
            eos: Some(0),
            ..GgufVocabulary::default()
        }
    }

    fn error(change: impl FnOnce(&mut GgufVocabulary)) -> VocabularyError {
        let mut vocabulary = small_sentence_piece();
        change(&mut vocabulary);
        CheckedVocabulary::new(vocabulary).unwrap_err()
    }

    #[test]
    fn arrays_that_disagree_in_length_are_refused() {
        let found = error(|vocabulary| vocabulary.scores.truncate(3));
        assert!(found.to_string().contains("tokenizer.ggml.scores has 3"));
        let found = error(|vocabulary| vocabulary.types.push(1));
        assert!(found.to_string().contains("tokenizer.ggml.token_type has"));
        let found = error(|vocabulary| vocabulary.tokens.clear());
        assert_eq!(found, VocabularyError::Size { found: 0 });
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_refused() {
        let found = error(|vocabulary| vocabulary.eot = Some(5_000));
        assert!(
            found.to_string().contains("eot_token_id is 5000"),
            "{found}"
        );
    }

    #[test]
    fn texts_that_come_twice_and_bytes_that_are_none_are_refused() {
        let found = error(|vocabulary| vocabulary.tokens[261] = "a".into());
        assert!(
            matches!(found, VocabularyError::Duplicate { .. }),
            "{found}"
        );
        let found = error(|vocabulary| vocabulary.tokens[3] = "<0x+1>".into());
        assert!(
            matches!(found, VocabularyError::Byte { id: 3, .. }),
            "{found}"
        );
        let found = error(|vocabulary| vocabulary.scores[7] = f32::NAN);
        assert_eq!(found, VocabularyError::Score { id: 7 });
    }

    #[test]
    fn a_model_of_another_kind_is_named() {
        let found = error(|vocabulary| vocabulary.model = "bert".into());
        assert!(found.to_string().contains("'bert'"), "{found}");
    }
}
