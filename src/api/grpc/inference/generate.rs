//! `Generate` and `Chat`: from their requests to admission's call, from its pieces to messages.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::Status;

use super::{calls::when_unsure, rows};
use crate::{
    admission::{
        CallContext, Ending, Finish as PieceFinish, GenerateCall, Piece, PieceToken, Prompt,
    },
    api::{
        generation::{AccountedGeneration, start_generation},
        grpc::Shared,
        proto::ferry::v1::{
            ChatRequest, Finish, FinishReason, GenerateRequest, GenerateResponse, GeneratedToken,
            GenerationOptions, Sampling, TokenAlternative, generate_request,
            generation_options::Constraint as ProtoConstraint,
        },
        status::status_of,
    },
    error::RequestError,
    generation::SamplingParameters,
    text::{ChatMessage, Constraint},
};

/// The answers of `Generate` and `Chat`. Dropping it cancels what is still to come.
pub type GenerateStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

/// How a generation is sent.
#[derive(Debug, Clone, Copy)]
pub struct Sending {
    /// Tokens of one message.
    interval: usize,
    min_confidence: f32,
}

/// Understands a prompt to continue.
pub fn generate(request: GenerateRequest) -> Result<(GenerateCall, Sending), RequestError> {
    let prompt = match request.prompt {
        Some(generate_request::Prompt::Text(text)) => Prompt::Text(text),
        Some(generate_request::Prompt::TokenIds(ids)) => Prompt::Tokens(ids.ids),
        None => {
            let allowed = "text or token_ids";
            return Err(RequestError::invalid("prompt", "nothing", allowed));
        }
    };
    let mut call = GenerateCall::new(request.model, prompt);
    call.version = request.version;
    call.echo = request.echo;
    call.score_prompt = request.echo
        && request
            .options
            .as_ref()
            .is_some_and(|options| options.top_logprobs > 0);
    let sending = read_options(&mut call, request.options)?;
    Ok((call, sending))
}

/// Understands a conversation to continue.
pub fn chat(request: ChatRequest) -> Result<(GenerateCall, Sending), RequestError> {
    if request.messages.is_empty() {
        return Err(RequestError::invalid("messages", "none", "at least 1"));
    }
    let messages = request
        .messages
        .into_iter()
        .map(|message| ChatMessage::new(message.role, message.content))
        .collect();
    let prompt = Prompt::Chat {
        messages,
        tools: serde_json::Value::Null,
        variables: serde_json::Value::Null,
    };
    let mut call = GenerateCall::new(request.model, prompt);
    call.version = request.version;
    let sending = read_options(&mut call, request.options)?;
    Ok((call, sending))
}

fn read_options(
    call: &mut GenerateCall,
    options: Option<GenerationOptions>,
) -> Result<Sending, RequestError> {
    let options = options.unwrap_or_default();
    call.when_unsure = when_unsure(options.min_confidence, options.on_low_confidence)?;
    call.min_confidence = options.min_confidence;
    call.whole = options.whole;
    call.max_tokens = options.max_tokens;
    call.sampling = sampling(options.sampling.unwrap_or_default());
    call.sampling.top_logprobs = options.top_logprobs;
    call.stop = options.stop;
    call.stop_tokens = options.stop_token_ids;
    call.ignore_eos = options.ignore_eos;
    call.continuations = options.n.max(1);
    call.keep_special_tokens = options.keep_special_tokens;
    call.constraint = options.constraint.map(constraint).transpose()?;
    Ok(Sending {
        interval: if options.whole {
            usize::MAX
        } else {
            options.stream_interval.max(1) as usize
        },
        min_confidence: options.min_confidence,
    })
}

fn constraint(asked: ProtoConstraint) -> Result<Constraint, RequestError> {
    Ok(match asked {
        ProtoConstraint::JsonSchema(schema) => {
            let schema = serde_json::from_str(&schema).map_err(|error| {
                RequestError::invalid("options.json_schema", error, "a JSON schema")
            })?;
            Constraint::JsonSchema(schema)
        }
        ProtoConstraint::Regex(regex) => Constraint::Regex(regex),
        ProtoConstraint::Choices(choices) => Constraint::Choice(choices.texts),
    })
}

