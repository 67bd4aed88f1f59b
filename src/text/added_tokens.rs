//! Finds tokens that stand in a text as they are, before the rest is merged.
//!
//! The longest token anywhere wins, then the next, and of one token the leftmost place, as in
//! llama.cpp. One pass over the text tells which tokens occur in it; only those are looked for.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};

use super::vocabulary::{CheckedVocabulary, TokenKind, VocabularyError};

/// A stretch of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'a> {
    /// Still to be tokenized.
    Text(&'a str),
    /// One token.
    Token(u32),
}

/// A set of tokens to look for.
#[derive(Debug)]
pub(super) struct AddedTokens {
    /// The longest first.
    tokens: Vec<(u32, String)>,
    /// Finds which of them occur; `None` when there are none.
    search: Option<AhoCorasick>,
}

impl AddedTokens {
    /// The user-defined tokens of a vocabulary, and its control tokens when `control` says so.
    pub(super) fn of_vocabulary(
        vocabulary: &CheckedVocabulary,
        control: bool,
    ) -> Result<Self, VocabularyError> {
        let user_defined = vocabulary.of_kind(TokenKind::UserDefined);
        let control = vocabulary.of_kind(TokenKind::Control).filter(|_| control);
        let mut tokens: Vec<_> = user_defined
            .chain(control)
            .map(|(id, text)| (id, text.to_owned()))
            .collect();
        tokens.sort_unstable_by_key(|(id, text)| (usize::MAX - text.len(), *id));
        let search = (!tokens.is_empty()).then(|| {
            AhoCorasick::builder()
                .match_kind(MatchKind::Standard)
                .build(tokens.iter().map(|(_, text)| text))
                .map_err(|error| VocabularyError::Failed(error.to_string()))
        });
        let search = search.transpose()?;
        Ok(Self { tokens, search })
    }

    /// `text`, in order, with the tokens taken out.
    pub(super) fn split<'a>(&self, text: &'a str) -> Vec<Fragment<'a>> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(text));
        }
        for index in self.occurring(text) {
            let (id, token) = &self.tokens[index];
            let mut finer = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                match fragment {
                    Fragment::Text(text) => take_out(token, *id, text, &mut finer),
                    Fragment::Token(_) => finer.push(fragment),
                }
            }
            fragments = finer;
        }
        fragments
    }

    /// Indices of the tokens that stand anywhere in `text`, the longest first.
    fn occurring(&self, text: &str) -> BTreeSet<usize> {
        let places = self
            .search
            .iter()
            .flat_map(|search| search.find_overlapping_iter(text));
        places.map(|place| place.pattern().as_usize()).collect()
    }
}

fn take_out<'a>(token: &str, id: u32, text: &'a str, fragments: &mut Vec<Fragment<'a>>) {
    for (nth, part) in text.split(token).enumerate() {
        if nth > 0 {
            fragments.push(Fragment::Token(id));
        }
        if !part.is_empty() {
            fragments.push(Fragment::Text(part));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::tests::small_sentence_piece;
    use super::*;
    use Fragment::{Text, Token};

    fn id(text: &str) -> u32 {
        let vocabulary = small_sentence_piece();
        let place = vocabulary.tokens.iter().position(|token| token == text);
        place.unwrap() as u32
    }

    #[test]
    fn the_longest_token_wins_and_the_rest_stays_text() {
        let vocabulary = CheckedVocabulary::new(small_sentence_piece()).unwrap();
        let all = AddedTokens::of_vocabulary(&vocabulary, true).unwrap();
        assert_eq!(
            all.split("a\n\n\nb<tag></s>"),
            [
                Text("a"),
                Token(id("\n\n")),
                Token(id("\n")),
                Text("b"),
                Token(id("<tag>")),
                Token(2),
            ]
        );
        assert_eq!(all.split(""), []);
    }

    #[test]
    fn control_tokens_are_text_unless_they_are_looked_for() {
        let vocabulary = CheckedVocabulary::new(small_sentence_piece()).unwrap();
        let plain = AddedTokens::of_vocabulary(&vocabulary, false).unwrap();
        assert_eq!(plain.split("<s>a<tag>"), [Text("<s>a"), Token(id("<tag>"))]);
    }
}
