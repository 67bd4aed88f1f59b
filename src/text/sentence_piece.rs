//! `SentencePiece`'s BPE by scores: of all neighbours that make a token together, those whose token
//! scores highest are joined first, the leftmost of equals.
//!
//! Joined straight from the vocabulary, so that no table of merges has to be made of it: a
//! vocabulary of 262 k tokens has half a million.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    hash::{BuildHasher, RandomState},
    ops::Range,
    sync::Arc,
};

use super::{
    token_table::{SPACE_MARK, TokenTable},
    vocabulary::{CheckedVocabulary, TokenKind, VocabularyError},
};

/// A vocabulary that tokenizes text.
#[derive(Debug)]
pub(super) struct SentencePiece {
    table: Arc<TokenTable>,
    pieces: PieceIndex,
    scores: Vec<f32>,
    byte_tokens: Vec<Option<u32>>,
    unknown: Option<u32>,
}

impl SentencePiece {
    pub(super) fn new(
        vocabulary: &CheckedVocabulary,
        table: Arc<TokenTable>,
    ) -> Result<Self, VocabularyError> {
        let mut byte_tokens = vec![None; 256];
        for (id, text) in vocabulary.of_kind(TokenKind::Byte) {
            if let Some(byte) = super::vocabulary::byte_of(text) {
                byte_tokens[byte as usize] = Some(id);
            }
        }
        if byte_tokens.contains(&None) && vocabulary.raw.unknown.is_none() {
            return Err(VocabularyError::Failed(
                "characters that are no token need byte tokens or an unknown token".into(),
            ));
        }
        Ok(Self {
            pieces: PieceIndex::new(vocabulary, &table),
            table,
            scores: vocabulary.raw.scores.clone(),
            byte_tokens,
            unknown: vocabulary.raw.unknown,
        })
    }

    /// Appends the tokens of `text`, in time O(n log n).
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        // In a text, the mark and the space it stands for are the same.
        if text.contains(SPACE_MARK) {
            return self.encode(&text.replace(SPACE_MARK, " "), ids);
        }
        let mut joined = Joined::new(text);
        let mut pairs = BinaryHeap::new();
        for left in 0..joined.symbols.len().saturating_sub(1) {
            pairs.extend(self.pair(&joined, left));
        }
        while let Some(pair) = pairs.pop() {
            if !joined.join(&pair) {
                continue;
            }
            let before = joined.symbols[pair.left].previous;
            pairs.extend(before.and_then(|before| self.pair(&joined, before)));
            pairs.extend(self.pair(&joined, pair.left));
        }
        for piece in joined.pieces() {
            self.push_piece(&text[piece], ids);
        }
    }

    /// The symbol `left` and its right neighbour, if they make a token.
    fn pair(&self, joined: &Joined<'_>, left: usize) -> Option<Pair> {
        let right = joined.symbols[left].next?;
        let bytes = joined.symbols[left].bytes.start..joined.symbols[right].bytes.end;
        let id = self.find(&joined.text[bytes.clone()])?;
        Some(Pair {
            score: self.scores[id as usize],
            left,
            right,
            bytes,
        })
    }

    fn push_piece(&self, piece: &str, ids: &mut Vec<u32>) {
        if let Some(id) = self.find(piece) {
            ids.push(id);
            return;
        }
        let mut mark = [0; 4];
        let bytes = match piece {
            " " => SPACE_MARK.encode_utf8(&mut mark),
            _ => piece,
        };
        let tokens = bytes.bytes().map(|byte| self.byte_tokens[byte as usize]);
        if tokens.clone().any(|token| token.is_none()) {
            ids.extend(self.unknown);
        } else {
            ids.extend(tokens.flatten());
        }
    }

    fn find(&self, text: &str) -> Option<u32> {
        self.pieces.find(text.as_bytes(), &self.table)
    }
}

/// Two neighbours that may be joined.
#[derive(Debug, PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    bytes: Range<usize>,
}

impl Eq for Pair {}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pair {
    /// The best is the greatest. Zeros of both signs are equal, as for C's `<`; a NaN never gets
    /// into a vocabulary.
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.partial_cmp(&other.score);
        let by_score = by_score.unwrap_or(Ordering::Equal);
        by_score.then(other.left.cmp(&self.left))
    }
}

/// A stretch of the text: a character, or several that were joined.
#[derive(Debug)]
struct Symbol {
    /// Empty once it was joined to the one before.
    bytes: Range<usize>,
    previous: Option<usize>,
    next: Option<usize>,
}

/// A text in the course of being joined.
struct Joined<'a> {
    text: &'a str,
    symbols: Vec<Symbol>,
}

