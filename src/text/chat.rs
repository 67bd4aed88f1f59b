//! Chat templates: from messages to the one text that the model was trained on, rendered as Hugging
//! Face's `transformers` renders them.
//!
//! A template comes with the model's file and is not trusted: its steps, its memory and its output
//! are bounded, and it sees nothing but the messages.

use std::{error::Error as _, io, time::SystemTime};

use minijinja::{
    Environment, Error, ErrorKind, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::{EncodeError, chat_date::format_time, python_json::to_json};

const NAME: &str = "chat_template";
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Bytes that a rendered chat may have; beyond any model's context.
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Steps a rendering may take, and about a 64th of the bytes it may hold.
const FUEL: u64 = 2_000_000;

/// One message of a chat.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatMessage {
    /// Who says it: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
    /// What else the template may look at, such as `name` or `tool_calls`.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

impl ChatMessage {
    /// A message of nothing but text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            extra: Map::new(),
        }
    }
}

/// What a chat is rendered with, beside its messages.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatOptions {
    /// Whether the text ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Tools the model may call, as in the `OpenAI` API.
    pub tools: Option<Json>,
    /// Further variables for the template, such as `enable_thinking`.
    pub kwargs: Map<String, Json>,
    /// The time that the template sees.
    pub now: SystemTime,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            tools: None,
            kwargs: Map::new(),
            now: SystemTime::now(),
        }
    }
}

/// Why a chat can't be made into a prompt.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChatError {
    /// The model's files have no template.
    #[error(
        "the model has no chat template; send a prompt as plain text, \
         or set a chat template in the model's manifest"
    )]
    NoTemplate,
    /// The template isn't one.
    #[error("the chat template is not valid: {0}")]
    Syntax(String),
    /// The template itself refuses these messages.
    #[error("the chat template refuses the messages: {0}")]
    Refused(String),
    /// The template fails on these messages.
    #[error("the chat template fails on these messages: {0}")]
    Failed(String),
    /// The template does too much.
    #[error("rendering the chat takes more than {FUEL} steps; send fewer or shorter messages")]
    TooCostly,
    /// The text is too long.
    #[error(
        "the rendered chat has more than {MAX_TEXT_BYTES} bytes; send fewer or shorter messages"
    )]
    TooLong,
    /// The text can't be tokenized.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Parses a template. `bos` and `eos` are the texts of the model's tokens, empty where it has
    /// none.
    ///
    /// # Errors
    /// [`ChatError::Syntax`] with the line that is wrong.
    ///
    /// # Example
    /// ```
    /// use ferry::text::{ChatMessage, ChatOptions, ChatTemplate};
    /// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    /// let template = ChatTemplate::parse(source, "", "").unwrap();
    /// let messages = [ChatMessage::new("user", "Hello")];
    /// let text = template.render(&messages, &ChatOptions::default()).unwrap();
    /// assert_eq!(text, "<user>Hello");
    /// ```
    pub fn parse(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let reason = format!(
                "{} bytes; at most {MAX_TEMPLATE_BYTES} allowed",
                source.len()
            );
            return Err(ChatError::Syntax(reason));
        }
        let mut environment = environment();
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| ChatError::Syntax(error.to_string()))?;
        Ok(Self {
            environment,
            bos: bos.into(),
            eos: eos.into(),
        })
    }

    /// The text of a chat.
    ///
    /// # Errors
    /// [`ChatError`] when the template refuses the messages, fails on them, or does too much.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
    ) -> Result<String, ChatError> {
        let mut variables = options.kwargs.clone();
        let messages = serde_json::to_value(messages);
        let messages = messages.map_err(|error| ChatError::Failed(error.to_string()))?;
        variables.insert("messages".into(), messages);
        variables.insert(
            "add_generation_prompt".into(),
            options.add_generation_prompt.into(),
        );
        variables.insert("tools".into(), options.tools.clone().into());
        variables
            .entry("bos_token")
            .or_insert_with(|| self.bos.clone().into());
        variables
            .entry("eos_token")
            .or_insert_with(|| self.eos.clone().into());
        self.render_variables(&variables, options.now)
    }

    fn render_variables(
        &self,
        variables: &Map<String, Json>,
        now: SystemTime,
    ) -> Result<String, ChatError> {
        let clock = Value::from_function(move |format: &str| format_time(now, format));
        let variables = variables.iter();
        let variables = variables.map(|(name, value)| (name.as_str(), Value::from(Serde(value))));
        let context = Value::from_pairs(variables.chain([("strftime_now", clock)]));
        let mut output = BoundedText::default();
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| failed(&error))?;
        let rendered = template.render_captured_to(context, &mut output);
        if output.full {
            return Err(ChatError::TooLong);
        }
        rendered.map_err(|error| failed(&error))?;
        String::from_utf8(output.bytes).map_err(|error| ChatError::Failed(error.to_string()))
    }
}

/// Jinja as `transformers` sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    if let Ok(syntax) = syntax {
        environment.set_syntax(syntax);
    }
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", to_json);
    // Templates ask so whether there are tools; nothing is not iterable in Python.
    environment.add_test("iterable", |value: &Value| {
        !matches!(
            value.kind(),
            ValueKind::Bool | ValueKind::None | ValueKind::Number
        )
    });
    environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        let raised = Raised(message.to_owned());
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
    });
    environment
}

