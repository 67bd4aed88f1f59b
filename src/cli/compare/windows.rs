//! Cuts a text into stretches that fit a model's context.

/// Stretches of at most `bytes` bytes, together the whole text; cut after a line where the second half
/// of a stretch has an end of one, else after a word, else anywhere between characters.
pub fn cut(text: &str, bytes: usize) -> Vec<String> {
    let mut windows = Vec::new();
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let (window, after) = rest.split_at(end_of_first(rest, bytes.max(4)));
        windows.push(window.to_owned());
        rest = after;
    }
    windows
}

fn end_of_first(text: &str, bytes: usize) -> usize {
    if text.len() <= bytes {
        return text.len();
    }
    let mut most = bytes;
    while !text.is_char_boundary(most) {
        most -= 1;
    }
    let whole = &text[..most];
    let in_second_half = |at: usize| at > most / 2;
    let line = whole.rfind('\n').map(|at| at + 1);
    // Before the space, which belongs to the next word in most vocabularies.
    let word = whole.rfind(' ');
    line.filter(|at| in_second_half(*at))
        .or_else(|| word.filter(|at| in_second_half(*at)))
        .unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_short_enough_and_together_the_whole() {
        let text = "one two three\nfour five six seven\neight\n東京から京都まで新幹線で約二時間十五分です。";
        for bytes in [4, 7, 16, 64, 1000] {
            let windows = cut(text, bytes);
            assert_eq!(windows.concat(), text, "{bytes}");
            assert!(
                windows
                    .iter()
                    .all(|window| window.len() <= bytes && !window.is_empty())
            );
        }
        assert_eq!(cut(text, 16)[0], "one two three\n");
        assert_eq!(cut("one two three", 9)[0], "one two");
        assert!(cut(" \n", 8).is_empty());
    }
}
