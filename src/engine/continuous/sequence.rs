//! One sequence in the runner: what it is to become, and what became of it so far.

use std::{sync::Arc, time::Instant};

use super::stream::{EventSink, ScoredToken, SequenceEvent};
use crate::{
    error::RequestError,
    generation::{FinishReason, Sampled, Sampler, SamplingParameters, TokenConstraint},
};

/// One sequence to generate.
#[derive(Debug)]
pub struct SequenceWork {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; at least one.
    pub max_new_tokens: u32,
    /// How tokens are drawn.
    pub sampling: SamplingParameters,
    /// What the draws are made from.
    pub seed: u64,
    /// Tokens that end the sequence. They are reported, so that they count, and nothing follows.
    pub stop_tokens: Arc<[u32]>,
    /// The form the text must have.
    pub constraint: Option<Box<dyn TokenConstraint>>,
    /// Whether the prompt's own tokens are scored too.
    pub score_prompt: bool,
}

/// A sequence that the scheduler knows.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) sampler: Sampler,
    pub(super) constraint: Option<Box<dyn TokenConstraint>>,
    stop_tokens: Arc<[u32]>,
    max_new_tokens: u32,
    generated: u32,
    /// Scores of the prompt's tokens so far, while they are wanted and not all there.
    pub(super) prompt_scores: Option<Vec<ScoredToken>>,
    pub(super) arrived: Instant,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    pub(super) is_paused: bool,
    pub(super) events: EventSink,
}

impl Active {
    /// The state of a sequence that begins, and its prompt for the scheduler.
    pub(super) fn begin(
        work: SequenceWork,
        arrived: Instant,
        events: EventSink,
    ) -> (Self, Vec<u32>) {
        let mut sampler = Sampler::new(&work.sampling, work.seed);
        sampler.accept_prompt(&work.prompt);
        let prompt_scores = work.score_prompt.then(|| {
            vec![ScoredToken {
                id: work.prompt[0],
                logprob: None,
                top: Vec::new(),
            }]
        });
        let active = Self {
            sampler,
            constraint: work.constraint,
            stop_tokens: work.stop_tokens,
            max_new_tokens: work.max_new_tokens,
            generated: 0,
            prompt_scores,
            arrived,
            first_token: None,
            last_token: None,
            is_paused: false,
            events,
        };
        (active, work.prompt)
    }

    /// Takes a sampled token and sends it on; tells why the sequence ends, if it does.
    pub(super) fn take(
        &mut self,
        sampled: Sampled,
        now: Instant,
    ) -> Result<Option<FinishReason>, RequestError> {
        if let Some(scores) = self.prompt_scores.take() {
            self.events.send(SequenceEvent::Prompt(scores));
        }
        let token = sampled.token;
        self.sampler.accept(token);
        self.generated += 1;
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.events.send(SequenceEvent::Token(ScoredToken {
            id: token,
            logprob: Some(sampled.logprob),
            top: sampled.top,
        }));
        if self.stop_tokens.contains(&token) {
            return Ok(Some(FinishReason::StopToken { token }));
        }
        if let Some(constraint) = &mut self.constraint {
            constraint
                .accept(token)
                .map_err(|error| RequestError::internal(format_args!("constraint: {error}")))?;
            if constraint.is_complete() {
                return Ok(Some(FinishReason::Complete));
            }
        }
        Ok((self.generated >= self.max_new_tokens).then_some(FinishReason::Length))
    }

    /// Sends the end.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        self.events.end(SequenceEvent::Finished(reason));
    }

    /// Sends the end, by a failure.
    pub(super) fn fail(&mut self, error: RequestError) {
        self.events.end(SequenceEvent::Failed(error));
    }
}
