//! From a GGUF vocabulary to token ids, equal to llama.cpp's.

use std::sync::Arc;

use tokenizers::{
    Tokenizer,
    models::bpe::{BPE, Vocab},
};

use super::{
    EncodeError,
    added_tokens::{AddedTokens, Fragment},
    pre_tokenizer::WordSplit,
    sentence_piece::SentencePiece,
    token_table::TokenTable,
    vocabulary::{CheckedVocabulary, GgufVocabulary, Spelling, VocabularyError},
};

/// Words whose tokens each thread remembers.
const REMEMBERED_WORDS: usize = 10_000;

/// The tokenizer of a GGUF file.
#[derive(Debug)]
pub(super) struct GgufTokenizer {
    merging: Merging,
    /// Every token that is found before merging, and those of them that are no control tokens.
    all_added: AddedTokens,
    plain_added: AddedTokens,
    add_space_prefix: bool,
    bos: Option<u32>,
    eos: Option<u32>,
}

#[derive(Debug)]
enum Merging {
    ByteLevel(Box<Tokenizer>),
    SentencePiece(SentencePiece),
}

impl GgufTokenizer {
    /// Builds it, with the bytes of its tokens.
    pub(super) fn new(
        vocabulary: &CheckedVocabulary,
    ) -> Result<(Self, Arc<TokenTable>), VocabularyError> {
        let raw = &vocabulary.raw;
        let pieces = vocabulary.spelling == Spelling::SentencePiece;
        // Byte-level models write the space before a word in the word, and no prefix is asked of
        // them, whatever the file says.
        let add_space_prefix = pieces && raw.add_space_prefix.unwrap_or(true);
        let table = Arc::new(TokenTable::of_vocabulary(vocabulary, add_space_prefix));
        let (merging, add_bos) = if pieces {
            let merging = SentencePiece::new(vocabulary, Arc::clone(&table))?;
            (Merging::SentencePiece(merging), true)
        } else {
            let words = WordSplit::named(raw.pre.as_deref())?;
            let merging = Merging::ByteLevel(Box::new(byte_level(raw, words)?));
            (merging, words.add_bos)
        };
        let tokenizer = Self {
            merging,
            all_added: AddedTokens::of_vocabulary(vocabulary, true)?,
            plain_added: AddedTokens::of_vocabulary(vocabulary, false)?,
            add_space_prefix,
            bos: added(
                raw.add_bos,
                add_bos,
                raw.bos,
                "tokenizer.ggml.add_bos_token",
                "tokenizer.ggml.bos_token_id",
            )?,
            eos: added(
                raw.add_eos,
                false,
                raw.eos,
                "tokenizer.ggml.add_eos_token",
                "tokenizer.ggml.eos_token_id",
            )?,
        };
        Ok((tokenizer, table))
    }

    /// The token that begins every text, if the model wants one.
    pub(super) fn added_bos(&self) -> Option<u32> {
        self.bos
    }

    /// Tokenizes `text`. `add_special` puts BOS and EOS around it where the model wants them,
    /// `parse_special` finds control tokens in it.
    pub(super) fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.bos.filter(|_| add_special));
        let added = if parse_special {
            &self.all_added
        } else {
            &self.plain_added
        };
        let mut after_token = true;
        for fragment in added.split(text) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => self.merge(text, after_token, &mut ids)?,
            }
            after_token = matches!(fragment, Fragment::Token(_));
        }
        ids.extend(self.eos.filter(|_| add_special));
        Ok(ids)
    }

    fn merge(&self, text: &str, after_token: bool, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        match &self.merging {
            Merging::SentencePiece(pieces) if self.add_space_prefix && after_token => {
                pieces.encode(&format!(" {text}"), ids);
            }
            Merging::SentencePiece(pieces) => pieces.encode(text, ids),
            Merging::ByteLevel(tokenizer) => {
                let encoding = tokenizer.encode_fast(text, false);
                let encoding = encoding.map_err(|error| EncodeError::Failed(error.to_string()))?;
                ids.extend_from_slice(encoding.get_ids());
            }
        }
        Ok(())
    }
}

