//! One continuation: its tokens become text, held back where they may become a stop text.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{
    piece::{Alternative, Ending, Finish, Piece, PieceToken},
    source::EventSource,
};
use crate::{
    engine::continuous::{ScoredToken, SequenceEvent},
    error::RequestError,
    generation::{FinishReason, StopText},
    quality::drift::Anomalies,
    telemetry::traces::Sequence,
    text::{Detokenizer, GenerationText, SpecialTokens},
};

#[derive(Debug)]
pub(super) struct Continuation {
    pub(super) index: u32,
    /// `None` when it has ended.
    pub(super) stream: Option<EventSource>,
    pub(super) text: Arc<GenerationText>,
    pub(super) detokenizer: Detokenizer,
    pub(super) stop: StopText,
    /// The texts that `stop` looks for.
    pub(super) stop_texts: Arc<[String]>,
    pub(super) stop_tokens: Arc<[u32]>,
    /// Tokens to generate; 0 when only the prompt is wanted.
    pub(super) max_tokens: u32,
    /// When the request came in.
    pub(super) received: Instant,
    /// From then to the first token.
    pub(super) first_token: Option<Duration>,
    pub(super) special_tokens: SpecialTokens,
    pub(super) generated: u32,
    pub(super) sum_logprob: f64,
    /// What is to be sent with the next event, which is known to come at once.
    pub(super) held: Piece,
    /// What is noted of it, where its request is traced.
    pub(super) trace: Option<Box<Sequence>>,
}

impl Continuation {
    pub(super) fn has_ended(&self) -> bool {
        self.stream.is_none()
    }

    /// The next piece; to be asked until [`Continuation::has_ended`].
    pub(super) fn poll_piece(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Piece, RequestError>> {
        loop {
            let Some(stream) = &mut self.stream else {
                return Poll::Pending;
            };
            let event = std::task::ready!(stream.poll_next(context));
            let piece = match event {
                Some(SequenceEvent::Prompt(scored)) => Some(self.prompt(scored)),
                Some(SequenceEvent::Token(scored)) => self.token(scored),
                Some(SequenceEvent::Finished(finished)) => Some(self.finished(finished)),
                Some(SequenceEvent::Failed(error)) => {
                    self.stream = None;
                    return Poll::Ready(Err(error));
                }
                None => {
                    self.stream = None;
                    let what = "a sequence ended without saying how";
                    return Poll::Ready(Err(RequestError::internal(what)));
                }
            };
            if let Some(piece) = piece {
                return Poll::Ready(Ok(piece));
            }
        }
    }

    /// The echoed prompt with its scores.
    fn prompt(&self, scored: Vec<ScoredToken>) -> Piece {
        let ids: Vec<u32> = scored.iter().map(|token| token.id).collect();
        Piece {
            index: self.index,
            is_prompt: true,
            text: self.text.decode(&ids, self.special_tokens),
            tokens: scored
                .into_iter()
                .map(|token| self.piece_token(token))
                .collect(),
            finish: None,
        }
    }

    /// A generated token; `None` where what it means shows with the next event only.
    fn token(&mut self, scored: ScoredToken) -> Option<Piece> {
        self.generated += 1;
        self.first_token
            .get_or_insert_with(|| self.received.elapsed());
        if let Some(trace) = &mut self.trace {
            trace.note_token(Instant::now());
        }
        if self.generated > self.max_tokens {
            // Only the prompt was wanted.
            return None;
        }
        self.sum_logprob += f64::from(scored.logprob.unwrap_or(0.0));
        if self.stop_tokens.contains(&scored.id) {
            return None;
        }
        let new = self.detokenizer.push(scored.id);
        let pushed = self.stop.push(&new);
        let mut piece = std::mem::take(&mut self.held);
        piece.index = self.index;
        piece.text.push_str(&pushed.text);
        piece.tokens.push(self.piece_token(scored));
        if let Some(stop) = pushed.stop {
            piece.finish = Some(self.finish(Ending::Text(self.stop_texts[stop].clone())));
            return Some(piece);
        }
        if self.generated == self.max_tokens {
            // The end comes with the next event; one message for both.
            self.held = piece;
            return None;
        }
        Some(piece)
    }

    fn finished(&mut self, reason: FinishReason) -> Piece {
        let mut piece = std::mem::take(&mut self.held);
        piece.index = self.index;
        let pushed = self.stop.push(&self.detokenizer.finish());
        piece.text.push_str(&pushed.text);
        let mut ending = match reason {
            FinishReason::StopToken { token } => Ending::Token(token),
            FinishReason::Complete => Ending::Constraint,
            FinishReason::Length => Ending::Length,
        };
        match pushed.stop {
            Some(stop) => ending = Ending::Text(self.stop_texts[stop].clone()),
            None => piece.text.push_str(&self.stop.finish()),
        }
        piece.finish = Some(self.finish(ending));
        piece
    }

    /// Ends it, which cancels the sequence where it hasn't ended by itself.
    fn finish(&mut self, ending: Ending) -> Finish {
        let closed = self.stream.take().map(EventSource::close);
        let closed = closed.unwrap_or_default();
        if let Some(trace) = &mut self.trace {
            trace.started = closed.started;
            trace.cached_tokens = closed.cached_tokens;
        }
        let generated = self.generated.min(self.max_tokens);
        Finish {
            ending,
            generated_tokens: generated,
            cached_tokens: closed.cached_tokens,
            cached: closed.replayed,
            escalation: None,
            abstained: false,
            anomalies: Anomalies::default(),
            confidence: (self.sum_logprob / f64::from(generated.max(1))).exp() as f32,
            first_token: self.first_token.unwrap_or_default(),
        }
    }

    fn piece_token(&self, scored: ScoredToken) -> PieceToken {
        PieceToken {
            id: scored.id,
            bytes: self.text.token_bytes(scored.id).to_vec(),
            logprob: scored.logprob,
            alternatives: scored
                .top
                .into_iter()
                .map(|(id, logprob)| Alternative {
                    id,
                    bytes: self.text.token_bytes(id).to_vec(),
                    logprob,
                })
                .collect(),
        }
    }
}
