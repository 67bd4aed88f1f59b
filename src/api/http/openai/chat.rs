//! `/v1/chat/completions`: a conversation to the assistant's next message.
//!
//! The model's chat template sees messages and tools as they are sent. What the model writes is the
//! answer's content as it stands: calls of tools in it are not parsed.

use serde::Serialize;
use serde_json::Value;

use super::{
    completions::MAX_LOGPROBS,
    fields::{Field, Fields, Kind},
    logprobs::ChatLogprobs,
    output::{Envelope, Gathered, Surface, finish_reason, write_json},
    parameters::{GenerationRequest, read_alias, read_common, switch},
};
use crate::{
    admission::{Piece, Prompt},
    error::RequestError,
    text::ChatMessage,
};

const MESSAGES: &str = "a list of messages with role and content";
const CONTENT: &str = "a text, or a list of parts of type text";

/// How chat answers are written.
#[derive(Debug, Default)]
pub struct Chat {
    logprobs: bool,
    /// Choices whose role a stream has told.
    begun: Vec<bool>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f32>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f32>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// Reads a request.
///
/// # Errors
/// [`RequestError::InvalidArgument`] naming the parameter that is wrong.
pub fn read(body: &[u8]) -> Result<GenerationRequest<Chat>, RequestError> {
    let mut fields = Fields::parse(body)?;
    let messages = read_messages(&fields.needed("messages", MESSAGES)?)?;
    let tools = read_tools(&mut fields)?;
    let variables = match fields.take("chat_template_kwargs") {
        Some(field) if field.kind() == Kind::Object => field.read("an object")?,
        Some(field) => return Err(field.refuse("an object")),
        None => Value::Null,
    };
    let (mut call, delivery) = read_common(&mut fields)?;
    call.prompt = Prompt::Chat {
        messages,
        tools,
        variables,
    };
    let names = ["max_completion_tokens", "max_tokens"];
    call.max_tokens = read_alias(&mut fields, names, "a whole number")?;
    let logprobs = switch(&mut fields, "logprobs", false)?;
    if let Some(field) = fields.take("top_logprobs") {
        const ALLOWED: &str = "0 to 20, where logprobs is true";
        let count = field.read::<u32>(ALLOWED)?;
        if count > MAX_LOGPROBS || (count > 0 && !logprobs) {
            return Err(field.refuse(ALLOWED));
        }
        call.sampling.top_logprobs = count;
    }
    fields.finish()?;
    Ok(GenerationRequest {
        calls: vec![call],
        delivery,
        surface: Chat {
            logprobs,
            begun: Vec::new(),
        },
    })
}

fn read_messages(field: &Field<'_>) -> Result<Vec<ChatMessage>, RequestError> {
    let items = field.items(MESSAGES)?;
    if items.is_empty() {
        return Err(field.refuse("one message or more"));
    }
    items.iter().map(read_message).collect()
}

fn read_message(field: &Field<'_>) -> Result<ChatMessage, RequestError> {
    let mut fields = field.object("a message with role and content")?;
    let role: String = fields.need("role", "system, user, assistant or tool")?;
    let content = match fields.take("content") {
        Some(content) => read_content(&content)?,
        None => String::new(),
    };
    // Of what clients send back of an answer, this says nothing to a template.
    fields.ignore(&["refusal", "annotations"]);
    let mut extra = serde_json::Map::new();
    for name in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(text) = fields.read::<String>(name, "a text")? {
            extra.insert(name.to_owned(), Value::String(text));
        }
    }
    if let Some(mut calls) = fields.read("tool_calls", "a list")? {
        open_arguments(&mut calls);
        extra.insert("tool_calls".to_owned(), calls);
    }
    fields.finish()?;
    Ok(ChatMessage {
        role,
        content,
        extra,
    })
}

fn read_content(field: &Field<'_>) -> Result<String, RequestError> {
    if field.kind() != Kind::List {
        return field.read(CONTENT);
    }
    let parts = field.items(CONTENT)?;
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        const TYPE: &str = "\"text\": models here read nothing else";
        let mut fields = part.object("an object with a type")?;
        let kind = fields.needed("type", TYPE)?;
        if kind.read::<String>(TYPE)? != "text" {
            return Err(kind.refuse(TYPE));
        }
        texts.push(fields.need::<String>("text", "a text")?);
        fields.finish()?;
    }
    Ok(texts.join("\n"))
}

/// OpenAI's clients send a call's arguments as JSON in a text; templates expect them as JSON.
fn open_arguments(calls: &mut Value) {
    for call in calls.as_array_mut().into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        let opened = arguments
            .as_str()
            .and_then(|text| serde_json::from_str(text).ok());
        if let Some(opened @ Value::Object(_)) = opened {
            *arguments = opened;
        }
    }
}

/// The tools for the template; null for none, or when none may be called.
fn read_tools(fields: &mut Fields<'_>) -> Result<Value, RequestError> {
    const CHOICE: &str = "\"auto\" or \"none\": that a tool is called can't be enforced here";
    let tools = match fields.take("tools") {
        Some(field) if field.kind() == Kind::List => match field.read("a list of tools")? {
            Value::Array(tools) if tools.is_empty() => Value::Null,
            tools => tools,
        },
        Some(field) => return Err(field.refuse("a list of tools")),
        None => Value::Null,
    };
    let Some(choice) = fields.take("tool_choice") else {
        return Ok(tools);
    };
    if choice.kind() != Kind::Text {
        return Err(choice.refuse(CHOICE));
    }
    match choice.read::<String>(CHOICE)?.as_str() {
        "auto" => Ok(tools),
        "none" => Ok(Value::Null),
        _ => Err(choice.refuse(CHOICE)),
    }
}

