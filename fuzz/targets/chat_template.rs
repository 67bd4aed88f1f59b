//! Chat templates from strangers' files, on messages from strangers.

use std::time::{Duration, SystemTime};

use ferry::text::{ChatMessage, ChatOptions, ChatTemplate};
use serde_json::{Value as Json, json};

use super::{bytes::lossy, fixtures::read};

/// Between the template and the messages: no byte of UTF-8.
const CUT: u8 = 0xFF;

/// A template, and messages in JSON; what isn't JSON is one message's text.
pub fn run(input: &[u8]) {
    let cut = input.iter().position(|&byte| byte == CUT);
    let (template, messages) = input.split_at(cut.unwrap_or(input.len()));
    let Ok(template) = ChatTemplate::parse(&lossy(template), "<s>", "</s>") else {
        return;
    };
    let messages = messages.get(1..).unwrap_or_default();
    let (messages, tools) = match serde_json::from_slice(messages) {
        Ok(chat @ Json::Object(_)) => (messages_of(&chat["messages"]), chat.get("tools").cloned()),
        _ => (vec![ChatMessage::new("user", lossy(messages))], None),
    };
    let options = ChatOptions {
        tools,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_770_091_506),
        ..ChatOptions::default()
    };
    let text = template.render(&messages, &options);
    assert_eq!(text, template.render(&messages, &options));
    assert!(text.map_or(0, |text| text.len()) <= 16 << 20);
}

fn messages_of(messages: &Json) -> Vec<ChatMessage> {
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    let message = |message: &Json| ChatMessage {
        role: text(&message["role"]),
        content: text(&message["content"]),
        extra: message.as_object().cloned().unwrap_or_default(),
    };
    messages
        .as_array()
        .into_iter()
        .flatten()
        .map(message)
        .collect()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let golden = read("tests/golden/chat_templates.json");
    let golden: Json = serde_json::from_slice(&golden).expect("a golden file");
    let mut seeds = Vec::new();
    for case in golden["cases"].as_array().into_iter().flatten() {
        let template = case["template"].as_str().unwrap_or_default();
        let chat = json!({
            "messages": case["variables"]["messages"], "tools": case["variables"]["tools"],
        });
        let mut seed = template.as_bytes().to_vec();
        seed.push(CUT);
        seed.extend(chat.to_string().bytes());
        if seed.len() < 4096 {
            seeds.push(seed);
        }
    }
    // A dozen of them have all that there is.
    let every = seeds.len().div_ceil(12).max(1);
    seeds.into_iter().step_by(every).collect()
}
