//! Stop texts in a text that comes in pieces, against looking for them in all of it at once.

use ferry::generation::StopText;

use super::bytes::{Bytes, lossy};

/// Count and settings, then stop texts and pieces, each with its length before it.
pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let settings = input.byte();
    let include = settings & 1 == 1;
    let mut next = |most: usize| {
        let length = usize::from(input.byte()) % most;
        lossy(input.take(length))
    };
    let stops: Vec<String> = (0..(settings >> 1) % 20).map(|_| next(24)).collect();
    let Ok(mut looked) = StopText::new(&stops, include) else {
        assert!(stops.len() > 16 || stops.iter().any(String::is_empty));
        return;
    };
    let mut pieces = Vec::new();
    while !input.is_empty() {
        let length = usize::from(input.byte()) % 32;
        pieces.push(lossy(input.take(length)));
    }
    let (mut text, mut stop) = (String::new(), None);
    for piece in &pieces {
        let emitted = looked.push(piece);
        assert!(
            stop.is_none() || emitted.text.is_empty(),
            "nothing comes after a stop"
        );
        text.push_str(&emitted.text);
        stop = stop.or(emitted.stop);
    }
    text.push_str(&looked.finish());
    let all = pieces.concat();
    let (expected, found) = at_once(&stops, include, &all);
    assert_eq!(
        (text.as_str(), stop),
        (expected, found),
        "{stops:?} {pieces:?}"
    );
}

/// What ends first wins; of what ends together, the longest, of equals the first.
fn at_once<'a>(stops: &[String], include: bool, text: &'a str) -> (&'a str, Option<usize>) {
    for end in 0..=text.len() {
        let ending = stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| text.as_bytes()[..end].ends_with(stop.as_bytes()));
        // Of equals `max_by_key` takes the last.
        let longest = ending.rev().max_by_key(|(_, stop)| stop.len());
        if let Some((index, stop)) = longest {
            let end = if include { end } else { end - stop.len() };
            return (&text[..end], Some(index));
        }
    }
    (text, None)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let input = |settings: u8, parts: &[&str]| {
        let mut input = vec![settings];
        for part in parts {
            input.push(part.len() as u8);
            input.extend(part.as_bytes());
        }
        input
    };
    vec![
        input(2 << 1, &["stop", "top", "a st", "o", "p and on"]),
        input(3 << 1 | 1, &["aab", "ab", "é", "aaa", "aab", "caf", "é"]),
        input(1 << 1, &["</s>", "text <", "/", "s", ">"]),
        input(0, &["nothing ", "stops ", "it"]),
    ]
}
