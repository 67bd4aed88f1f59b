//! What bytes each token stands for, in one block of memory.
//!
//! Text is put together from bytes, not from token texts: one token may hold half a character.

use super::vocabulary::{CheckedVocabulary, Spelling, TokenKind, byte_of};

/// How `SentencePiece` writes a space.
pub(super) const SPACE_MARK: char = '▁';

/// The bytes of each token of a vocabulary.
#[derive(Debug, Default)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// `starts[id]..starts[id + 1]` of `bytes`.
    starts: Vec<u32>,
    kinds: Vec<TokenKind>,
    /// Whether encoding puts a space before a text, to be taken off again.
    pub(super) strips_first_space: bool,
}

impl TokenTable {
    pub(super) fn new(strips_first_space: bool) -> Self {
        Self {
            starts: vec![0],
            strips_first_space,
            ..Self::default()
        }
    }

    pub(super) fn of_vocabulary(vocabulary: &CheckedVocabulary, strips_first_space: bool) -> Self {
        let mut table = Self::new(strips_first_space);
        let texts = vocabulary.raw.tokens.iter().zip(&vocabulary.kinds);
        for (text, &kind) in texts {
            table.push(text, kind, vocabulary.spelling);
        }
        table
    }

    /// Adds the next token. The caller bounds the bytes of all texts to less than 4 GiB.
    pub(super) fn push(&mut self, text: &str, kind: TokenKind, spelling: Spelling) {
        match (kind, spelling) {
            (TokenKind::Control, _) | (TokenKind::UserDefined, Spelling::ByteLevel) => {
                self.bytes.extend_from_slice(text.as_bytes());
            }
            (TokenKind::Byte, _) => self.bytes.extend(byte_of(text)),
            (TokenKind::Text, Spelling::ByteLevel) => {
                for letter in text.chars() {
                    push_byte_of(letter, &mut self.bytes);
                }
            }
            (TokenKind::Text | TokenKind::UserDefined, Spelling::SentencePiece) => {
                for (nth, part) in text.split(SPACE_MARK).enumerate() {
                    if nth > 0 {
                        self.bytes.push(b' ');
                    }
                    self.bytes.extend_from_slice(part.as_bytes());
                }
            }
        }
        self.starts.push(self.bytes.len() as u32);
        self.kinds.push(kind);
    }

    /// The number of tokens.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The bytes of a token; none for an id beyond the vocabulary.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// Whether a token is a mark of the model's format, not text.
    pub(super) fn is_control(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&TokenKind::Control)
    }
}

/// The character by which GPT-2's vocabularies write a byte: itself where it prints, else the next
/// free one from U+0100.
#[cfg(test)]
pub(super) fn byte_to_char(byte: u8) -> char {
    let point = match byte {
        0..=0x20 => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x121 + u32::from(byte - 0x7f),
        0xad => 0x143,
        _ => u32::from(byte),
    };
    char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that a character of a byte-level vocabulary stands for. A character that stands for
/// none, which only a broken file has, is taken as it is.
fn push_byte_of(letter: char, bytes: &mut Vec<u8>) {
    let point = u32::from(letter);
    let byte = match point {
        0x100..=0x120 => point - 0x100,
        0x121..=0x142 => point - 0x121 + 0x7f,
        0x143 => 0xad,
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => point,
        _ => {
            bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            return;
        }
    };
    bytes.push(byte as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn every_byte_has_a_character_and_comes_back_from_it() {
        let alphabet = ByteLevel::alphabet();
        for byte in 0..=255 {
            let letter = byte_to_char(byte);
            assert!(alphabet.contains(&letter), "{byte}");
            let mut bytes = Vec::new();
            push_byte_of(letter, &mut bytes);
            assert_eq!(bytes, [byte]);
        }
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
    }

    #[test]
    fn tokens_are_spelt_as_bytes() {
        let mut table = TokenTable::new(false);
        table.push("▁a▁", TokenKind::Text, Spelling::SentencePiece);
        table.push("<0xE2>", TokenKind::Byte, Spelling::SentencePiece);
        table.push("▁", TokenKind::UserDefined, Spelling::ByteLevel);
        table.push("Ġé", TokenKind::Text, Spelling::ByteLevel);
        table.push("<end>", TokenKind::Control, Spelling::ByteLevel);
        assert_eq!(table.len(), 5);
        assert_eq!(table.bytes(0), b" a ");
        assert_eq!(table.bytes(1), b"\xe2");
        assert_eq!(table.bytes(2), "▁".as_bytes());
        assert_eq!(table.bytes(3), b" \xe9");
        assert_eq!(table.bytes(4), b"<end>");
        assert_eq!(table.bytes(5), b"");
        assert_eq!(table.bytes(u32::MAX), b"");
        assert!(table.is_control(4) && !table.is_control(2));
    }
}