fn added(
    said: Option<bool>,
    default: bool,
    id: Option<u32>,
    add: &'static str,
    key: &'static str,
) -> Result<Option<u32>, VocabularyError> {
    match (said, id) {
        (Some(true), None) => Err(VocabularyError::NothingToAdd { add, key }),
        (Some(wanted), id) => Ok(id.filter(|_| wanted)),
        (None, id) => Ok(id.filter(|_| default)),
    }
}

fn byte_level(raw: &GgufVocabulary, words: WordSplit) -> Result<Tokenizer, VocabularyError> {
    let texts = raw.tokens.iter().zip(0..);
    let vocabulary: Vocab = texts
        .filter(|(text, _)| !text.is_empty())
        .map(|(text, id)| (text.clone(), id))
        .collect();
    let mut merges = Vec::with_capacity(raw.merges.len());
    for (index, merge) in raw.merges.iter().enumerate() {
        merges.push(parts_of(index, merge, &vocabulary)?);
    }
    let failed = |error: tokenizers::Error| VocabularyError::Failed(error.to_string());
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(words.whole_words)
        .cache_capacity(REMEMBERED_WORDS)
        .build()
        .map_err(failed)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(words.pre_tokenizer()?));
    Ok(tokenizer)
}

/// The two tokens that a merge joins.
fn parts_of(
    index: usize,
    merge: &str,
    vocabulary: &Vocab,
) -> Result<(String, String), VocabularyError> {
    let missing = |missing: &str| VocabularyError::Merge {
        index,
        merge: merge.into(),
        missing: missing.into(),
    };
    // Byte-level tokens have no spaces: they write them as Ġ.
    let (left, right) = merge.split_once(' ').ok_or_else(|| missing(""))?;
    let joined = format!("{left}{right}");
    for part in [left, right, &joined] {
        if !vocabulary.contains_key(part) {
            return Err(missing(part));
        }
    }
    Ok((left.into(), right.into()))
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::tests::{small_byte_level, small_sentence_piece};
    use super::*;

    fn tokenizer(vocabulary: GgufVocabulary) -> (GgufTokenizer, Arc<TokenTable>) {
        GgufTokenizer::new(&CheckedVocabulary::new(vocabulary).unwrap()).unwrap()
    }

    fn pieces(vocabulary: &GgufVocabulary, text: &str, special: bool) -> Vec<String> {
        let (tokenizer, _) = tokenizer(vocabulary.clone());
        let ids = tokenizer.encode(text, special, special).unwrap();
        let texts = ids.iter().map(|&id| &vocabulary.tokens[id as usize]);
        texts.cloned().collect()
    }

    #[test]
    fn byte_level_merges_follow_their_ranks() {
        let vocabulary = small_byte_level();
        assert_eq!(
            pieces(&vocabulary, "hello wé", false),
            ["hello", "Ġw", "Ã", "©"]
        );
        assert_eq!(
            pieces(&vocabulary, "<|im_end|>h", true),
            ["<|im_end|>", "h"]
        );
        assert_eq!(pieces(&vocabulary, "<|im_end|>", false).len(), 10);
    }

    #[test]
    fn the_beginning_of_each_text_after_a_token_gets_its_space() {
        let mut vocabulary = small_sentence_piece();
        assert_eq!(
            pieces(&vocabulary, "a</s>a<tag>a", true),
            ["<s>", "▁a", "</s>", "▁a", "<tag>", "▁a"]
        );
        vocabulary.add_space_prefix = Some(false);
        vocabulary.add_bos = Some(false);
        vocabulary.add_eos = Some(true);
        assert_eq!(pieces(&vocabulary, "a", true), ["a", "</s>"]);
    }

    #[test]
    fn merges_of_parts_that_are_no_tokens_are_refused() {
        for merge in ["he zz", "hello", "w w"] {
            let mut vocabulary = small_byte_level();
            vocabulary.merges.push(merge.into());
            let checked = CheckedVocabulary::new(vocabulary).unwrap();
            let error = GgufTokenizer::new(&checked).unwrap_err();
            assert!(
                matches!(error, VocabularyError::Merge { index: 5, .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn bos_that_is_to_be_added_must_be_there() {
        let mut vocabulary = small_byte_level();
        vocabulary.add_bos = Some(true);
        let checked = CheckedVocabulary::new(vocabulary).unwrap();
        let error = GgufTokenizer::new(&checked).unwrap_err();
        assert!(error.to_string().contains("bos_token_id"), "{error}");
    }
}
