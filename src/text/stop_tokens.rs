//! Which tokens end a generation, beyond the one or two that a model's files name: many files name
//! the end of a text only, while their chats end with the end of a turn.

use super::token_table::TokenTable;

/// Control tokens by which models end a turn, a message, or a text.
const NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "</s>",
    "<end_of_utterance>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
    // Where code models go on to the next file or repository.
    "<|fim_pad|>",
    "<|repo_name|>",
    "<reponame>",
    "<|file_sep|>",
];

/// The tokens in `named`, and the control tokens that are known to end generations; ascending.
pub(super) fn stop_tokens(table: &TokenTable, named: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut ids: Vec<u32> = named.filter(|&id| (id as usize) < table.len()).collect();
    let named_first = ids.len();
    let control = (0..table.len() as u32).filter(|&id| table.is_control(id));
    let texts = NAMES.iter().map(|name| name.as_bytes());
    ids.extend(control.filter(|&id| texts.clone().any(|name| name == table.bytes(id))));
    // In the Harmony format a message ends with <|end|>, the answer with <|return|> or <|call|>.
    let has = |ids: &[u32], name: &[u8]| ids.iter().any(|&id| table.bytes(id) == name);
    if has(&ids, b"<|return|>") && has(&ids, b"<|call|>") {
        let mut place = 0;
        ids.retain(|&id| {
            place += 1;
            place <= named_first || table.bytes(id) != b"<|end|>"
        });
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::{Spelling, TokenKind};
    use super::*;

    fn table(texts: &[&str]) -> TokenTable {
        let mut table = TokenTable::new(false);
        for text in texts {
            table.push(text, TokenKind::Control, Spelling::ByteLevel);
        }
        table
    }

    #[test]
    fn known_ends_are_added_to_the_named_ones() {
        let table = table(&["<bos>", "<eos>", "<end_of_turn>", "<mine>"]);
        assert_eq!(stop_tokens(&table, [3, 1, 99].into_iter()), [1, 2, 3]);
    }

    #[test]
    fn an_end_that_is_text_is_no_end() {
        let mut table = table(&["<eos>"]);
        table.push("</s>", TokenKind::UserDefined, Spelling::SentencePiece);
        assert_eq!(stop_tokens(&table, std::iter::empty()), [0]);
    }

    #[test]
    fn a_message_of_several_in_one_answer_does_not_end_it() {
        let table = table(&["<|end|>", "<|return|>", "<|call|>"]);
        assert_eq!(stop_tokens(&table, std::iter::empty()), [1, 2]);
    }
}