impl<'a> Joined<'a> {
    fn new(text: &'a str) -> Self {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, letter))| Symbol {
                bytes: start..start + letter.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        Self { text, symbols }
    }

    /// Joins a pair, unless one of it has been joined to something else since.
    fn join(&mut self, pair: &Pair) -> bool {
        let left = &self.symbols[pair.left].bytes;
        let right = &self.symbols[pair.right].bytes;
        let fresh = !left.is_empty()
            && !right.is_empty()
            && left.start == pair.bytes.start
            && left.end == right.start
            && right.end == pair.bytes.end;
        if !fresh {
            return false;
        }
        let next = self.symbols[pair.right].next;
        let end = pair.bytes.end;
        self.symbols[pair.right].bytes = end..end;
        self.symbols[pair.left].bytes.end = end;
        self.symbols[pair.left].next = next;
        if let Some(next) = next {
            self.symbols[next].previous = Some(pair.left);
        }
        true
    }

    fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let bytes = self.symbols.iter().map(|symbol| symbol.bytes.clone());
        bytes.filter(|bytes| !bytes.is_empty())
    }
}

/// Token ids by their bytes; the bytes stay in the table.
#[derive(Debug)]
struct PieceIndex {
    /// Open addressing, linear probing, at most half full; [`Self::FREE`] marks a free slot.
    slots: Vec<u32>,
    /// Seeded at random, so that no file can choose texts that collide.
    hasher: RandomState,
    longest: usize,
}

impl PieceIndex {
    const FREE: u32 = u32::MAX;

    fn new(vocabulary: &CheckedVocabulary, table: &TokenTable) -> Self {
        let mut index = Self {
            slots: vec![Self::FREE; (table.len() * 2).next_power_of_two()],
            hasher: RandomState::new(),
            longest: 0,
        };
        // A control token is never made by merging: it would let plain text pass for one. User-
        // defined ones may be; one with a space in it never fits, since texts have the mark there.
        let tokens = vocabulary.of_kind(TokenKind::Text);
        let tokens = tokens.chain(vocabulary.of_kind(TokenKind::UserDefined));
        for (id, text) in tokens {
            if !text.contains(' ') {
                index.insert(id, table);
            }
        }
        index
    }

    fn insert(&mut self, id: u32, table: &TokenTable) {
        let bytes = table.bytes(id);
        self.longest = self.longest.max(bytes.len());
        let mut slot = self.first_slot(bytes);
        while self.slots[slot] != Self::FREE {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = id;
    }

    fn find(&self, bytes: &[u8], table: &TokenTable) -> Option<u32> {
        if bytes.len() > self.longest {
            return None;
        }
        let mut slot = self.first_slot(bytes);
        loop {
            match self.slots[slot] {
                Self::FREE => return None,
                id if table.bytes(id) == bytes => return Some(id),
                _ => slot = (slot + 1) & (self.slots.len() - 1),
            }
        }
    }

    fn first_slot(&self, bytes: &[u8]) -> usize {
        self.hasher.hash_one(bytes) as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::tests::small_sentence_piece;
    use super::*;

    fn pieces(text: &str) -> Vec<String> {
        let vocabulary = CheckedVocabulary::new(small_sentence_piece()).unwrap();
        let table = Arc::new(TokenTable::of_vocabulary(&vocabulary, true));
        let tokenizer = SentencePiece::new(&vocabulary, table).unwrap();
        let mut ids = Vec::new();
        tokenizer.encode(text, &mut ids);
        let texts = ids.iter().map(|&id| &vocabulary.raw.tokens[id as usize]);
        texts.cloned().collect()
    }

    #[test]
    fn the_pair_with_the_best_score_is_joined_first() {
        assert_eq!(pieces("abc"), ["abc"]);
        assert_eq!(pieces(" abc"), ["▁a", "bc"]);
        assert_eq!(pieces("bcab"), ["bc", "ab"]);
    }

    #[test]
    fn of_equals_the_leftmost_is_joined_first() {
        assert_eq!(pieces("aaa"), ["aa", "a"]);
        assert_eq!(pieces("aaaaa"), ["aa", "aa", "a"]);
    }

    #[test]
    fn characters_without_a_token_become_their_bytes() {
        assert_eq!(pieces("éü"), ["é", "<0xC3>", "<0xBC>"]);
        assert_eq!(pieces("\0"), ["<0x00>"]);
    }

    #[test]
    fn a_mark_in_the_text_is_a_space() {
        assert_eq!(pieces("▁a"), pieces(" a"));
    }

    #[test]
    fn no_text_becomes_a_control_token_by_merging() {
        assert!(!pieces("<s>").contains(&"<s>".to_owned()));
    }
}
