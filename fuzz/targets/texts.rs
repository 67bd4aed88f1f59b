//! Hostile texts for tokenizers, and tokenizers that are hostile themselves.

use std::sync::OnceLock;

use ferry::{
    config::Truncation,
    text::{
        EncodeOptions, EncoderLimits, GenerationText, GgufVocabulary, RowInput, SpecialTokens,
        TextEncoder,
    },
};

use super::{
    bytes::{Bytes, lossy},
    detokenizer,
    fixtures::{fixture, read, with_file},
};

const ENCODERS: [&str; 3] = [
    "tiny-bert-embed",
    "tiny-roberta-embed",
    "tiny-xlm-roberta-embed",
];
const LIMITS: EncoderLimits = EncoderLimits {
    vocabulary: 1 << 20,
    segments: true,
    max_tokens: 64,
    truncation: Truncation::Right,
};

struct Texts {
    encoders: Vec<TextEncoder>,
    decoders: Vec<GenerationText>,
}

fn all() -> &'static Texts {
    static TEXTS: OnceLock<Texts> = OnceLock::new();
    TEXTS.get_or_init(|| Texts {
        encoders: ENCODERS
            .map(|model| TextEncoder::load(&fixture(model), LIMITS).expect(model))
            .into(),
        decoders: vec![
            GenerationText::from_gguf(byte_level()).expect("it is sound"),
            GenerationText::from_gguf(detokenizer::vocabulary()).expect("it is sound"),
            GenerationText::load(&fixture("decoders/llama")).expect("it is sound"),
        ],
    })
}

/// A byte-level vocabulary of all bytes and a few words.
fn byte_level() -> GgufVocabulary {
    let mut tokens: Vec<String> = vec!["<|endoftext|>".into(), "<|im_end|>".into()];
    let mut types = vec![3, 3];
    // GPT-2's letters for bytes: those that can be printed are themselves, others from 256 on.
    let mut beyond = 256;
    for byte in 0..=255_u32 {
        let printed = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let letter = if printed {
            byte
        } else {
            beyond += 1;
            beyond - 1
        };
        tokens.extend(char::from_u32(letter).map(String::from));
    }
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

/// Which tokenizer, and a text; with a zero byte in it, a pair.
pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let which = input.below(6);
    let text = lossy(input.rest());
    if which < 3 {
        encode(&all().encoders[which], &text);
    } else {
        generate(&all().decoders[which - 3], &text, which == 3);
    }
}

fn encode(encoder: &TextEncoder, text: &str) {
    let options = EncodeOptions {
        offsets: true,
        ..EncodeOptions::default()
    };
    if let Ok(row) = encoder.encode_bare(text) {
        for &(start, end) in &row.offsets {
            // Spans are cut out of texts by these.
            assert!(text.get(start as usize..end as usize).is_some(), "{text:?}");
        }
    }
    let input = match text.split_once('\0') {
        Some((query, document)) => RowInput::Pair(query.to_owned(), document.to_owned()),
        None => RowInput::Text(text.to_owned()),
    };
    let row = encoder.encode(&input, options).expect("it may be cut");
    assert!(row.ids.len() <= LIMITS.max_tokens && row.type_ids.len() == row.ids.len());
    assert!(row.offsets.len() == row.ids.len() && row.words.len() == row.ids.len());
}

fn generate(text: &GenerationText, prompt: &str, is_exact: bool) {
    let ids = text.encode(prompt, false).expect("any text has tokens");
    assert!(ids.iter().all(|&id| (id as usize) < text.vocabulary()));
    let back = text.decode(&ids, SpecialTokens::Show);
    let plain = text
        .encode_plain(prompt, false)
        .expect("any text has tokens");
    assert!(plain.iter().all(|&id| !text.is_special(id)), "{prompt:?}");
    if is_exact {
        assert_eq!(back, prompt);
        assert_eq!(text.decode(&plain, SpecialTokens::Show), prompt);
    }
}

/// A `tokenizer.json`, as an encoder's and as a decoder's.
pub fn run_json(input: &[u8]) {
    let folder = with_file("decoders/llama", "tokenizer.json", input);
    if let Ok(text) = GenerationText::load(folder.path()) {
        let ids = text.encode("Hello, ferry! \u{1f980}", true);
        let _ = ids.map(|ids| text.decode(&ids, SpecialTokens::Skip));
    }
    if let Ok(encoder) = TextEncoder::load(folder.path(), LIMITS) {
        let row = RowInput::Pair("Hello".to_owned(), "ferry! \u{1f980}".to_owned());
        let _ = encoder.encode(&row, EncodeOptions::default());
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "The ferry leaves at 9:15, or when it is full.",
        "a\0b",
        "e\u{301}e\u{301}\u{301}\u{200d}\u{202e}\u{feff}",
        "日本語🦀 <|im_end|></s>[SEP]<s> ▁Ġ",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ];
    let seed = |which: u16, text: &str| [&which.to_be_bytes(), text.as_bytes()].concat();
    let all = (0..6).flat_map(|which| texts.map(|text| seed(which, text)));
    all.collect()
}

pub fn json_seeds() -> Vec<Vec<u8>> {
    let models = ENCODERS.into_iter().chain(["decoders/llama"]);
    models
        .map(|model| read(&format!("tests/fixtures/{model}/tokenizer.json")))
        .collect()
}
