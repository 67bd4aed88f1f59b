//! From a call's prompt to token ids, and from its constraint to masks: on the tokenizer's threads.

use std::sync::Arc;

use super::call::{GenerateCall, Prompt};
use crate::{
    admission::{
        Admission, Call,
        board::{INLINE_BYTES, encode_error, pool_full},
    },
    config::Task,
    error::RequestError,
    generation::TokenConstraint,
    repository::ServedDecoder,
    text::{
        ChatError, ChatOptions, ConstraintError, ConstraintState, EncodedRow, GenerationText,
        RowInput,
    },
};

/// Characters of the reason why a constraint can't be followed.
const MAX_REASON: usize = 500;

/// What the tokenizer's thread makes of a call.
pub(super) struct Prepared {
    pub(super) prompt: Vec<u32>,
    /// One for each continuation, or none.
    pub(super) constraints: Vec<Masks>,
}

impl Admission {
    /// Makes token ids of the prompt and states of the constraint, off the I/O threads unless it is
    /// a matter of microseconds.
    pub(super) async fn prepare(
        &self,
        decoder: &Arc<ServedDecoder>,
        call: &GenerateCall,
    ) -> Result<Prepared, RequestError> {
        let small = match &call.prompt {
            Prompt::Text(text) => text.len() <= INLINE_BYTES,
            Prompt::Tokens(_) => true,
            Prompt::Chat { .. } => false,
        };
        if small && call.constraint.is_none() {
            return prepare(&decoder.text, call);
        }
        let bytes = match &call.prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(ids) => ids.len(),
            Prompt::Chat { messages, .. } => {
                messages.iter().map(|message| message.content.len()).sum()
            }
        };
        let (text, call) = (Arc::clone(&decoder.text), call.clone());
        self.pool()
            .submit(bytes, move || prepare(&text, &call))
            .map_err(pool_full)?
            .await
            .map_err(|_| RequestError::internal("the tokenizer panicked"))?
    }

    /// Tokenizes prompts without running a model.
    pub(in crate::admission) async fn tokenize_prompts(
        &self,
        text: &Arc<GenerationText>,
        call: Call,
        with_special_tokens: bool,
    ) -> Result<Vec<Result<EncodedRow, RequestError>>, RequestError> {
        let bytes = call.rows.iter().map(RowInput::bytes).sum();
        let (text, limits) = (Arc::clone(text), self.limits().clone());
        let job = self.pool().submit(bytes, move || {
            (0..call.rows.len())
                .map(|row| {
                    call.check_row(row, Task::Generate, &limits)?;
                    let RowInput::Text(input) = &call.rows[row] else {
                        return Err(RequestError::invalid(call.row_name(row), "ids", "a text"));
                    };
                    let ids = text
                        .encode(input, with_special_tokens)
                        .map_err(|error| encode_error(call.row_name(row), error))?;
                    Ok(located(ids, &text, input))
                })
                .collect()
        });
        job.map_err(pool_full)?
            .await
            .map_err(|_| RequestError::internal("the tokenizer panicked"))
    }
}

fn prepare(text: &GenerationText, call: &GenerateCall) -> Result<Prepared, RequestError> {
    let prompt = match &call.prompt {
        Prompt::Text(prompt) => text
            .encode(prompt, true)
            .map_err(|error| encode_error("prompt".to_owned(), error))?,
        Prompt::Tokens(ids) => {
            text.check_ids(ids)
                .map_err(|error| encode_error("prompt".to_owned(), error))?;
            ids.clone()
        }
        Prompt::Chat {
            messages,
            tools,
            variables,
        } => {
            let options = ChatOptions {
                tools: Some(tools.clone()).filter(|tools| !tools.is_null()),
                kwargs: variables.as_object().cloned().unwrap_or_default(),
                ..ChatOptions::default()
            };
            text.encode_chat(messages, &options).map_err(chat_error)?
        }
    };
    if prompt.is_empty() {
        return Err(RequestError::invalid("prompt", "no tokens", "at least 1"));
    }
    let constraints = match &call.constraint {
        None => Vec::new(),
        Some(constraint) => {
            let factory = text
                .constraints()
                .map_err(|error| constraint_error(&error))?;
            (0..call.continuations)
                .map(|_| factory.compile(constraint).map(Masks))
                .collect::<Result<_, _>>()
                .map_err(|error| constraint_error(&error))?
        }
    };
    Ok(Prepared {
        prompt,
        constraints,
    })
}

/// Ids with the bytes of `input` that each stands for: a token stands where those before it end.
fn located(ids: Vec<u32>, text: &GenerationText, input: &str) -> EncodedRow {
    let mut end = 0;
    let offsets = ids.iter().map(|&id| {
        if text.is_special(id) {
            return (0, 0);
        }
        let start = end;
        end = (end + text.token_bytes(id).len()).min(input.len());
        (start as u32, end as u32)
    });
    EncodedRow {
        offsets: offsets.collect(),
        ids,
        ..EncodedRow::default()
    }
}

fn chat_error(error: ChatError) -> RequestError {
    match error {
        ChatError::Encode(error) => encode_error("messages".to_owned(), error),
        other => RequestError::invalid("messages", other, "what the chat template takes"),
    }
}

/// The reason quotes the constraint, whole, however long it is; its beginning is enough.
fn constraint_error(error: &ConstraintError) -> RequestError {
    let mut reason = error.to_string();
    if let Some((end, _)) = reason.char_indices().nth(MAX_REASON) {
        reason.truncate(end);
        reason.push('…');
    }
    RequestError::invalid(
        "constraint",
        reason,
        "a JSON schema, regular expression or list of choices that can be compiled",
    )
}

/// The text room's constraint, as the engine sees it.
#[derive(Debug)]
pub(super) struct Masks(ConstraintState);

impl TokenConstraint for Masks {
    fn mask(&mut self) -> Result<&[u32], String> {
        self.0.mask().map_err(|error| error.to_string())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.0.accept(token).map_err(|error| error.to_string())
    }

    fn is_complete(&self) -> bool {
        self.0.is_complete()
    }
}
