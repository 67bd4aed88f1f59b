//! Where a sequence ends: why, and the stop strings found in its text as it comes.

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model produced a token that ends the text.
    StopToken {
        /// That token; it is not part of the text.
        token: u32,
    },
    /// It has as many tokens as were asked for, or as the model can attend to.
    Length,
    /// What it is constrained to is complete.
    Complete,
}

/// Most stop strings of a sequence.
pub const MAX_STOP_STRINGS: usize = 16;
/// Longest stop string, in bytes.
pub const MAX_STOP_BYTES: usize = 1024;

/// Stop strings that can't be looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStop {
    /// Too many.
    #[error("stop: found {found} strings; allowed: at most {MAX_STOP_STRINGS}")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// One is in every text.
    #[error("stop[{index}]: found an empty string; allowed: 1 to {MAX_STOP_BYTES} bytes")]
    Empty {
        /// Which.
        index: usize,
    },
    /// One is too long.
    #[error("stop[{index}]: found {found} bytes; allowed: 1 to {MAX_STOP_BYTES} bytes")]
    TooLong {
        /// Which.
        index: usize,
        /// Its length.
        found: usize,
    },
}

/// A stop string and, for each of its prefixes, the length of the longest shorter prefix that the
/// prefix ends with (Knuth, Morris and Pratt, 1977).
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Box<[u8]>,
    fallback: Box<[u16]>,
    /// Bytes of it that the text ends with.
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut fallback = vec![0_u16; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = usize::from(fallback[matched - 1]);
            }
            matched += usize::from(bytes[at] == bytes[matched]);
            fallback[at] = matched as u16;
        }
        Self {
            bytes: bytes.into(),
            fallback: fallback.into(),
            matched: 0,
        }
    }

    /// Takes the text's next byte; whether the text now ends with the whole string.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && byte != self.bytes[self.matched] {
            self.matched = usize::from(self.fallback[self.matched - 1]);
        }
        self.matched += usize::from(byte == self.bytes[self.matched]);
        self.matched == self.bytes.len()
    }
}

/// Looks for stop strings in text that comes in pieces. Text that may be the beginning of one is
/// held back until it is clear. Linear in the text, times the number of stop strings.
#[derive(Debug, Clone)]
pub struct StopText {
    patterns: Vec<Pattern>,
    include: bool,
    held: String,
    stopped: Option<usize>,
}

/// What a piece of text came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Emitted {
    /// Text that may go out now.
    pub text: String,
    /// The stop string that was found, if one was: nothing comes after.
    pub stop: Option<usize>,
}

impl StopText {
    /// Looks for `stops`; the one found is part of the text when `include` is set.
    ///
    /// # Errors
    /// [`InvalidStop`] when there are more than [`MAX_STOP_STRINGS`], or one is empty or longer
    /// than [`MAX_STOP_BYTES`].
    pub fn new<S: AsRef<str>>(stops: &[S], include: bool) -> Result<Self, InvalidStop> {
        if stops.len() > MAX_STOP_STRINGS {
            return Err(InvalidStop::TooMany { found: stops.len() });
        }
        for (index, stop) in stops.iter().enumerate() {
            match stop.as_ref().len() {
                0 => return Err(InvalidStop::Empty { index }),
                found if found > MAX_STOP_BYTES => {
                    return Err(InvalidStop::TooLong { index, found });
                }
                _ => {}
            }
        }
        Ok(Self {
            patterns: stops
                .iter()
                .map(|stop| Pattern::new(stop.as_ref()))
                .collect(),
            include,
            held: String::new(),
            stopped: None,
        })
    }

