//! Log-probabilities in OpenAI's two forms: parallel lists for completions, objects for chat.

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::admission::{Alternative, PieceToken};

/// What JSON says for a probability of 0, whose logarithm it has no number for.
const IMPOSSIBLE: f32 = -9999.0;

/// Log-probabilities of a completion.
#[derive(Debug, Default, Serialize)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Ranking>>,
    text_offset: Vec<usize>,
}

/// The tokens that could have stood in a place, the one that does included; an object in JSON.
#[derive(Debug)]
struct Ranking(Vec<(String, f32)>);

/// Log-probabilities of a chat answer.
#[derive(Debug, Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: ChatAlternative,
    top_logprobs: Vec<ChatAlternative>,
}

#[derive(Debug, Serialize)]
struct ChatAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl CompletionLogprobs {
    /// Those of `tokens`, which stand in the text behind `offset` characters; moves `offset` behind
    /// them.
    pub fn new(tokens: &[PieceToken], offset: &mut usize) -> Self {
        let mut lists = Self::default();
        for token in tokens {
            let name = name_of(&token.bytes);
            let logprob = token.logprob.map(bounded);
            let ranking = logprob.map(|logprob| Ranking::new(token, &name, logprob));
            lists.top_logprobs.push(ranking);
            lists.token_logprobs.push(logprob);
            lists.tokens.push(name);
            lists.text_offset.push(*offset);
            // Each character is counted where its first byte stands.
            *offset += token
                .bytes
                .iter()
                .filter(|&&byte| byte & 0xC0 != 0x80)
                .count();
        }
        lists
    }
}

impl Ranking {
    fn new(token: &PieceToken, name: &str, logprob: f32) -> Self {
        let mut ranking: Vec<(String, f32)> = Vec::with_capacity(token.alternatives.len() + 1);
        let chosen = (name.to_owned(), logprob);
        let others = token.alternatives.iter();
        let others = others.map(|other| (name_of(&other.bytes), bounded(other.logprob)));
        for (name, logprob) in others.chain([chosen]) {
            // Two tokens may be written alike; an object has a name once.
            if !ranking.iter().any(|(known, _)| *known == name) {
                ranking.push((name, logprob));
            }
        }
        Self(ranking)
    }
}

impl Serialize for Ranking {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, logprob) in &self.0 {
            map.serialize_entry(name, logprob)?;
        }
        map.end()
    }
}

impl ChatLogprobs {
    /// Those of `tokens`.
    pub fn new(tokens: &[PieceToken]) -> Self {
        let content = tokens.iter().map(|token| ChatToken {
            token: ChatAlternative {
                token: token.text(),
                logprob: token.logprob.map_or(IMPOSSIBLE, bounded),
                bytes: token.bytes.clone(),
            },
            top_logprobs: token.alternatives.iter().map(ChatAlternative::of).collect(),
        });
        Self {
            content: content.collect(),
            refusal: None,
        }
    }
}

impl ChatAlternative {
    fn of(other: &Alternative) -> Self {
        Self {
            token: other.text(),
            logprob: bounded(other.logprob),
            bytes: other.bytes.clone(),
        }
    }
}

fn bounded(logprob: f32) -> f32 {
    // Also what is not a number.
    if logprob > IMPOSSIBLE {
        logprob
    } else {
        IMPOSSIBLE
    }
}

/// A token's text, or its bytes as OpenAI writes them where they are no whole characters: names of
/// tokens must not fall together.
fn name_of(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    bytes.iter().fold("bytes:".to_owned(), |name, byte| {
        format!("{name}\\x{byte:02x}")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    fn token(bytes: &[u8], logprob: Option<f32>, others: &[(&[u8], f32)]) -> PieceToken {
        let alternative = |(id, (bytes, logprob)): (usize, &(&[u8], f32))| Alternative {
            id: id as u32,
            bytes: bytes.to_vec(),
            logprob: *logprob,
        };
        PieceToken {
            id: 0,
            bytes: bytes.to_vec(),
            logprob,
            alternatives: others.iter().enumerate().map(alternative).collect(),
        }
    }

    #[test]
    fn completions_list_tokens_with_their_place_in_the_text() {
        let euro = "€".as_bytes();
        let tokens = [
            token(b"A", None, &[]),
            token(&euro[..2], Some(-0.5), &[(&euro[..1], -0.25)]),
            token(&euro[2..], Some(-1.0), &[(&euro[2..], -1.0)]),
            token(b"b", Some(f32::NEG_INFINITY), &[]),
        ];
        let mut offset = 10;
        let lists = to_value(CompletionLogprobs::new(&tokens, &mut offset)).unwrap();
        let wanted = json!({
            "tokens": ["A", "bytes:\\xe2\\x82", "bytes:\\xac", "b"],
            "token_logprobs": [null, -0.5, -1.0, -9999.0],
            "top_logprobs": [
                null,
                {"bytes:\\xe2": -0.25, "bytes:\\xe2\\x82": -0.5},
                {"bytes:\\xac": -1.0},
                {"b": -9999.0},
            ],
            "text_offset": [10, 11, 12, 12],
        });
        assert_eq!(lists, wanted);
        assert_eq!(offset, 13);
    }

    #[test]
    fn chat_lists_tokens_with_their_bytes() {
        let tokens = [token(b"Hi", Some(-0.5), &[(b"Hi", -0.5), (b"Ho", -1.5)])];
        let wanted = json!({
            "content": [{
                "token": "Hi", "logprob": -0.5, "bytes": [72, 105],
                "top_logprobs": [
                    {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
                    {"token": "Ho", "logprob": -1.5, "bytes": [72, 111]},
                ],
            }],
            "refusal": null,
        });
        assert_eq!(to_value(ChatLogprobs::new(&tokens)).unwrap(), wanted);
    }
}