/// `{% generation %}` marks what the assistant wrote, for training; it renders nothing, and Jinja
/// doesn't know it.
fn without_generation_marks(source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start + 2..start + length];
        let name = tag.trim_matches(['-', '+']).trim();
        let end = start + length + 2;
        // A block that does nothing keeps the tag's effect on the white space around it.
        let replaced = match name {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        if let Some(replaced) = replaced {
            kept.push_str(&rest[..start + 2]);
            kept.push_str(&tag.replacen(name, &format!(" {replaced} "), 1));
            kept.push_str("%}");
        } else {
            kept.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    kept.push_str(rest);
    kept
}

/// What a template said when it refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn failed(error: &Error) -> ChatError {
    if error.kind() == ErrorKind::OutOfFuel {
        return ChatError::TooCostly;
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return ChatError::Refused(message.clone());
        }
        if let Some(inner) = inner.downcast_ref::<Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return ChatError::TooCostly;
        }
        cause = inner.source();
    }
    ChatError::Failed(error.to_string())
}

#[derive(Default)]
struct BoundedText {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_TEXT_BYTES {
            self.full = true;
            return Err(io::Error::other("too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn golden(path: &str) -> Json {
        let path = format!("{}/tests/golden/{path}", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn render(source: &str, messages: &[ChatMessage]) -> Result<String, ChatError> {
        ChatTemplate::parse(source, "<s>", "</s>")?.render(messages, &ChatOptions::default())
    }

    #[test]
    fn templates_render_as_transformers_renders_them() {
        let golden = golden("chat_templates.json");
        // 2026-02-03T04:05:06 UTC, the clock of the golden file.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_770_091_506);
        for case in golden["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let variables = case["variables"].as_object().unwrap();
            let source = case["template"].as_str().unwrap();
            let text = ChatTemplate::parse(source, "", "")
                .and_then(|template| template.render_variables(variables, now));
            match case.get("text") {
                Some(expected) => {
                    assert_eq!(text.as_deref(), Ok(expected.as_str().unwrap()), "{name}");
                }
                None => assert!(text.is_err(), "{name}: {text:?}"),
            }
        }
    }

    #[test]
    fn the_template_of_smollm2_renders_as_in_transformers() {
        let golden = golden("llama_cpp/smollm2-135m.json");
        let source = golden["chat_template"]["template"].as_str().unwrap();
        for case in golden["chat_template"]["cases"].as_array().unwrap() {
            let messages: Vec<_> = case["messages"]
                .as_array()
                .unwrap()
                .iter()
                .map(|message| {
                    let part = |key: &str| message[key].as_str().unwrap();
                    ChatMessage::new(part("role"), part("content"))
                })
                .collect();
            let options = ChatOptions {
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
                ..ChatOptions::default()
            };
            let template = ChatTemplate::parse(source, "<|im_start|>", "<|im_end|>").unwrap();
            let text = template.render(&messages, &options).unwrap();
            assert_eq!(text, case["text"].as_str().unwrap());
        }
    }

    #[test]
    fn a_refusal_carries_the_templates_own_words() {
        let source =
            "{% macro no() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ no() }}";
        assert_eq!(
            render(source, &[]),
            Err(ChatError::Refused("roles must alternate".into()))
        );
    }

    #[test]
    fn endless_templates_are_stopped() {
        let steps = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert_eq!(render(steps, &[]), Err(ChatError::TooCostly));
        let memory = "{% set ns = namespace(text='0123456789') %}{% for a in range(99) %}\
                      {% set ns.text = ns.text + ns.text %}{% endfor %}";
        assert_eq!(render(memory, &[]), Err(ChatError::TooCostly));
        let output =
            "{% set text = '0123456789' * 100000 %}{% for a in range(99) %}{{ text }}{% endfor %}";
        let error = render(output, &[]).unwrap_err();
        assert!(
            matches!(error, ChatError::TooLong | ChatError::TooCostly),
            "{error}"
        );
    }

    #[test]
    fn long_chats_are_within_the_bounds() {
        let source =
            "{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim + '\n' }}{% endfor %}";
        let messages = vec![ChatMessage::new("user", "word ".repeat(2_000)); 300];
        let text = render(source, &messages).unwrap();
        assert!(text.len() > 2_900_000);
    }

    #[test]
    fn no_tools_are_none_and_not_iterable() {
        let source =
            "{{ tools is none }} {% if tools is iterable and tools | length > 0 %}!{% endif %}";
        assert_eq!(render(source, &[]).unwrap(), "True ");
    }

    #[test]
    fn marks_for_training_render_nothing() {
        let source =
            "a {%- generation -%} b {%- endgeneration %} c{% generation %}d{% endgeneration %}";
        assert_eq!(render(source, &[]).unwrap(), "ab cd");
    }

    #[test]
    fn a_template_that_is_none_is_an_error_with_its_line() {
        let error = ChatTemplate::parse("a\n{% for %}", "", "").unwrap_err();
        assert!(error.to_string().contains("chat_template:2"), "{error}");
    }

    #[test]
    fn messages_tools_and_further_variables_are_seen() {
        let source = "{{ bos_token }}{{ messages[0].name }}{{ tools | tojson }}{{ deep }}";
        let template = ChatTemplate::parse(source, "<s>", "").unwrap();
        let mut message = ChatMessage::new("user", "");
        message.extra.insert("name".into(), "Ann".into());
        let mut options = ChatOptions {
            tools: Some(serde_json::json!([{"b": "<é>", "a": [1, 2.5, null]}])),
            ..ChatOptions::default()
        };
        options.kwargs.insert("deep".into(), true.into());
        assert_eq!(
            template.render(&[message], &options).unwrap(),
            r#"<s>Ann[{"b": "<é>", "a": [1, 2.5, null]}]True"#
        );
    }
}
