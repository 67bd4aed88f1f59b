//! Runs one call to generate and accounts for how it ended, as `account` does for calls that are
//! answered in one go.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::account::Account;
use crate::{
    admission::{Admission, CallContext, GenerateCall, Generation, Piece, Prompt},
    api::{request_log::Copied, status},
    error::RequestError,
    repository::ServedModel,
    telemetry::{Metrics, RequestTimes, traces::Stages},
};

/// A generation under way. Dropped before its end it is cancelled, and counts as such.
#[derive(Debug)]
pub struct AccountedGeneration {
    /// The model that generates.
    pub model: Arc<ServedModel>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Whether the whole answer was kept; `None` where the model keeps none.
    pub cached: Option<bool>,
    /// When the call came in.
    pub received: Instant,
    generation: Generation,
    account: Option<Account>,
    first_piece: Option<Instant>,
    generated_tokens: u64,
    /// The beginning of the prompt, where its language is to be told.
    excerpt: Option<Box<str>>,
}

/// Finds the model, lets the call in and puts its sequences in line.
///
/// # Errors
/// [`RequestError`] of the call; it is accounted for then.
pub async fn start_generation(
    admission: &Admission,
    metrics: &Metrics,
    call: GenerateCall,
    context: CallContext,
) -> Result<AccountedGeneration, RequestError> {
    let received = context.received;
    admission.wake(&call.model, &context).await;
    let model = admission
        .find_generator(&call.model, &call.version, &context)
        .inspect_err(|error| metrics.count_unrouted(status::map(error).outcome))?;
    let mut account = Account::open(Arc::clone(&model), &context);
    *account.copy() = Copied::of_generation(admission, &model, &call, &context);
    let excerpt = excerpt(&model, &call);
    match admission.generate(Arc::clone(&model), call, context).await {
        Ok(generation) => Ok(AccountedGeneration {
            model,
            prompt_tokens: generation.prompt_tokens,
            cached: generation.cached,
            received,
            generation,
            account: Some(account),
            first_piece: None,
            generated_tokens: 0,
            excerpt,
        }),
        Err(error) => Err(account.failed(error)),
    }
}

/// The beginning of what is continued: of a conversation, of its last message.
fn excerpt(model: &ServedModel, call: &GenerateCall) -> Option<Box<str>> {
    let drift = model.drift.as_ref()?;
    match &call.prompt {
        Prompt::Text(text) => drift.excerpt_of(text),
        Prompt::Chat { messages, .. } => drift.excerpt_of(&messages.last()?.content),
        Prompt::Tokens(_) => None,
    }
}

impl AccountedGeneration {
    /// The next piece of any continuation; `None` when all have ended. An error ends them all.
    pub async fn next(&mut self) -> Option<Result<Piece, RequestError>> {
        match self.generation.next().await {
            Some(Ok(mut piece)) => {
                self.first_piece.get_or_insert_with(Instant::now);
                if !piece.is_prompt {
                    self.generated_tokens += piece.tokens.len() as u64;
                }
                if let Some(account) = &mut self.account
                    && let Some(copy) = account.copy()
                {
                    copy.note_piece(&piece);
                }
                if let (Some(finish), Some(drift)) = (&mut piece.finish, &self.model.drift) {
                    let tokens = self.prompt_tokens as usize;
                    let confidence = finish.confidence;
                    let lengths = (tokens, finish.generated_tokens);
                    let escalation = finish.escalation.as_ref();
                    if escalation.is_none_or(|escalation| escalation.from.is_empty()) {
                        drift.observe_generated(lengths, confidence, self.excerpt.as_deref());
                    }
                    finish.anomalies = drift.anomalies((tokens, 0), None, || Some(confidence));
                }
                Some(Ok(piece))
            }
            Some(Err(error)) => Some(Err(match self.account.take() {
                Some(account) => account.failed(error),
                None => error,
            })),
            None => {
                self.close();
                None
            }
        }
    }

    /// Whether nothing more is to come.
    pub fn is_over(&self) -> bool {
        self.generation.is_over()
    }

    fn close(&mut self) {
        let Some(mut account) = self.account.take() else {
            return;
        };
        account.note_unrun(self.cached == Some(true));
        account.note_generated(u64::from(self.prompt_tokens), self.generated_tokens);
        let total = self.received.elapsed();
        let first = self
            .first_piece
            .map_or(total, |first| first - self.received);
        let tokenize = self.generation.tokenize;
        let times = RequestTimes {
            total,
            // Until the first token: waiting, and reading the prompt beside others.
            queue: first.saturating_sub(tokenize),
            input: tokenize,
            execute: total.saturating_sub(first),
            output: Duration::ZERO,
        };
        if account.is_traced() {
            let started = self.generation.tokenize_started;
            let stages = Stages::Sequences {
                tokenize: (started, started + tokenize),
                prompt_tokens: self.prompt_tokens,
                sequences: self.generation.sequences(),
            };
            account.end_trace(stages, None);
        }
        tracing::debug!(
            model = self.model.name,
            version = self.model.version,
            trace_id = account.trace_id(),
            prompt_tokens = self.prompt_tokens,
            generated_tokens = self.generated_tokens,
            first_token_us = first.as_micros() as u64,
            total_us = total.as_micros() as u64,
            "generated"
        );
        account.succeeded(&times);
    }
}
