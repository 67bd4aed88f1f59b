//! The checks of a call to generate, and its way into line.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher},
    sync::Arc,
    time::Instant,
};

use super::{
    call::{GenerateCall, MAX_CONTINUATIONS, Prompt},
    continuation::Continuation,
    piece::{Piece, PieceToken},
    prepare::Prepared,
    source::{self, EventSource},
    stream::Generation,
};
use crate::{
    admission::{Admission, CallContext},
    engine::{Departure, continuous::SequenceWork},
    error::{RequestError, Stage},
    generation::{InvalidStop, MAX_STOP_BYTES, MAX_STOP_STRINGS, StopText, TokenConstraint},
    repository::{ServedDecoder, ServedModel},
    telemetry::traces::Sequence,
    text::{GenerationText, SpecialTokens},
};

impl Admission {
    /// Lets a call to generate in, for `model` from [`Admission::find_generator`].
    ///
    /// # Errors
    /// [`RequestError`] when the call is wrong, comes too late or finds no room.
    pub async fn generate(
        &self,
        model: Arc<ServedModel>,
        call: GenerateCall,
        context: CallContext,
    ) -> Result<Generation, RequestError> {
        let unsure = self.unsure(&model, &call, &context)?;
        let further = unsure.map(|unsure| (unsure, call.clone(), context.clone()));
        let mut generation = self
            .line_up_generation(Arc::clone(&model), call, context)
            .await?;
        generation.tap = self.mirror_generation(&model, &generation.prompt);
        let Some((unsure, call, context)) = further else {
            return Ok(generation);
        };
        Ok(Generation {
            model,
            prompt_tokens: generation.prompt_tokens,
            tokenize: generation.tokenize,
            tokenize_started: generation.tokenize_started,
            cached: generation.cached,
            prompt: Vec::new(),
            tap: None,
            continuations: Vec::new(),
            turn: 0,
            ready: VecDeque::new(),
            has_failed: false,
            settling: Some(self.settle(generation, unsure, call, context)),
            settled: Vec::new(),
        })
    }

    /// Lets a call in of which nobody gets a copy.
    #[allow(clippy::too_many_lines, reason = "one step after the other")]
    pub(in crate::admission) async fn line_up_generation(
        &self,
        model: Arc<ServedModel>,
        call: GenerateCall,
        context: CallContext,
    ) -> Result<Generation, RequestError> {
        let decoder = Arc::clone(model.decoder()?);
        self.check(&call, &decoder)?;
        let stop = StopText::new(&call.stop, call.include_stop).map_err(stop_error)?;
        let stop_texts: Arc<[String]> = call.stop.clone().into();
        let started = Instant::now();
        let preparing = self.prepare(&decoder, &call);
        let Prepared {
            prompt,
            constraints,
        } = match context.deadline {
            None => preparing.await?,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), preparing)
                .await
                .map_err(|_| RequestError::DeadlineExceeded {
                    stage: Stage::Tokenize,
                })??,
        };
        let tokenize = started.elapsed();
        model.metrics.tokenize.observe(tokenize.as_secs_f64());
        let max_tokens = max_tokens(&call, &decoder, prompt.len())?;

        let stop_tokens = stop_tokens(&call, &decoder.text);
        let seed = call.sampling.seed.unwrap_or_else(random_seed);
        let mut constraints = constraints.into_iter();
        let work = (0..call.continuations)
            .map(|index| SequenceWork {
                prompt: prompt.clone(),
                max_new_tokens: max_tokens.max(1),
                sampling: call.sampling.clone(),
                seed: seed.wrapping_add(u64::from(index)),
                stop_tokens: Arc::clone(&stop_tokens),
                constraint: constraints
                    .next()
                    .map(|masks| Box::new(masks) as Box<dyn TokenConstraint>),
                score_prompt: call.echo && call.score_prompt,
            })
            .collect();
        let departure = Departure {
            deadline: context.deadline,
            priority: context.priority,
            tenant: Arc::clone(&context.tenant),
            trace: None,
        };
        let boarded = Instant::now();
        let streams = source::board(&decoder, &call, work, &departure)?;
        let all_replayed = streams.iter().all(EventSource::is_replayed);

        let special_tokens = if call.keep_special_tokens {
            SpecialTokens::Show
        } else {
            SpecialTokens::Skip
        };
        let continuations = streams
            .into_iter()
            .zip(0..)
            .map(|(stream, index)| Continuation {
                index,
                stream: Some(stream),
                text: Arc::clone(&decoder.text),
                detokenizer: decoder.text.detokenizer(special_tokens),
                stop: stop.clone(),
                stop_texts: Arc::clone(&stop_texts),
                stop_tokens: Arc::clone(&stop_tokens),
                max_tokens,
                received: context.received,
                first_token: None,
                special_tokens,
                generated: 0,
                sum_logprob: 0.0,
                held: Piece::default(),
                trace: context
                    .trace
                    .as_ref()
                    .map(|trace| Box::new(Sequence::new(boarded, trace.max_token_events()))),
            });
        let continuations: Vec<_> = continuations.collect();
        // With scores the echo comes from the engine; without, there is nothing to wait for.
        let ready = if call.echo && !call.score_prompt {
            let piece = echo(&decoder.text, &prompt, special_tokens);
            (0..call.continuations)
                .map(|index| Piece {
                    index,
                    ..piece.clone()
                })
                .collect()
        } else {
            VecDeque::new()
        };
        Ok(Generation {
            model,
            prompt_tokens: prompt.len() as u32,
            prompt,
            tap: None,
            tokenize,
            tokenize_started: started,
            cached: decoder.cache.is_some().then_some(all_replayed),
            continuations,
            turn: 0,
            ready,
            has_failed: false,
            settling: None,
            settled: Vec::new(),
        })
    }

    /// The checks that need no tokenizer.
    fn check(&self, call: &GenerateCall, decoder: &ServedDecoder) -> Result<(), RequestError> {
        if !(1..=MAX_CONTINUATIONS).contains(&call.continuations) {
            return Err(RequestError::invalid(
                "n",
                call.continuations,
                format_args!("1 to {MAX_CONTINUATIONS}"),
            ));
        }
        let vocabulary = decoder.vocabulary;
        call.sampling
            .validate(vocabulary)
            .map_err(|error| RequestError::invalid(error.name, error.found, error.allowed))?;
        if let Some(id) = call
            .stop_tokens
            .iter()
            .find(|&&id| id as usize >= vocabulary)
        {
            return Err(RequestError::invalid(
                "stop_token_ids",
                format_args!("token id {id}"),
                format_args!("ids from 0 to {}", vocabulary - 1),
            ));
        }
        let (field, bytes) = match &call.prompt {
            Prompt::Text(text) => ("prompt", text.len()),
            Prompt::Tokens(ids) => ("prompt", ids.len()),
            Prompt::Chat { messages, .. } => (
                "messages",
                messages.iter().map(|message| message.content.len()).sum(),
            ),
        };
        let most = self.limits().max_text_bytes;
        if bytes > most {
            return Err(RequestError::invalid(
                field,
                format_args!("{bytes} bytes"),
                format_args!("at most {most} bytes"),
            ));
        }
        Ok(())
    }
}

