//! From token ids to text, a token at a time: what goes out is whole characters only, and all
//! pieces together are what decoding everything at once would give.

use std::sync::Arc;

use super::token_table::TokenTable;

/// Whether control tokens, such as `<|im_end|>`, are shown in the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are left out.
    #[default]
    Skip,
    /// They are shown.
    Show,
}

/// What is left of one sequence's text between its tokens. Costs time in the bytes of each token
/// only.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    table: Arc<TokenTable>,
    shown: SpecialTokens,
    /// Whether the next byte is a text's first, of which a space is taken off.
    at_start: bool,
    /// A character's first bytes, while the rest hasn't come: at most 3.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// For a sequence that begins a text, or goes on where a prompt ended.
    pub(super) fn new(table: Arc<TokenTable>, shown: SpecialTokens, begins_text: bool) -> Self {
        let at_start = begins_text && table.strips_first_space;
        Self {
            table,
            shown,
            at_start,
            pending: Vec::new(),
        }
    }

    /// The text that is complete with this token; often empty, and always for ids beyond the
    /// vocabulary. Bytes that can't become UTF-8 any more are U+FFFD.
    pub fn push(&mut self, token: u32) -> String {
        if self.shown == SpecialTokens::Skip && self.table.is_control(token) {
            return String::new();
        }
        let mut bytes = self.table.bytes(token);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        // The usual case: nothing waits, and the token is whole characters.
        if self.pending.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            return text.to_owned();
        }
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }

    /// The rest: U+FFFD if the last character never became complete.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.pending[done..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    done = self.pending.len();
                    break;
                }
                Err(error) => {
                    let invalid = done + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[done..invalid]));
                    done = invalid;
                    let Some(length) = error.error_len() else {
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += length;
                }
            }
        }
        self.pending.drain(..done);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::{Spelling, TokenKind};
    use super::*;
    use proptest::prelude::*;

    fn table(strips_first_space: bool) -> Arc<TokenTable> {
        let mut table = TokenTable::new(strips_first_space);
        for byte in 0..=255_u8 {
            table.push(
                &format!("<0x{byte:02X}>"),
                TokenKind::Byte,
                Spelling::SentencePiece,
            );
        }
        for text in ["▁Hello", "é", "日本", "▁", "🦀🦀", "", "x"] {
            table.push(text, TokenKind::Text, Spelling::SentencePiece);
        }
        table.push("<end>", TokenKind::Control, Spelling::SentencePiece);
        Arc::new(table)
    }

    const HELLO: u32 = 256;
    const END: u32 = 263;

    fn pieces(detokenizer: &mut Detokenizer, tokens: &[u32]) -> Vec<String> {
        tokens
            .iter()
            .map(|&token| detokenizer.push(token))
            .collect()
    }

    #[test]
    fn a_character_goes_out_with_its_last_byte() {
        let mut detokenizer = Detokenizer::new(table(false), SpecialTokens::Skip, true);
        let crab = "🦀".as_bytes().iter().map(|&byte| u32::from(byte));
        let crab: Vec<_> = crab.collect();
        assert_eq!(pieces(&mut detokenizer, &crab), ["", "", "", "🦀"]);
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn bytes_that_cannot_become_a_character_are_replaced_at_once_or_at_the_end() {
        let mut detokenizer = Detokenizer::new(table(false), SpecialTokens::Skip, true);
        assert_eq!(
            pieces(&mut detokenizer, &[0xff, 0xf0, 0x9f, 262, 0xe6]),
            ["\u{fffd}", "", "", "\u{fffd}x", ""]
        );
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn the_first_space_is_taken_off_at_the_beginning_of_a_text_only() {
        let mut whole = Detokenizer::new(table(true), SpecialTokens::Skip, true);
        assert_eq!(
            pieces(&mut whole, &[END, HELLO, HELLO]),
            ["", "Hello", " Hello"]
        );
        let mut rest = Detokenizer::new(table(true), SpecialTokens::Skip, false);
        assert_eq!(rest.push(HELLO), " Hello");
        let mut unprefixed = Detokenizer::new(table(false), SpecialTokens::Skip, true);
        assert_eq!(unprefixed.push(HELLO), " Hello");
    }

    #[test]
    fn control_tokens_are_shown_only_when_asked_for() {
        let mut hidden = Detokenizer::new(table(false), SpecialTokens::Skip, true);
        assert_eq!(hidden.push(END), "");
        let mut shown = Detokenizer::new(table(false), SpecialTokens::Show, true);
        assert_eq!(shown.push(END), "<end>");
    }

    proptest! {
        #[test]
        fn the_pieces_together_are_the_text_decoded_at_once(
            tokens in prop::collection::vec(0_u32..270, 0..40),
            strips_first_space: bool,
            shown: bool,
        ) {
            let table = table(strips_first_space);
            let shown = if shown { SpecialTokens::Show } else { SpecialTokens::Skip };
            let mut bytes = Vec::new();
            for &token in &tokens {
                if shown == SpecialTokens::Show || !table.is_control(token) {
                    bytes.extend_from_slice(table.bytes(token));
                }
            }
            if strips_first_space && bytes.first() == Some(&b' ') {
                bytes.remove(0);
            }
            let mut detokenizer = Detokenizer::new(table, shown, true);
            let mut text = pieces(&mut detokenizer, &tokens).concat();
            prop_assert!(detokenizer.pending.len() <= 3);
            text += &detokenizer.finish();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