    /// Takes the next piece. The first stop string that is complete wins, of those that end with
    /// the same byte the longest; it is looked for byte by byte, so the result does not depend on
    /// where the pieces were cut. After a stop nothing comes out any more.
    pub fn push(&mut self, piece: &str) -> Emitted {
        if self.stopped.is_some() {
            return Emitted {
                text: String::new(),
                stop: self.stopped,
            };
        }
        if self.patterns.is_empty() {
            return Emitted {
                text: piece.to_owned(),
                stop: None,
            };
        }
        for (at, &byte) in piece.as_bytes().iter().enumerate() {
            let (mut found, mut longest) = (None, 0);
            for (index, pattern) in self.patterns.iter_mut().enumerate() {
                if pattern.step(byte) && pattern.bytes.len() > longest {
                    longest = pattern.bytes.len();
                    found = Some(index);
                }
            }
            if let Some(index) = found {
                self.held.push_str(&piece[..=at]);
                return self.stop(index);
            }
        }
        self.held.push_str(piece);
        let partial = self.patterns.iter().map(|pattern| pattern.matched).max();
        // A match begins where a stop string does, so between two characters.
        let clear = self.held.len() - partial.unwrap_or(0);
        let rest = self.held.split_off(clear);
        Emitted {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// What was held back, when the text has ended.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn stop(&mut self, index: usize) -> Emitted {
        self.stopped = Some(index);
        let mut text = std::mem::take(&mut self.held);
        if !self.include {
            text.truncate(text.len() - self.patterns[index].bytes.len());
        }
        Emitted {
            text,
            stop: Some(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What goes out, piece by piece, and the stop.
    fn run(stops: &[&str], include: bool, pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut stop = StopText::new(stops, include).unwrap();
        let mut out = Vec::new();
        for piece in pieces {
            let emitted = stop.push(piece);
            out.push(emitted.text);
            if emitted.stop.is_some() {
                return (out, emitted.stop);
            }
        }
        out.push(stop.finish());
        (out, None)
    }

    #[test]
    fn a_stop_string_across_pieces_is_found_and_not_emitted() {
        let (out, stop) = run(&["</end>"], false, &["Hello <", "/e", "nd> more"]);
        assert_eq!((out.concat().as_str(), stop), ("Hello ", Some(0)));
        let (out, stop) = run(&["</end>"], true, &["Hello <", "/e", "nd> more"]);
        assert_eq!((out.concat().as_str(), stop), ("Hello </end>", Some(0)));
    }

    #[test]
    fn what_may_become_a_stop_string_is_held_back_and_no_more() {
        let (out, _) = run(&["aab"], false, &["xa", "a", "a", "c"]);
        assert_eq!(out, ["x", "", "a", "aac", ""]);
        let (out, _) = run(&["aab"], false, &["xaa"]);
        assert_eq!(out, ["x", "aa"]);
    }

    #[test]
    fn the_first_to_be_complete_wins_and_the_longest_of_those() {
        let (out, stop) = run(&["d", "bc", "abc"], false, &["xabcd"]);
        assert_eq!((out.concat().as_str(), stop), ("x", Some(2)));
    }

    #[test]
    fn nothing_comes_after_a_stop() {
        let mut stop = StopText::new(&["."], false).unwrap();
        assert_eq!(stop.push("a.b").text, "a");
        assert_eq!(
            (stop.push("c").text, stop.finish()),
            (String::new(), String::new())
        );
    }

    #[test]
    fn strings_that_can_not_be_looked_for_are_refused() {
        let new = |stops: &[String]| StopText::new(stops, false).unwrap_err();
        assert_eq!(
            new(&["a".into(), String::new()]),
            InvalidStop::Empty { index: 1 }
        );
        let found = MAX_STOP_BYTES + 1;
        assert_eq!(
            new(&["a".repeat(found)]),
            InvalidStop::TooLong { index: 0, found }
        );
        assert_eq!(
            new(&vec!["a".into(); 17]),
            InvalidStop::TooMany { found: 17 }
        );
    }

    proptest! {
        #[test]
        fn text_is_cut_where_a_search_of_the_whole_cuts_it(
            stops in vec("[abé]{1,4}", 0..4),
            pieces in vec("[abcé]{0,4}", 0..20),
            include: bool,
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let whole = pieces.concat();
            let first = stops
                .iter()
                .filter_map(|stop| whole.find(stop).map(|at| (at + stop.len(), at)))
                .min();
            let expected = match first {
                Some((end, at)) => &whole[..if include { end } else { at }],
                None => &whole,
            };
            let (out, stop) = run(&stops, include, &pieces);
            prop_assert_eq!(out.concat(), expected);
            prop_assert_eq!(stop.is_some(), first.is_some());
        }
    }
}
