//! What constraints allow, on a vocabulary of single characters and a few longer tokens.

use serde_json::json;

use super::*;
use crate::text::vocabulary::{Spelling, TokenKind};

const END: u32 = 0;
const TURN_END: u32 = 1;

fn table() -> TokenTable {
    let mut table = TokenTable::new(false);
    table.push("<end>", TokenKind::Control, Spelling::SentencePiece);
    table.push("<turn>", TokenKind::Control, Spelling::SentencePiece);
    for letter in ' '..='~' {
        table.push(
            &letter.to_string(),
            TokenKind::UserDefined,
            Spelling::ByteLevel,
        );
    }
    for text in ["{\"", "yes", "no", "true", "<end", "\n", "né"] {
        table.push(text, TokenKind::UserDefined, Spelling::ByteLevel);
    }
    let too_long = "x".repeat(5000);
    table.push(&too_long, TokenKind::UserDefined, Spelling::ByteLevel);
    table
}

fn factory() -> ConstraintFactory {
    ConstraintFactory::new(&table(), &[END, TURN_END]).unwrap()
}

fn allowed(state: &mut ConstraintState) -> Vec<String> {
    let table = table();
    let mask = state.mask().unwrap().to_vec();
    assert_eq!(mask.len(), table.len().div_ceil(32));
    let ids = (0..table.len() as u32).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1);
    let texts = ids.map(|id| String::from_utf8_lossy(table.bytes(id)).into_owned());
    texts.collect()
}

fn accept(state: &mut ConstraintState, text: &str) -> Result<(), ConstraintError> {
    let table = table();
    let id = (0..table.len() as u32).find(|&id| table.bytes(id) == text.as_bytes());
    state.accept(id.unwrap())
}

/// Writes `text` a character at a time; whether it can end there.
fn accepts(constraint: &Constraint, text: &str) -> bool {
    let mut state = factory().compile(constraint).unwrap();
    for letter in text.chars() {
        let letter = letter.to_string();
        if state.is_complete() || !allowed(&mut state).contains(&letter) {
            return false;
        }
        accept(&mut state, &letter).unwrap();
    }
    allowed(&mut state).contains(&"<end>".to_owned())
}

#[test]
fn one_of_the_choices_comes_out_and_nothing_else() {
    let choices = Constraint::Choice(vec![
        "yes".into(),
        "no".into(),
        "né".into(),
        "a.b/c\n\"".into(),
    ]);
    let mut state = factory().compile(&choices).unwrap();
    assert_eq!(allowed(&mut state), ["a", "n", "y", "yes", "no", "né"]);
    accept(&mut state, "yes").unwrap();
    assert!(state.is_complete());
    assert_eq!(allowed(&mut state), ["<end>", "<turn>"]);
    state.accept(END).unwrap();
    assert!(accepts(&choices, "a.b/c\n\""));
    assert!(!accepts(&choices, "axb/c\n\""));
    assert!(!accepts(&choices, "n"));
}

#[test]
fn a_pattern_holds_for_the_whole_text() {
    let pattern = Constraint::Regex(r"[a-c]{2}/\d+".into());
    assert!(accepts(&pattern, "ab/12"));
    assert!(!accepts(&pattern, "ab/"));
    assert!(!accepts(&pattern, "abc/1"));
}

#[test]
fn json_follows_its_schema_and_local_references() {
    let schema = json!({
        "type": "object",
        "properties": {"ok": {"$ref": "#/$defs/flag"}, "size": {"enum": [1, "big"]}},
        "required": ["ok"],
        "additionalProperties": false,
        "$defs": {"flag": {"type": "boolean"}}
    });
    let schema = Constraint::JsonSchema(schema);
    assert!(accepts(&schema, r#"{"ok":true,"size":"big"}"#));
    assert!(accepts(&schema, r#"{"ok": false}"#));
    assert!(!accepts(&schema, r#"{"size":1}"#));
    assert!(!accepts(&schema, r#"{"ok":1}"#));
    assert!(accepts(
        &Constraint::JsonObject,
        r#"{"any":[1,{"thing":null}]}"#
    ));
    assert!(!accepts(&Constraint::JsonObject, "[1]"));
}

#[test]
fn a_grammar_is_followed() {
    let grammar = "start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]+/";
    let grammar = Constraint::Lark(grammar.into());
    assert!(accepts(&grammar, "1+23"));
    assert!(!accepts(&grammar, "1+"));
}

#[test]
fn text_that_reads_like_a_control_token_stays_text() {
    let mut state = factory()
        .compile(&Constraint::Choice(vec!["<end>x".into()]))
        .unwrap();
    assert_eq!(allowed(&mut state), ["<", "<end"]);
}

#[test]
fn constraints_that_make_no_sense_are_refused_with_a_reason() {
    let factory = factory();
    for constraint in [
        Constraint::Regex("(".into()),
        Constraint::Lark("start: nobody".into()),
        Constraint::Choice(vec![]),
        Constraint::Choice(vec![String::new()]),
        Constraint::JsonSchema(json!({"type": "nonsense"})),
        Constraint::JsonSchema(json!({"$ref": "https://example.com/schema"})),
    ] {
        let error = factory.compile(&constraint).unwrap_err();
        assert!(matches!(error, ConstraintError::Invalid { .. }), "{error}");
    }
}

#[test]
fn constraints_that_cost_too_much_are_refused() {
    let factory = factory();
    let long = Constraint::Regex("a".repeat(1 << 20));
    let error = factory.compile(&long).unwrap_err();
    assert!(matches!(error, ConstraintError::TooLarge { .. }), "{error}");
}

#[test]
fn a_grammar_that_grows_dearer_with_each_token_is_stopped() {
    let ambiguous = "start: s\ns: s s | \"a\" | \"a\" s \"a\" | \"\"";
    let mut state = factory()
        .compile(&Constraint::Lark(ambiguous.into()))
        .unwrap();
    let written = (0..1000).find(|_| state.mask().is_err() || accept(&mut state, "a").is_err());
    assert!(written.is_some());
    assert!(!state.is_complete());
}

#[test]
fn a_token_that_is_not_allowed_fails_its_output_only() {
    let factory = factory();
    let constraint = Constraint::Choice(vec!["yes".into()]);
    let mut state = factory.compile(&constraint).unwrap();
    let mut other = state.clone();
    assert!(accept(&mut state, "n").is_err());
    assert!(!state.is_complete());
    assert!(state.mask().is_err());
    accept(&mut other, "yes").unwrap();
    assert!(other.is_complete());
}

#[test]
fn a_model_without_an_end_cannot_be_constrained() {
    let error = ConstraintFactory::new(&table(), &[]).unwrap_err();
    assert_eq!(error, ConstraintError::NoEnd);
}
