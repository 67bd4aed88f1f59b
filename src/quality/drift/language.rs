//! Which language a text is in, by its script and trigrams (`whatlang`).

use std::collections::BTreeMap;

/// The name of texts that are too short to tell, or in no language that is known.
pub const OTHER: &str = "other";
/// Letters from which on a text tells.
const LEAST_LETTERS: usize = 20;
/// How sure it must be of the first language before the second.
const LEAST_CONFIDENCE: f64 = 0.5;

/// The ISO 639-3 code of a text's language, or [`OTHER`].
pub fn language_of(text: &str) -> &'static str {
    let letters = text.chars().filter(|letter| letter.is_alphabetic());
    // A character of Chinese or Japanese says as much as a word of others.
    let weight = |letter: char| if letter >= '\u{2e80}' { 4 } else { 1 };
    if letters.map(weight).sum::<usize>() < LEAST_LETTERS {
        return OTHER;
    }
    match whatlang::detect(text) {
        Some(info) if info.confidence() >= LEAST_CONFIDENCE => info.lang().code(),
        _ => OTHER,
    }
}

/// Two mixes as histograms over the same languages.
pub(super) fn aligned(
    baseline: &BTreeMap<String, u64>,
    window: &BTreeMap<String, u64>,
) -> (Vec<u64>, Vec<u64>) {
    let mut names: Vec<&String> = baseline.keys().chain(window.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let counts = |of: &BTreeMap<String, u64>| {
        let counts = names.iter().map(|name| of.get(*name).copied().unwrap_or(0));
        counts.collect()
    };
    (counts(baseline), counts(window))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_and_what_is_short_is_other() {
        for (text, language) in [
            (
                "The ferry leaves the harbour every hour, also in winter.",
                "eng",
            ),
            (
                "Die Fähre verlässt den Hafen jede Stunde, auch im Winter.",
                "deu",
            ),
            (
                "Паром отправляется из гавани каждый час, даже зимой.",
                "rus",
            ),
            ("渡し船は冬でも一時間ごとに港を出ます。", "jpn"),
            ("渡轮每小时从港口出发，冬天也一样。", "cmn"),
            ("ok", OTHER),
            ("1234567890 1234567890 1234567890", OTHER),
            ("", OTHER),
        ] {
            assert_eq!(language_of(text), language, "{text}");
        }
    }

    #[test]
    fn mixes_are_compared_over_the_languages_of_either() {
        let mix = |counts: &[(&str, u64)]| {
            let counts = counts.iter();
            counts
                .map(|&(name, count)| (name.to_owned(), count))
                .collect()
        };
        let (a, b) = aligned(
            &mix(&[("eng", 3), ("deu", 1)]),
            &mix(&[("eng", 2), ("fra", 5)]),
        );
        assert_eq!((a, b), (vec![1, 3, 0], vec![0, 2, 5]));
    }
}