impl Surface for Chat {
    const ID: &'static str = "chatcmpl";
    const ANSWER: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";

    fn wants_tokens(&self) -> bool {
        self.logprobs
    }

    /// The role first, then the content, and how it ended last, each in a chunk of its own.
    fn write_events(&mut self, index: u32, piece: &Piece, envelope: &Envelope, out: &mut Vec<u8>) {
        let at = index as usize;
        if self.begun.len() <= at {
            self.begun.resize(at + 1, false);
        }
        let mut choice = ChunkChoice {
            index,
            delta: Delta::default(),
            logprobs: None,
            finish_reason: None,
            confidence: None,
        };
        if !self.begun[at] {
            self.begun[at] = true;
            choice.delta = Delta {
                role: Some("assistant"),
                content: Some(""),
            };
            envelope.write_chunk(&choice, out);
        }
        let tells_tokens = self.logprobs && !piece.tokens.is_empty();
        if !piece.text.is_empty() || tells_tokens {
            choice.delta = Delta {
                role: None,
                content: Some(&piece.text),
            };
            choice.logprobs = tells_tokens.then(|| ChatLogprobs::new(&piece.tokens));
            envelope.write_chunk(&choice, out);
        }
        if let Some(finish) = &piece.finish {
            choice.delta = Delta::default();
            choice.logprobs = None;
            choice.finish_reason = Some(finish_reason(finish));
            choice.confidence = Some(finish.confidence);
            envelope.write_chunk(&choice, out);
        }
    }

    fn write_choice(&self, index: u32, gathered: &Gathered, out: &mut Vec<u8>) {
        let finish = gathered.finish.as_ref();
        let choice = Choice {
            index,
            message: Message {
                role: "assistant",
                content: &gathered.text,
                refusal: None,
            },
            logprobs: self.logprobs.then(|| ChatLogprobs::new(&gathered.tokens)),
            finish_reason: finish.map(finish_reason),
            confidence: finish.map(|finish| finish.confidence),
        };
        write_json(out, &choice);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prompt(given: &Value) -> Result<(Vec<ChatMessage>, Value, Value), String> {
        let request = read(given.to_string().as_bytes()).map_err(|error| error.to_string())?;
        match request.calls.into_iter().next().unwrap().prompt {
            Prompt::Chat {
                messages,
                tools,
                variables,
            } => Ok((messages, tools, variables)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_reach_the_template_as_they_are() {
        let (messages, tools, variables) = prompt(&json!({
            "messages": [
                {"role": "system", "content": "Be brief.", "name": "host"},
                {"role": "user", "content": [
                    {"type": "text", "text": "one"}, {"type": "text", "text": "two"},
                ]},
                {"role": "assistant", "content": null, "refusal": null, "audio": null, "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
                ]},
                {"role": "tool", "content": "7", "tool_call_id": "c1"},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": "auto",
            "chat_template_kwargs": {"enable_thinking": false},
        }))
        .unwrap();
        let contents: Vec<_> = messages
            .iter()
            .map(|message| message.content.as_str())
            .collect();
        assert_eq!(contents, ["Be brief.", "one\ntwo", "", "7"]);
        assert_eq!(messages[0].extra["name"], "host");
        let call = &messages[2].extra["tool_calls"][0];
        assert_eq!(call["function"]["arguments"], json!({"a": 1}));
        assert_eq!(messages[3].extra["tool_call_id"], "c1");
        assert_eq!(tools[0]["function"]["name"], "f");
        assert_eq!(variables, json!({"enable_thinking": false}));
    }

    #[test]
    fn what_is_not_supported_is_refused_where_it_stands() {
        let image = json!({"type": "image_url", "image_url": {"url": "data:"}});
        let user = json!([{"role": "user", "content": "a"}]);
        for (given, says) in [
            (json!({}), "messages: found nothing"),
            (json!({"messages": []}), "messages: found []"),
            (json!({"messages": ["a"]}), "messages[0]: found \"a\""),
            (
                json!({"messages": [{"content": "a"}]}),
                "messages[0].role: found nothing",
            ),
            (
                json!({"messages": [{"role": "user", "content": [image]}]}),
                "messages[0].content[0].type: found \"image_url\"; allowed: \"text\"",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a", "mood": 1}]}),
                "messages[0].mood: found a parameter that is not known",
            ),
            (
                json!({"messages": user, "tools": [{}], "tool_choice": "required"}),
                "tool_choice: found \"required\"; allowed: \"auto\" or \"none\"",
            ),
            (
                json!({"messages": user, "tool_choice": {"type": "function"}}),
                "tool_choice: found",
            ),
            (json!({"messages": user, "tools": {}}), "tools: found {}"),
            (
                json!({"messages": user, "top_logprobs": 2}),
                "top_logprobs: found 2; allowed: 0 to 20, where logprobs is true",
            ),
            (
                json!({"messages": user, "logprobs": 1}),
                "logprobs: found 1",
            ),
            (
                json!({"messages": user, "max_tokens": 4, "max_completion_tokens": 5}),
                "max_tokens: found 4",
            ),
            (
                json!({"messages": user, "prompt": "a"}),
                "prompt: found a parameter",
            ),
        ] {
            let error = prompt(&given).unwrap_err();
            assert!(error.starts_with(says), "{given}: {error}");
        }
    }

    #[test]
    fn tools_that_may_not_be_called_are_not_shown() {
        let (_, tools, _) = prompt(&json!({
            "messages": [{"role": "user", "content": "a"}],
            "tools": [{"type": "function"}],
            "tool_choice": "none",
        }))
        .unwrap();
        assert_eq!(tools, Value::Null);
    }
}
