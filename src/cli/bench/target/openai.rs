//! OpenAI's routes, as many servers have them.

use std::time::Instant;

use http_body_util::BodyExt;
use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{
    Asked, Endpoint, Refusal, Reply,
    events::Events,
    http::{HttpConnection, lost, read},
    tei::{json, whole},
};

#[derive(Serialize)]
struct EmbedRequest<'a> {
    model: &'a str,
    input: &'a [String],
}

#[derive(Deserialize)]
struct Embeddings {
    data: Vec<IgnoredAny>,
    usage: Option<Usage>,
}

#[derive(Deserialize, Clone, Copy)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

/// Both surfaces' request; what is `None` belongs to the other.
#[derive(Serialize)]
struct GenerateRequest<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<[Message<'a>; 1]>,
    max_tokens: u32,
    temperature: f32,
    stream: bool,
    stream_options: StreamOptions,
    /// Not of OpenAI; vLLM, llama.cpp and Ferry know it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignore_eos: bool,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'a str,
    content: &'a str,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
}

impl Choice {
    fn has_text(&self) -> bool {
        let delta = self.delta.as_ref();
        [
            self.text.as_ref(),
            delta.and_then(|delta| delta.content.as_ref()),
            delta.and_then(|delta| delta.reasoning_content.as_ref()),
        ]
        .into_iter()
        .flatten()
        .any(|text| !text.is_empty())
    }
}

/// Embeds rows.
pub async fn embed(
    connection: &mut HttpConnection,
    asked: &Asked,
    texts: &[String],
) -> Result<Reply, Refusal> {
    let body = json(&EmbedRequest {
        model: &asked.model,
        input: texts,
    })?;
    let response = connection.post("/v1/embeddings", asked, body).await?;
    let body = read(response).await?;
    let answer: Embeddings = serde_json::from_slice(&body).map_err(|error| malformed(&error))?;
    whole(answer.data.len(), texts.len())?;
    Ok(Reply {
        rows: answer.data.len(),
        read_tokens: answer.usage.map(|usage| usage.prompt_tokens),
        ..Reply::default()
    })
}

/// Streams a completion of one text, or a conversation's next message.
pub async fn generate(
    connection: &mut HttpConnection,
    asked: &Asked,
    texts: Vec<String>,
) -> Result<Reply, Refusal> {
    let text = texts.first().map_or("", String::as_str);
    let chats = asked.endpoint == Endpoint::Chat;
    let body = json(&GenerateRequest {
        model: &asked.model,
        prompt: (!chats).then_some(text),
        messages: chats.then_some([Message {
            role: "user",
            content: text,
        }]),
        max_tokens: asked.max_tokens,
        temperature: 0.0,
        stream: true,
        stream_options: StreamOptions {
            include_usage: true,
        },
        ignore_eos: !asked.may_end_early,
    })?;
    let path = if chats {
        "/v1/chat/completions"
    } else {
        "/v1/completions"
    };
    let response = connection.post(path, asked, body).await?;
    let mut body = response.into_body();
    let mut events = Events::default();
    let mut reply = Reply {
        rows: 1,
        ..Reply::default()
    };
    let mut ended = false;
    // To the end of the body, so that the connection can carry the next call.
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| lost(&error))?;
        let came = Instant::now();
        let Some(data) = frame.data_ref() else {
            continue;
        };
        for event in events.push(data)? {
            if event == b"[DONE]" {
                ended = true;
                continue;
            }
            take(&event, came, &mut reply)?;
        }
    }
    if !ended {
        return Err(Refusal::broken(
            "MALFORMED_ANSWER",
            "the stream ended without [DONE]",
        ));
    }
    Ok(reply)
}

/// Counts one event of a stream.
fn take(event: &[u8], came: Instant, reply: &mut Reply) -> Result<(), Refusal> {
    let chunk: Chunk = serde_json::from_slice(event).map_err(|error| malformed(&error))?;
    if let Some(error) = chunk.error {
        let kind = error.get("type").or(error.get("code"));
        let kind = kind
            .and_then(|kind| kind.as_str())
            .unwrap_or("STREAM_ERROR");
        return Err(Refusal::broken(kind, error.to_string()));
    }
    if chunk.choices.iter().any(Choice::has_text) {
        reply.note_piece(came)?;
    }
    if let Some(usage) = chunk.usage {
        reply.written_tokens = Some(usage.completion_tokens);
        reply.read_tokens = Some(usage.prompt_tokens);
    }
    Ok(())
}

fn malformed(error: &serde_json::Error) -> Refusal {
    Refusal::broken("MALFORMED_ANSWER", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_with_text_and_the_usage_are_counted_and_an_error_is_one() {
        let now = Instant::now();
        let mut reply = Reply::default();
        for event in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"text":"b","index":0}],"usage":null}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#,
        ] {
            take(event.as_bytes(), now, &mut reply).unwrap();
        }
        assert_eq!(reply.pieces.len(), 2);
        assert_eq!(
            (reply.read_tokens, reply.written_tokens),
            (Some(9), Some(4))
        );
        let error = br#"{"error":{"type":"overloaded","message":"later"}}"#;
        assert_eq!(take(error, now, &mut reply).unwrap_err().code, "overloaded");
        assert_eq!(
            take(b"no", now, &mut reply).unwrap_err().code,
            "MALFORMED_ANSWER"
        );
    }
}
