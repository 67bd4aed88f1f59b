//! Text from tokens, one at a time, against decoding all their bytes at once.

use std::sync::OnceLock;

use ferry::text::{GenerationText, GgufVocabulary, SpecialTokens};

use super::bytes::Bytes;

/// All bytes, some pieces that hold characters' parts, and control tokens.
fn text() -> &'static GenerationText {
    static TEXT: OnceLock<GenerationText> = OnceLock::new();
    TEXT.get_or_init(|| GenerationText::from_gguf(vocabulary()).expect("it is sound"))
}

/// A `SentencePiece` vocabulary of all bytes and a few words.
pub fn vocabulary() -> GgufVocabulary {
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
        "▁", "a", "b", "▁a", "ab", "▁ab", "é", "日本", "🦀", "{", "\"", "}",
    ];
    for (rank, piece) in pieces.into_iter().enumerate() {
        add(piece, -(rank as f32), 1);
    }
    add("<tag>", -1000.0, 4);
    vocabulary
}

/// A byte of settings, then two bytes a token.
pub fn run(input: &[u8]) {
    let text = text();
    let mut input = Bytes::new(input);
    let shown = if input.coin() {
        SpecialTokens::Show
    } else {
        SpecialTokens::Skip
    };
    let mut detokenizer = text.detokenizer(shown);
    let (mut bytes, mut pieces) = (Vec::new(), String::new());
    while !input.is_empty() {
        // Some ids are beyond the vocabulary.
        let id = input.below(text.vocabulary() + 8) as u32;
        if shown == SpecialTokens::Show || !text.is_special(id) {
            bytes.extend_from_slice(text.token_bytes(id));
        }
        pieces.push_str(&detokenizer.push(id));
        assert!(pieces.len() <= 3 * bytes.len(), "more than was there");
    }
    pieces.push_str(&detokenizer.finish());
    assert_eq!(pieces, String::from_utf8_lossy(&bytes));
    assert_eq!(detokenizer.finish(), "");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let input = |shown: u8, ids: &[u16]| {
        let mut input = vec![shown];
        input.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        input
    };
    let crab = "🦀 é".bytes().map(|byte| u16::from(byte) + 3);
    vec![
        input(0, &crab.collect::<Vec<_>>()),
        input(1, &[1, 262, 266, 267, 2]),
        input(0, &[0xF3, 0xA2, 0xFF, 0xC6, 260, 0x80]),
    ]
}
