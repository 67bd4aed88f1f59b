//! The words of a text, and the text without some of them.

use std::ops::Range;

/// One word, or some neighbours that are taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Half-open byte range in the text.
    pub range: Range<usize>,
}

/// A text whose words can be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Perturbed<'a> {
    text: &'a str,
    features: Vec<Feature>,
    /// What stands in a word's place; mostly nothing.
    replacement: &'a str,
}

/// The words of `text`: what stands between white space; each character by itself in writing that
/// has none (Chinese, Japanese). More than `most` are taken together, neighbour with neighbour, in
/// groups of nearly equal size.
pub fn features(text: &str, most: usize) -> Vec<Feature> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut open = false;
    for (at, letter) in text.char_indices() {
        let end = at + letter.len_utf8();
        if letter.is_whitespace() {
            open = false;
        } else if stands_alone(letter) {
            words.push(at..end);
            open = false;
        } else if let Some(word) = words.last_mut().filter(|_| open) {
            word.end = end;
        } else {
            words.push(at..end);
            open = true;
        }
    }
    let groups = words.len().min(most.max(1));
    (0..groups)
        .filter_map(|group| {
            let first = words.get(group * words.len() / groups)?;
            let last = words.get((group + 1) * words.len() / groups - 1)?;
            Some(Feature {
                range: first.start..last.end,
            })
        })
        .collect()
}

fn stands_alone(letter: char) -> bool {
    matches!(letter,
        '\u{3040}'..='\u{30ff}' // Hiragana, Katakana
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' // Han
        | '\u{20000}'..='\u{323af}')
}

impl<'a> Perturbed<'a> {
    /// A text with its features.
    pub fn new(text: &'a str, features: Vec<Feature>, replacement: &'a str) -> Self {
        Self {
            text,
            features,
            replacement,
        }
    }

    /// Its features, in order.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// The text with only the features that `mask` has; what stands between them stays.
    pub fn render(&self, mask: &[bool]) -> String {
        let mut out = String::with_capacity(self.text.len());
        let mut at = 0;
        for (feature, &here) in self.features.iter().zip(mask) {
            out.push_str(&self.text[at..feature.range.start]);
            out.push_str(if here {
                &self.text[feature.range.clone()]
            } else {
                self.replacement
            });
            at = feature.range.end;
        }
        out.push_str(&self.text[at..]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, most: usize) -> Vec<&str> {
        let found = features(text, most);
        found.into_iter().map(|found| &text[found.range]).collect()
    }

    #[test]
    fn words_stand_between_white_space_or_are_one_character() {
        assert_eq!(
            words(" Zoë's ferry,\n leaves! ", 9),
            ["Zoë's", "ferry,", "leaves!"]
        );
        assert_eq!(words("東京 to 京都", 9), ["東", "京", "to", "京", "都"]);
        assert!(words(" \n", 9).is_empty());
    }

    #[test]
    fn more_words_than_are_wanted_are_taken_together() {
        assert_eq!(words("a b c d e", 2), ["a b", "c d e"]);
        assert_eq!(words("a b c d e", 4), ["a", "b", "c", "d e"]);
        let long = "word ".repeat(1000);
        assert_eq!(words(&long, 128).len(), 128);
    }

    #[test]
    fn what_stands_between_words_stays() {
        let text = " one  two three.";
        let perturbed = Perturbed::new(text, features(text, 9), "");
        assert_eq!(perturbed.render(&[true; 3]), text);
        assert_eq!(perturbed.render(&[true, false, true]), " one   three.");
        let masked = Perturbed::new(text, features(text, 9), "[MASK]");
        assert_eq!(masked.render(&[false, true, false]), " [MASK]  two [MASK]");
    }
}
