//! Forms that callers ask an output to have: JSON schemas, regular expressions, grammars, choices;
//! and following them, token by token.

use std::sync::OnceLock;

use ferry::text::{Constraint, GenerationText};

use super::{
    bytes::{Bytes, lossy},
    detokenizer,
};

/// Tokens that are followed.
const TOKENS: usize = 24;

fn text() -> &'static GenerationText {
    static TEXT: OnceLock<GenerationText> = OnceLock::new();
    TEXT.get_or_init(|| GenerationText::from_gguf(detokenizer::vocabulary()).expect("it is sound"))
}

/// What it is, which tokens are taken of those allowed, and the constraint.
pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let kind = input.byte();
    let choices = input.take(TOKENS);
    let source = lossy(input.rest());
    let constraint = match kind % 4 {
        0 => match serde_json::from_str(&source) {
            Ok(schema) => Constraint::JsonSchema(schema),
            Err(_) => return,
        },
        1 => Constraint::Regex(source),
        2 => Constraint::Lark(source),
        _ => Constraint::Choice(source.split('\n').map(str::to_owned).collect()),
    };
    let factory = text().constraints().expect("the vocabulary has an end");
    let Ok(mut state) = factory.compile(&constraint) else {
        return;
    };
    for &choice in choices {
        if state.is_complete() {
            return;
        }
        let Ok(mask) = state.mask() else {
            return;
        };
        let allowed: Vec<u32> = (0..text().vocabulary() as u32)
            .filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1)
            .collect();
        assert!(
            !allowed.is_empty(),
            "nothing may come, and it is not complete"
        );
        let token = allowed[usize::from(choice) % allowed.len()];
        state.accept(token).expect("what is allowed is taken");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |kind: u8, source: &str| {
        let mut seed = vec![kind];
        seed.extend((0..TOKENS as u8).map(|at| at.wrapping_mul(37)));
        seed.extend(source.bytes());
        seed
    };
    vec![
        seed(
            0,
            r##"{"type":"object","properties":{"a":{"type":"array","items":{"$ref":"#/$defs/b"},"maxItems":3}},"required":["a"],"$defs":{"b":{"enum":["x",1,null]}}}"##,
        ),
        seed(
            0,
            r#"{"anyOf":[{"type":"string","pattern":"^[ab]{2,5}$"},{"type":"number","minimum":0,"maximum":9.5}]}"#,
        ),
        seed(1, "(a|b)+[^c]{2,4}\\d?"),
        seed(2, "start: \"a\" start \"b\" | WORD\nWORD: /[ab]+/\n"),
        seed(3, "ab\na\nb"),
    ]
}
