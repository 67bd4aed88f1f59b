//! The way a sequence's tokens take back to whoever reads them, bounded.
//!
//! When a stream is nearly full the runner pauses its sequence and raises a flag (`pause`); the
//! reader, having made room again, takes the flag away and asks to go on.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Instant,
};

use crossbeam::channel::Sender;
use tokio::sync::mpsc;

use super::{messages::Command, pause::Pause};
use crate::{
    error::RequestError,
    generation::{FinishReason, SequenceId},
};

/// Events that wait for a slow reader at most.
pub(super) const UNREAD: usize = 32;

/// Events that one step may cause: the prompt's scores, a token, the end.
const EVENTS_OF_A_STEP: usize = 3;

/// A token with what the model thought of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability; `None` for a prompt's first token.
    pub logprob: Option<f32>,
    /// The most likely tokens in its place, best first.
    pub top: Vec<(u32, f32)>,
}

/// What happens to a sequence, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum SequenceEvent {
    /// The prompt's tokens with their scores, where they were asked for; before all else.
    Prompt(Vec<ScoredToken>),
    /// One more token.
    Token(ScoredToken),
    /// The end; nothing comes after.
    Finished(FinishReason),
    /// The end, by a failure; nothing comes after.
    Failed(RequestError),
}

/// What both ends see.
#[derive(Debug, Default)]
struct Shared {
    pause: Pause,
    cached_tokens: AtomicU32,
    /// When the first step with a part of it began.
    started: OnceLock<Instant>,
}

/// The writing end, held by the runner.
#[derive(Debug)]
pub(super) struct EventSink {
    events: mpsc::Sender<SequenceEvent>,
    shared: Arc<Shared>,
    /// Whether the last event was sent.
    ended: bool,
}

/// The reading end. Dropping it before the end cancels the sequence.
#[derive(Debug)]
pub struct SequenceStream {
    events: mpsc::Receiver<SequenceEvent>,
    shared: Arc<Shared>,
    id: SequenceId,
    commands: Sender<Command>,
    ended: bool,
}

/// Both ends of a sequence's stream.
pub(super) fn stream(id: SequenceId, commands: Sender<Command>) -> (EventSink, SequenceStream) {
    let (sender, receiver) = mpsc::channel(UNREAD);
    let shared = Arc::<Shared>::default();
    let sink = EventSink {
        events: sender,
        shared: Arc::clone(&shared),
        ended: false,
    };
    let stream = SequenceStream {
        events: receiver,
        shared,
        id,
        commands,
        ended: false,
    };
    (sink, stream)
}

impl EventSink {
    /// Whether nobody reads any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Sends an event that is not the last. There is room, or the sequence would be paused.
    pub(super) fn send(&self, event: SequenceEvent) {
        // Fails only when the reader is gone, which the next step notices.
        let _ = self.events.try_send(event);
    }

    /// Sends the last event.
    pub(super) fn end(&mut self, event: SequenceEvent) {
        self.ended = true;
        let _ = self.events.try_send(event);
    }

    /// Tells how many of the prompt's tokens were found in the cache; before the first token.
    pub(super) fn note_cached(&self, tokens: u32) {
        self.shared.cached_tokens.store(tokens, SeqCst);
    }

    /// Tells when the first step with a part of it began. Only the first word counts.
    pub(super) fn note_started(&self, at: Instant) {
        if self.shared.started.get().is_none() {
            let _ = self.shared.started.set(at);
        }
    }

    /// Whether the sequence must pause: the next step's events might not fit.
    pub(super) fn must_pause(&self) -> bool {
        if self.events.capacity() >= EVENTS_OF_A_STEP {
            return false;
        }
        self.shared.pause.raise(|| self.has_caught_up())
    }

    /// Whether there is room enough to go on after a pause.
    pub(super) fn has_caught_up(&self) -> bool {
        self.events.capacity() >= UNREAD / 2
    }

    /// Notes that the sequence goes on.
    pub(super) fn resumed(&self) {
        self.shared.pause.lower();
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        if !self.ended {
            self.end(SequenceEvent::Failed(RequestError::internal(
                "the engine stopped before this sequence ended",
            )));
        }
    }
}

impl SequenceStream {
    /// Prompt tokens whose keys and values were found in the cache; known by the first token.
    pub fn cached_tokens(&self) -> u32 {
        self.shared.cached_tokens.load(SeqCst)
    }

    /// When the first step with a part of it began; known by the first token.
    pub fn started(&self) -> Option<Instant> {
        self.shared.started.get().copied()
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<SequenceEvent> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`SequenceStream::next`], to be polled beside others.
    pub fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<SequenceEvent>> {
        if self.ended {
            return std::task::Poll::Ready(None);
        }
        let event = std::task::ready!(self.events.poll_recv(context));
        self.account_for(event.as_ref());
        std::task::Poll::Ready(event)
    }

    /// As [`SequenceStream::next`], for a thread that may wait: not for one of the async world.
    pub fn blocking_next(&mut self) -> Option<SequenceEvent> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        self.account_for(event.as_ref());
        event
    }

    /// Notes the end, and asks a paused sequence to go on if there is room again.
    fn account_for(&mut self, event: Option<&SequenceEvent>) {
        self.ended = matches!(
            event,
            None | Some(SequenceEvent::Finished(_) | SequenceEvent::Failed(_))
        );
        if self.events.len() <= UNREAD / 4 && self.shared.pause.take() {
            // The runner looks by itself now and then, should the channel be full.
            let _ = self.commands.try_send(Command::Resume(self.id));
        }
    }
}

impl Drop for SequenceStream {
    fn drop(&mut self) {
        if !self.ended {
            self.events.close();
            // Lost when the channel is full; the runner sees the closed stream by its next step.
            let _ = self.commands.try_send(Command::Cancel(self.id));
        }
    }
}
