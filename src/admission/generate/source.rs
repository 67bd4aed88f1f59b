//! Where a continuation's events come from: the engine, or a generation that was kept.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use super::{call::GenerateCall, question};
use crate::{
    cache::{Recorder, Replay},
    engine::{
        Departure,
        continuous::{SequenceEvent, SequenceStream, SequenceWork},
    },
    error::RequestError,
    repository::ServedDecoder,
};

/// The events of one continuation.
#[derive(Debug)]
pub(super) enum EventSource {
    /// Being generated.
    Engine(SequenceStream),
    /// Being generated, and kept for who asks the same again.
    Recorded(SequenceStream, Recorder),
    /// Generated before.
    Replayed(Replay),
}

/// Puts the continuations of `call` in line, as far as they are not kept.
pub(super) fn board(
    decoder: &ServedDecoder,
    call: &GenerateCall,
    work: Vec<SequenceWork>,
    departure: &Departure,
) -> Result<Vec<EventSource>, RequestError> {
    let Some(cache) = &decoder.cache else {
        let streams = submit(decoder, work, departure)?;
        return Ok(streams.into_iter().map(EventSource::Engine).collect());
    };
    let (mut to_run, mut plans) = (Vec::new(), Vec::new());
    for work in work {
        let key = question::name(call, &work);
        let found = key.map(|key| cache.replay_or_record(key));
        if !matches!(found, Some(Ok(_))) {
            to_run.push(work);
        }
        plans.push(found);
    }
    let mut streams = submit(decoder, to_run, departure)?.into_iter();
    let missing = || RequestError::internal("the engine gave a stream too few");
    plans
        .into_iter()
        .map(|plan| {
            Ok(match plan {
                Some(Ok(replay)) => EventSource::Replayed(replay),
                Some(Err(recorder)) => {
                    EventSource::Recorded(streams.next().ok_or_else(missing)?, recorder)
                }
                None => EventSource::Engine(streams.next().ok_or_else(missing)?),
            })
        })
        .collect()
}

fn submit(
    decoder: &ServedDecoder,
    work: Vec<SequenceWork>,
    departure: &Departure,
) -> Result<Vec<SequenceStream>, RequestError> {
    if work.is_empty() {
        return Ok(Vec::new());
    }
    let tokens: usize = work.iter().map(|work| work.prompt.len()).sum();
    let streams = decoder.engine.submit(work, departure, Instant::now())?;
    decoder.metrics.prompt_tokens.inc_by(tokens as u64);
    Ok(streams)
}

impl EventSource {
    /// The next event; `None` after the last.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<SequenceEvent>> {
        match self {
            Self::Engine(stream) => stream.poll_next(context),
            Self::Recorded(stream, recorder) => {
                let event = std::task::ready!(stream.poll_next(context));
                if let Some(event) = &event {
                    recorder.note(event, stream.cached_tokens());
                }
                Poll::Ready(event)
            }
            Self::Replayed(replay) => Poll::Ready(replay.next_event()),
        }
    }

    /// Ends it where its reader has seen all it wants: a sequence under way is cancelled.
    pub(super) fn close(mut self) -> Closed {
        if let Self::Recorded(stream, recorder) = &mut self {
            // Does nothing where the last event completed the recording.
            recorder.complete_here(stream.cached_tokens());
        }
        match &self {
            Self::Engine(stream) | Self::Recorded(stream, _) => Closed {
                cached_tokens: stream.cached_tokens(),
                replayed: false,
                started: stream.started(),
            },
            Self::Replayed(replay) => Closed {
                cached_tokens: replay.cached_tokens(),
                replayed: true,
                started: None,
            },
        }
    }

    /// Whether it was generated before.
    pub(super) fn is_replayed(&self) -> bool {
        matches!(self, Self::Replayed(_))
    }
}

/// What an ended source tells.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Closed {
    /// Prompt tokens whose keys and values were found in the KV cache.
    pub(super) cached_tokens: u32,
    /// Whether nothing was generated for it.
    pub(super) replayed: bool,
    /// When its first step began.
    pub(super) started: Option<Instant>,
}