/// How many tokens may be generated after a prompt of `prompt` tokens.
fn max_tokens(
    call: &GenerateCall,
    decoder: &ServedDecoder,
    prompt: usize,
) -> Result<u32, RequestError> {
    let context = decoder.max_sequence_tokens;
    let Some(left) = context.checked_sub(prompt).filter(|&left| left > 0) else {
        return Err(RequestError::invalid(
            "prompt",
            format_args!("{prompt} tokens"),
            format_args!("fewer than {context}, the longest sequence of this model here"),
        ));
    };
    let asked = match call.max_tokens {
        None if decoder.default_max_tokens == 0 => return Ok(left as u32),
        None => return Ok(decoder.default_max_tokens.min(left as u32)),
        Some(asked) => asked,
    };
    if asked == 0 && !call.echo {
        return Err(RequestError::invalid(
            "max_tokens",
            0,
            "1 or more; 0 only with echo",
        ));
    }
    if asked as usize > left {
        return Err(RequestError::invalid(
            "max_tokens",
            asked,
            format_args!(
                "at most {left}: the prompt has {prompt} tokens, the longest sequence of this \
                 model here {context}"
            ),
        ));
    }
    Ok(asked)
}

fn stop_tokens(call: &GenerateCall, text: &GenerationText) -> Arc<[u32]> {
    let own = if call.ignore_eos {
        &[]
    } else {
        text.eos_tokens()
    };
    own.iter().chain(&call.stop_tokens).copied().collect()
}

fn echo(text: &GenerationText, prompt: &[u32], special_tokens: SpecialTokens) -> Piece {
    Piece {
        is_prompt: true,
        text: text.decode(prompt, special_tokens),
        tokens: prompt
            .iter()
            .map(|&id| PieceToken {
                id,
                bytes: text.token_bytes(id).to_vec(),
                logprob: None,
                alternatives: Vec::new(),
            })
            .collect(),
        ..Piece::default()
    }
}

/// A seed that nobody asked for: the standard library's hash keys are random.
fn random_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

fn stop_error(error: InvalidStop) -> RequestError {
    let field = match error {
        InvalidStop::TooMany { .. } => "stop".to_owned(),
        InvalidStop::Empty { index } | InvalidStop::TooLong { index, .. } => {
            format!("stop[{index}]")
        }
    };
    let found = match error {
        InvalidStop::TooMany { found } => format!("{found} texts"),
        InvalidStop::Empty { .. } => "an empty text".to_owned(),
        InvalidStop::TooLong { found, .. } => format!("{found} bytes"),
    };
    let allowed = format!("at most {MAX_STOP_STRINGS} texts of 1 to {MAX_STOP_BYTES} bytes");
    RequestError::invalid(field, found, allowed)
}
