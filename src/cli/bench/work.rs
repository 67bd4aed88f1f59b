//! What is sent: the n-th call has the n-th texts, whichever client sends it.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{cli::Failure, generation::Random};

/// Single sentences of 7 to 40 words.
const SENTENCES: &str = include_str!("../../../benches/sentences.txt");

/// The form of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Texts of a call.
    pub rows: usize,
    /// Words of a text, drawn from those of all texts; `None` for the texts as they are.
    pub words: Option<usize>,
}

/// The texts of a measurement.
#[derive(Debug)]
pub struct Work {
    texts: Vec<String>,
    vocabulary: Vec<String>,
    seed: u64,
    next: AtomicU64,
}

impl Work {
    /// The lines of a file, or the built-in sentences.
    ///
    /// # Errors
    /// When the file can't be read or has no text.
    pub fn read(path: Option<&Path>, seed: u64) -> Result<Self, Failure> {
        let text = match path {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?,
            None => SENTENCES.to_owned(),
        };
        let texts: Vec<String> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(str::to_owned)
            .collect();
        if texts.is_empty() {
            return Err("at least one text is needed".into());
        }
        let vocabulary = texts
            .iter()
            .flat_map(|text| text.split_whitespace())
            .map(str::to_owned)
            .collect();
        Ok(Self {
            texts,
            vocabulary,
            seed,
            next: AtomicU64::new(0),
        })
    }

    /// The texts of the next call.
    pub fn take(&self, shape: Shape) -> Vec<String> {
        let rows = shape.rows as u64;
        let first = self.next.fetch_add(rows, Ordering::Relaxed);
        (first..first + rows)
            .map(|at| self.text(at, shape.words))
            .collect()
    }

    /// So many texts, from the first on; `take` is not moved by it.
    pub fn sample(&self, count: usize, words: Option<usize>) -> Vec<String> {
        (0..count as u64).map(|at| self.text(at, words)).collect()
    }

    /// How many texts there are before they come again, where they are taken as they are.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    fn text(&self, at: u64, words: Option<usize>) -> String {
        let Some(words) = words else {
            return self.texts[(at % self.texts.len() as u64) as usize].clone();
        };
        // A place of its own in the sequence of draws for every text: no two begin alike, and each is
        // the same in every run.
        let mut random = Random::new(self.seed ^ Random::new(at).bits());
        let mut text = String::with_capacity(words * 7);
        for word in 0..words {
            if word > 0 {
                text.push(' ');
            }
            let drawn = random.bits() % self.vocabulary.len() as u64;
            text.push_str(&self.vocabulary[drawn as usize]);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AS_THEY_ARE: Shape = Shape {
        rows: 2,
        words: None,
    };

    #[test]
    fn texts_are_taken_in_order_and_come_again() {
        let work = Work::read(None, 0).unwrap();
        let first = work.sample(work.len(), None);
        for pair in first.chunks_exact(2) {
            assert_eq!(work.take(AS_THEY_ARE), pair);
        }
        assert_eq!(work.take(AS_THEY_ARE), first[..2]);
    }

    #[test]
    fn drawn_texts_have_so_many_words_and_are_distinct_and_the_same_for_a_seed() {
        let drawn = |seed| Work::read(None, seed).unwrap().sample(50, Some(16));
        let texts = drawn(3);
        assert!(texts.iter().all(|text| text.split(' ').count() == 16));
        let distinct: std::collections::BTreeSet<_> = texts.iter().collect();
        assert_eq!(distinct.len(), 50);
        assert_eq!(texts, drawn(3));
        assert_ne!(texts, drawn(4));
    }

    #[test]
    fn a_file_without_text_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " \n\n").unwrap();
        assert!(Work::read(Some(file.path()), 0).is_err());
    }
}
