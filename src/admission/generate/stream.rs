//! A generation under way: the pieces of all its continuations, as they become ready.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{
    continuation::Continuation,
    piece::Piece,
    settle::{Settled, Settling},
};
use crate::{
    admission::mirror::TokenTap, error::RequestError, repository::ServedModel,
    telemetry::traces::Sequence,
};

/// A generation whose sequences are in line. Dropping it cancels those that have not ended.
pub struct Generation {
    /// The model that generates.
    pub model: Arc<ServedModel>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Time the prompt took to be tokenized, waiting included.
    pub tokenize: Duration,
    /// When it began to be.
    pub tokenize_started: Instant,
    /// Whether nothing is generated, since the whole answer was kept; `None` where the model keeps
    /// none.
    pub cached: Option<bool>,
    pub(super) prompt: Vec<u32>,
    pub(super) tap: Option<TokenTap>,
    pub(super) continuations: Vec<Continuation>,
    /// Which one is asked first, so that none speaks for the others.
    pub(super) turn: usize,
    /// Pieces that are ready.
    pub(super) ready: VecDeque<Piece>,
    pub(super) has_failed: bool,
    /// Completes it, where it goes out whole and what is unsure of it is dealt with; the continuations
    /// are in there then.
    pub(super) settling: Option<Settling>,
    /// What was noted of sequences that are settled.
    pub(super) settled: Vec<Sequence>,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("model", &self.model.name)
            .field("continuations", &self.continuations)
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

impl Generation {
    /// The next piece of any continuation; `None` when all have ended. An error ends them all.
    pub async fn next(&mut self) -> Option<Result<Piece, RequestError>> {
        if let Some(settling) = &mut self.settling {
            let settled = settling.as_mut().await;
            self.settling = None;
            match settled {
                Ok(Settled { pieces, sequences }) => {
                    self.ready = pieces;
                    self.settled = sequences;
                }
                Err(error) => {
                    self.has_failed = true;
                    return Some(Err(error));
                }
            }
        }
        self.next_own().await
    }

    /// The same as its model generates it.
    pub(super) async fn next_own(&mut self) -> Option<Result<Piece, RequestError>> {
        let next = std::future::poll_fn(|context| self.poll_next(context)).await;
        if let (Some(tap), Some(Ok(piece))) = (&mut self.tap, &next)
            && piece.index == 0
            && !piece.is_prompt
        {
            let tokens = piece.tokens.iter().map(|token| token.id);
            tap.note(tokens, piece.finish.is_some());
        }
        next
    }

    /// Whether every continuation has ended and every piece was handed out.
    pub fn is_over(&self) -> bool {
        self.has_failed
            || self.settling.is_none()
                && self.ready.is_empty()
                && self.continuations.iter().all(Continuation::has_ended)
    }

    /// What was noted of its sequences, where it is traced.
    pub fn sequences(&mut self) -> Vec<Sequence> {
        let continuations = self.continuations.iter_mut();
        let own = continuations.filter_map(|continuation| continuation.trace.take());
        let settled = std::mem::take(&mut self.settled).into_iter();
        settled.chain(own.map(|sequence| *sequence)).collect()
    }

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, RequestError>>> {
        if let Some(piece) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(piece)));
        }
        if self.is_over() {
            return Poll::Ready(None);
        }
        let count = self.continuations.len();
        for at in (0..count).map(|offset| (self.turn + offset) % count) {
            if self.continuations[at].has_ended() {
                continue;
            }
            let Poll::Ready(piece) = self.continuations[at].poll_piece(context) else {
                continue;
            };
            self.turn = (at + 1) % count;
            if piece.is_err() {
                self.has_failed = true;
                self.continuations.clear();
            }
            return Poll::Ready(Some(piece));
        }
        Poll::Pending
    }
}
