//! From per-token labels to labelled spans of text (BIO, as named-entity models are trained).
//!
//! A word's label is that of its first token, as in Hugging Face's `aggregation_strategy="first"`.
//! `B-X` starts a span, `I-X` goes on with one of the same kind or else starts one, `O` ends it;
//! labels without a prefix make one span of each run of words that carry them.

use super::confidence::top_probability;

/// A labelled span of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledSpan {
    /// The label without its prefix.
    pub label: String,
    /// Half-open byte range in the text.
    pub start: usize,
    /// End of the range.
    pub end: usize,
    /// Mean probability of the words' labels.
    pub confidence: f32,
}

struct Word<'a> {
    tag: Tag,
    label: &'a str,
    start: usize,
    end: usize,
    probability: f32,
}

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Begin,
    Inside,
    Outside,
}

/// Spans of one row.
///
/// `logits` is `[tokens, labels]`, row by row; `offsets` and `words` are `[tokens]`: each token's
/// byte range in the text and the word it belongs to (`None` for special tokens, which are left
/// out). Shorter `offsets` or `words` end the row early.
pub fn label_spans(
    logits: &[f32],
    labels: &[String],
    offsets: &[(u32, u32)],
    words: &[Option<u32>],
) -> Vec<LabelledSpan> {
    let mut spans: Vec<(LabelledSpan, u32)> = Vec::new();
    let mut open = false;
    for word in label_words(logits, labels, offsets, words) {
        let goes_on = open
            && word.tag == Tag::Inside
            && spans
                .last()
                .is_some_and(|(span, _)| span.label == word.label);
        open = word.tag != Tag::Outside;
        if goes_on {
            if let Some((span, count)) = spans.last_mut() {
                span.end = word.end;
                span.confidence += word.probability;
                *count += 1;
            }
        } else if open {
            let span = LabelledSpan {
                label: word.label.to_owned(),
                start: word.start,
                end: word.end,
                confidence: word.probability,
            };
            spans.push((span, 1));
        }
    }
    spans
        .into_iter()
        .map(|(mut span, count)| {
            span.confidence /= count as f32;
            span
        })
        .collect()
}

fn label_words<'a>(
    logits: &[f32],
    labels: &'a [String],
    offsets: &[(u32, u32)],
    words: &[Option<u32>],
) -> Vec<Word<'a>> {
    let mut found: Vec<Word> = Vec::new();
    let mut last = None;
    let tokens = logits.chunks_exact(labels.len().max(1));
    for ((logits, &(start, end)), &word) in tokens.zip(offsets).zip(words) {
        let Some(word) = word else {
            last = None;
            continue;
        };
        if last == Some(word) {
            if let Some(word) = found.last_mut() {
                word.end = end as usize;
            }
            continue;
        }
        last = Some(word);
        let (best, probability) = top_probability(logits);
        let (tag, label) = split_tag(labels.get(best).map_or("O", String::as_str));
        found.push(Word {
            tag,
            label,
            start: start as usize,
            end: end as usize,
            probability,
        });
    }
    found
}

/// The number of characters before byte `at` of `text`; a place inside a character counts it in.
pub fn characters_before(text: &str, at: usize) -> usize {
    text.char_indices()
        .take_while(|(byte, _)| *byte < at)
        .count()
}

fn split_tag(label: &str) -> (Tag, &str) {
    match label.split_once('-') {
        Some(("B", kind)) => (Tag::Begin, kind),
        Some(("I", kind)) => (Tag::Inside, kind),
        _ if label == "O" => (Tag::Outside, label),
        _ => (Tag::Inside, label),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        ["O", "B-PER", "I-PER", "B-LOC"].map(String::from).to_vec()
    }

    /// Logits that make label `best[i]` win token `i`.
    fn logits(best: &[usize]) -> Vec<f32> {
        let mut values = vec![0.0; best.len() * 4];
        for (token, &label) in best.iter().enumerate() {
            values[token * 4 + label] = 8.0;
        }
        values
    }

    #[test]
    fn words_of_one_entity_are_one_span_and_special_tokens_are_none() {
        // [CLS] Ada Love ##lace in Paris [SEP]
        let spans = label_spans(
            &logits(&[1, 1, 2, 0, 0, 3, 1]),
            &labels(),
            &[(0, 0), (0, 3), (4, 8), (8, 12), (13, 15), (16, 21), (0, 0)],
            &[None, Some(0), Some(1), Some(1), Some(2), Some(3), None],
        );
        let found: Vec<_> = spans
            .iter()
            .map(|span| (span.label.as_str(), span.start, span.end))
            .collect();
        assert_eq!(found, [("PER", 0, 12), ("LOC", 16, 21)]);
        assert!(spans.iter().all(|span| span.confidence > 0.99));
    }

    #[test]
    fn begin_right_after_an_entity_starts_another() {
        let spans = label_spans(
            &logits(&[1, 1]),
            &labels(),
            &[(0, 3), (4, 7)],
            &[Some(0), Some(1)],
        );
        assert_eq!(spans.len(), 2);
    }

    #[test]
    fn inside_without_begin_starts_a_span() {
        let spans = label_spans(
            &logits(&[2, 2]),
            &labels(),
            &[(0, 3), (4, 7)],
            &[Some(0), Some(1)],
        );
        assert_eq!(spans.len(), 1);
        assert_eq!((spans[0].start, spans[0].end), (0, 7));
    }
}