fn sampling(asked: Sampling) -> SamplingParameters {
    let default = SamplingParameters::default();
    SamplingParameters {
        temperature: asked.temperature.unwrap_or(default.temperature),
        top_k: asked.top_k,
        top_p: asked.top_p.unwrap_or(default.top_p),
        min_p: asked.min_p.unwrap_or(default.min_p),
        typical_p: asked.typical_p.unwrap_or(default.typical_p),
        repetition_penalty: asked
            .repetition_penalty
            .unwrap_or(default.repetition_penalty),
        presence_penalty: asked.presence_penalty,
        frequency_penalty: asked.frequency_penalty,
        logit_bias: asked.logit_bias.into_iter().collect(),
        seed: asked.seed,
        ..default
    }
}

/// Starts the generation and returns its messages as they become ready.
pub async fn start(
    shared: &Shared,
    call: GenerateCall,
    context: CallContext,
    sending: Sending,
) -> Result<GenerateStream, RequestError> {
    let generation = start_generation(&shared.admission, &shared.metrics, call, context).await?;
    let state = Some(Sender::new(generation, sending));
    Ok(Box::pin(stream::unfold(state, |state| async move {
        let mut sender = state?;
        match sender.next().await? {
            Ok(message) => Some((Ok(message), Some(sender))),
            Err(error) => Some((Err(status_of(&error)), None)),
        }
    })))
}

/// Gathers pieces into messages.
struct Sender {
    generation: AccountedGeneration,
    sending: Sending,
    /// What is gathered of each continuation.
    gathered: Vec<Piece>,
}

impl Sender {
    fn new(generation: AccountedGeneration, sending: Sending) -> Self {
        Self {
            generation,
            sending,
            gathered: Vec::new(),
        }
    }

    async fn next(&mut self) -> Option<Result<GenerateResponse, RequestError>> {
        loop {
            let piece = match self.generation.next().await? {
                Ok(piece) => piece,
                Err(error) => return Some(Err(error)),
            };
            if let Some(piece) = self.gather(piece) {
                return Some(Ok(self.encode(piece)));
            }
        }
    }

    /// Adds a piece to those of its continuation; returns them when they are to be sent.
    fn gather(&mut self, piece: Piece) -> Option<Piece> {
        if self.sending.interval == 1 || piece.is_prompt {
            return Some(piece);
        }
        let index = piece.index as usize;
        if self.gathered.len() <= index {
            self.gathered.resize_with(index + 1, Piece::default);
        }
        let gathered = &mut self.gathered[index];
        gathered.index = piece.index;
        gathered.text.push_str(&piece.text);
        gathered.tokens.extend(piece.tokens);
        gathered.finish = piece.finish;
        let is_due = gathered.finish.is_some() || gathered.tokens.len() >= self.sending.interval;
        is_due.then(|| std::mem::take(gathered))
    }

    fn encode(&self, piece: Piece) -> GenerateResponse {
        GenerateResponse {
            model: Some(rows::model_info(&self.generation.model)),
            index: piece.index,
            text: piece.text,
            tokens: piece.tokens.into_iter().map(token).collect(),
            finish: piece.finish.map(|finish| self.finish(finish)),
        }
    }

    fn finish(&self, finish: PieceFinish) -> Finish {
        let reason = if finish.ending.is_stop() {
            FinishReason::Stop
        } else {
            FinishReason::Length
        };
        let stop_text = match finish.ending {
            Ending::Text(text) => text,
            _ => String::new(),
        };
        Finish {
            reason: reason.into(),
            stop_text,
            prompt_tokens: self.generation.prompt_tokens,
            generated_tokens: finish.generated_tokens,
            cached_tokens: finish.cached_tokens,
            cached: finish.cached,
            confidence: finish.confidence,
            low_confidence: finish.confidence < self.sending.min_confidence,
            first_token_us: finish.first_token.as_micros() as u64,
            anomalies: rows::anomalies(finish.anomalies),
            escalation: finish.escalation.as_deref().map(rows::escalated),
            abstained: finish.abstained,
            total_us: self.generation.received.elapsed().as_micros() as u64,
        }
    }
}

fn token(token: PieceToken) -> GeneratedToken {
    GeneratedToken {
        text: token.text(),
        id: token.id,
        logprob: token.logprob,
        alternatives: token
            .alternatives
            .into_iter()
            .map(|alternative| TokenAlternative {
                id: alternative.id,
                text: alternative.text(),
                logprob: alternative.logprob,
            })
            .collect(),
    }
}
