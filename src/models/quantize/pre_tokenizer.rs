//! How a byte-level BPE tokenizer splits a text into words, by the name that llama.cpp has for it.
//!
//! llama.cpp's converter knows published tokenizers by a hash of what they make of a text; here the
//! splits themselves are compared, which tells new vocabularies with known splits, too.

use serde_json::Value as Json;

/// The patterns of `Split` steps and the names of the ways that they are. Case-insensitive groups
/// are written as in the files.
const PATTERNS: [(&str, &str); 7] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen35",
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "tekken",
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "gpt-4o",
    ),
    (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
];

/// The name of a tokenizer's splits.
///
/// # Errors
/// If llama.cpp has none for them, as far as is known here.
pub(super) fn pre_tokenizer_name(pre_tokenizer: &Json) -> Result<&'static str, String> {
    let steps: Vec<&Json> = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![pre_tokenizer],
    };
    let by_words = |step: &Json| step["type"] == "ByteLevel" && step["use_regex"] != false;
    let bytes_only = |step: &Json| step["type"] == "ByteLevel" && step["use_regex"] == false;
    let found = match steps.as_slice() {
        [step] if by_words(step) => Some("gpt-2"),
        [digits, step] if digits["type"] == "Digits" && by_words(step) => {
            (digits["individual_digits"] == true).then_some("smollm")
        }
        [split, step] if split["type"] == "Split" && bytes_only(step) => {
            let pattern = split["pattern"]["Regex"].as_str();
            let known = PATTERNS.iter().find(|(known, _)| Some(*known) == pattern);
            known.map(|(_, name)| *name)
        }
        _ => None,
    };
    found.ok_or_else(|| format!("llama.cpp has no name for its pre-tokenizer {pre_tokenizer}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn splits_are_known_by_what_they_do() {
        let words = json!({"type": "ByteLevel", "use_regex": true});
        let bytes = json!({"type": "ByteLevel", "use_regex": false});
        let sequence = |steps: Json| json!({"type": "Sequence", "pretokenizers": steps});
        let digits = |individual: bool| json!({"type": "Digits", "individual_digits": individual});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}});
        assert_eq!(pre_tokenizer_name(&words), Ok("gpt-2"));
        assert_eq!(
            pre_tokenizer_name(&sequence(json!([digits(true), words]))),
            Ok("smollm")
        );
        for (pattern, name) in PATTERNS {
            assert_eq!(
                pre_tokenizer_name(&sequence(json!([split(pattern), bytes]))),
                Ok(name)
            );
        }
        for unknown in [
            sequence(json!([digits(false), words])),
            sequence(json!([split("x+"), bytes])),
            bytes.clone(),
            Json::Null,
        ] {
            assert!(pre_tokenizer_name(&unknown).is_err(), "{unknown}");
        }
    }
}
