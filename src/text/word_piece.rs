//! A `WordPiece` tokenizer from the vocabulary of a GGUF file, as llama.cpp's converter writes BERT's:
//! words begin with ▁, their continuations with nothing, marks of the format stand as they are.

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};
use tokenizers::Tokenizer;

use super::{GgufVocabulary, VocabularyError, token_table::SPACE_MARK};

/// What the files of this model mean when they say nothing: BERT's own numbers.
const CLS: u32 = 101;
const SEP: u32 = 102;
const UNKNOWN: u32 = 100;
/// The type of a token that is a mark of the format.
const CONTROL: i32 = 3;

/// Builds the tokenizer. `[CLS] text [SEP]`, or `[CLS] text [SEP] text [SEP]` with the second text
/// as segment 1.
pub(super) fn word_pieces(
    vocabulary: &GgufVocabulary,
    separator: Option<u32>,
    lowercase: bool,
) -> Result<Tokenizer, VocabularyError> {
    if vocabulary.model != "bert" {
        return Err(VocabularyError::NoEncoder(vocabulary.model.clone()));
    }
    let tokens = vocabulary.tokens.len();
    let at = |key, id: u32| match vocabulary.tokens.get(id as usize) {
        Some(token) => Ok((id, token.as_str())),
        None => Err(VocabularyError::IdOutOfRange { key, id, tokens }),
    };
    let (cls_id, cls) = at("tokenizer.ggml.bos_token_id", vocabulary.bos.unwrap_or(CLS))?;
    let separator = separator.or(vocabulary.eos).unwrap_or(SEP);
    let (sep_id, sep) = at("tokenizer.ggml.seperator_token_id", separator)?;
    let unknown = vocabulary.unknown.unwrap_or(UNKNOWN);
    let (_, unknown) = at("tokenizer.ggml.unknown_token_id", unknown)?;

    let mut pieces = Map::new();
    let mut added = Vec::new();
    let mut seen = HashSet::with_capacity(tokens);
    for (id, text) in vocabulary.tokens.iter().enumerate() {
        let is_mark = vocabulary.types.get(id) == Some(&CONTROL)
            || [cls, sep, unknown].contains(&text.as_str());
        let piece = match text.strip_prefix(SPACE_MARK) {
            _ if is_mark => text.clone(),
            Some(word) => word.to_owned(),
            None => format!("##{text}"),
        };
        if !seen.insert(piece.clone()) {
            return Err(VocabularyError::Duplicate { id, text: piece });
        }
        if is_mark {
            added.push(json!({
                "id": id, "content": piece, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            }));
        }
        pieces.insert(piece, id.into());
    }
    let special =
        |token: &str, segment: u32| json!({"SpecialToken": {"id": token, "type_id": segment}});
    let text = |name: &str, segment: u32| json!({"Sequence": {"id": name, "type_id": segment}});
    let mark = |token: &str, id: u32| json!({"id": token, "ids": [id], "tokens": [token]});
    let marks: Map<String, Json> = [
        (cls.to_owned(), mark(cls, cls_id)),
        (sep.to_owned(), mark(sep, sep_id)),
    ]
    .into_iter()
    .collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(cls, 0), text("A", 0), special(sep, 0)],
            "pair": [special(cls, 0), text("A", 0), special(sep, 0), text("B", 1), special(sep, 1)],
            "special_tokens": marks,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": pieces,
        },
    });
    Tokenizer::from_bytes(tokenizer.to_string())
        .map_err(|error| VocabularyError::Failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary() -> GgufVocabulary {
        let tokens = [
            "[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁ferr", "y", "▁the", "▁.",
        ];
        GgufVocabulary {
            model: "bert".into(),
            tokens: tokens.map(String::from).to_vec(),
            types: vec![3, 3, 3, 3, 1, 1, 1, 1],
            bos: Some(2),
            unknown: Some(1),
            ..GgufVocabulary::default()
        }
    }

    #[test]
    fn words_continuations_and_marks_are_told_apart() {
        let tokenizer = word_pieces(&vocabulary(), Some(3), true).unwrap();
        let encoding = tokenizer.encode("The ferry. Qx", true).unwrap();
        assert_eq!(encoding.get_ids(), [2, 6, 4, 5, 7, 1, 3]);
        let pair = tokenizer.encode(("the", "ferry"), true).unwrap();
        assert_eq!(pair.get_ids(), [2, 6, 3, 4, 5, 3]);
        assert_eq!(pair.get_type_ids(), [0, 0, 0, 1, 1, 1]);
        let cased = word_pieces(&vocabulary(), Some(3), false).unwrap();
        assert_eq!(cased.encode("The", false).unwrap().get_ids(), [1]);
    }

    #[test]
    fn vocabularies_that_contradict_themselves_are_refused() {
        let error = |change: &dyn Fn(&mut GgufVocabulary)| {
            let mut vocabulary = vocabulary();
            change(&mut vocabulary);
            word_pieces(&vocabulary, Some(3), true).unwrap_err()
        };
        let found = error(&|vocabulary| vocabulary.model = "gpt2".into());
        assert!(found.to_string().contains("gpt2"), "{found}");
        let found = error(&|vocabulary| vocabulary.bos = None);
        assert!(found.to_string().contains("101"), "{found}");
        let found = error(&|vocabulary| vocabulary.tokens[5] = "▁the".into());
        assert!(
            matches!(found, VocabularyError::Duplicate { .. }),
            "{found}"
        );
    }
}
