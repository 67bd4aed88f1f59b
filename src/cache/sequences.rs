//! Whole generations, kept as the engine told them: token by token, with their scores.
//!
//! A kept one is played again to the same reader that reads from the engine, so text, stop texts and
//! pieces come out as they did. Equal generations that are under way at the same time are not
//! shared: a reader that is slow would hold up the others, and what is costly of the second one, its
//! prompt, is shared by the blocks of the KV cache already.

use std::{
    mem::size_of,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{key::Key, store::Store};
use crate::{
    engine::continuous::{ScoredToken, SequenceEvent},
    generation::FinishReason,
    telemetry::CacheMetrics,
};

/// A generation from its first event to its last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordedSequence {
    prompt: Option<Vec<ScoredToken>>,
    tokens: Vec<ScoredToken>,
    /// `None` where the reader ended it, by a stop text.
    end: Option<FinishReason>,
    /// Prompt tokens whose keys and values were found in the KV cache.
    pub cached_tokens: u32,
}

/// Keeps generations of one model version.
#[derive(Debug)]
pub struct SequenceCache {
    kept: Mutex<Store<Arc<RecordedSequence>>>,
    metrics: CacheMetrics,
    largest: usize,
    /// Bytes of the recordings under way, bounded as what is kept is.
    recording: AtomicUsize,
    max_bytes: usize,
}

impl SequenceCache {
    /// An empty cache of at most `max_bytes`.
    pub fn new(max_bytes: usize, time_to_live: Option<Duration>, metrics: CacheMetrics) -> Self {
        let kept = Store::new(max_bytes, time_to_live, metrics.clone());
        Self {
            largest: kept.largest(),
            kept: Mutex::new(kept),
            metrics,
            recording: AtomicUsize::new(0),
            max_bytes,
        }
    }

    /// The generation of that name, to be read again; or what records it.
    ///
    /// # Errors
    /// A [`Recorder`] when it is not here.
    pub fn replay_or_record(self: &Arc<Self>, key: Key) -> Result<Replay, Recorder> {
        let found = self.lock().find(&key, Instant::now());
        if let Some(sequence) = found {
            self.metrics.hits.inc();
            return Ok(Replay {
                sequence,
                next: Next::Prompt,
            });
        }
        self.metrics.misses.inc();
        Err(Recorder {
            cache: Arc::clone(self),
            key,
            sequence: Some(RecordedSequence::default()),
            bytes: 0,
        })
    }

    /// Generations kept, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        let kept = self.lock();
        (kept.len(), kept.bytes())
    }

    fn lock(&self) -> MutexGuard<'_, Store<Arc<RecordedSequence>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records a generation under way. What is not complete when it is dropped is not kept.
#[derive(Debug)]
pub struct Recorder {
    cache: Arc<SequenceCache>,
    key: Key,
    /// `None` when it is kept, or has failed or grown too large to be.
    sequence: Option<RecordedSequence>,
    bytes: usize,
}

impl Recorder {
    /// Notes an event; the last one completes the recording.
    pub fn note(&mut self, event: &SequenceEvent, cached_tokens: u32) {
        match event {
            SequenceEvent::Prompt(tokens) => {
                self.grow(tokens, |sequence| sequence.prompt = Some(tokens.clone()));
            }
            SequenceEvent::Token(token) => {
                let token = std::slice::from_ref(token);
                self.grow(token, |sequence| sequence.tokens.extend_from_slice(token));
            }
            SequenceEvent::Finished(reason) => self.complete(Some(*reason), cached_tokens),
            SequenceEvent::Failed(_) => self.forget(),
        }
    }

    /// Completes it where the reader has seen all it wants.
    pub fn complete_here(&mut self, cached_tokens: u32) {
        self.complete(None, cached_tokens);
    }

    fn complete(&mut self, end: Option<FinishReason>, cached_tokens: u32) {
        let Some(mut sequence) = self.sequence.take() else {
            return;
        };
        sequence.tokens.shrink_to_fit();
        sequence.end = end;
        sequence.cached_tokens = cached_tokens;
        let (sequence, now) = (Arc::new(sequence), Instant::now());
        self.cache.lock().keep(self.key, sequence, self.bytes, now);
        self.forget();
    }

    fn grow(&mut self, tokens: &[ScoredToken], add: impl FnOnce(&mut RecordedSequence)) {
        let Some(sequence) = &mut self.sequence else {
            return;
        };
        let bytes: usize = tokens.iter().map(bytes_of).sum();
        self.bytes += bytes;
        let all = self.cache.recording.fetch_add(bytes, Relaxed) + bytes;
        if self.bytes > self.cache.largest || all > self.cache.max_bytes {
            self.forget();
        } else {
            add(sequence);
        }
    }

    fn forget(&mut self) {
        self.sequence = None;
        let bytes = std::mem::take(&mut self.bytes);
        self.cache.recording.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.forget();
    }
}

fn bytes_of(token: &ScoredToken) -> usize {
    size_of::<ScoredToken>() + token.top.len() * size_of::<(u32, f32)>()
}

/// Plays a kept generation again.
#[derive(Debug)]
pub struct Replay {
    sequence: Arc<RecordedSequence>,
    next: Next,
}

#[derive(Debug)]
enum Next {
    Prompt,
    Token(usize),
    Nothing,
}

impl Replay {
    /// The next event; `None` after the last.
    pub fn next_event(&mut self) -> Option<SequenceEvent> {
        if matches!(self.next, Next::Prompt) {
            self.next = Next::Token(0);
            if let Some(prompt) = &self.sequence.prompt {
                return Some(SequenceEvent::Prompt(prompt.clone()));
            }
        }
        let Next::Token(at) = self.next else {
            return None;
        };
        if let Some(token) = self.sequence.tokens.get(at) {
            self.next = Next::Token(at + 1);
            return Some(SequenceEvent::Token(token.clone()));
        }
        self.next = Next::Nothing;
        self.sequence.end.map(SequenceEvent::Finished)
    }

    /// Prompt tokens whose keys and values were found in the KV cache when it was generated.
    pub fn cached_tokens(&self) -> u32 {
        self.sequence.cached_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cache::KeyBuilder, error::RequestError, telemetry::Metrics};

    fn cache(max_bytes: usize) -> Arc<SequenceCache> {
        let metrics = Metrics::new().cache("model", "1");
        Arc::new(SequenceCache::new(max_bytes, None, metrics))
    }

    fn key() -> Key {
        KeyBuilder::new().text("question").finish()
    }

    fn token(id: u32) -> ScoredToken {
        ScoredToken {
            id,
            logprob: Some(-0.5),
            top: vec![(id, -0.5), (id + 1, -1.5)],
        }
    }

    fn record(cache: &Arc<SequenceCache>, events: &[SequenceEvent]) -> Recorder {
        let mut recorder = cache.replay_or_record(key()).unwrap_err();
        for event in events {
            recorder.note(event, 3);
        }
        recorder
    }

    #[test]
    fn a_generation_is_played_again_event_by_event() {
        let cache = cache(1 << 20);
        let events = [
            SequenceEvent::Prompt(vec![token(1), token(2)]),
            SequenceEvent::Token(token(3)),
            SequenceEvent::Token(token(4)),
            SequenceEvent::Finished(FinishReason::Length),
        ];
        drop(record(&cache, &events));
        for _ in 0..2 {
            let mut replay = cache.replay_or_record(key()).unwrap();
            assert_eq!(replay.cached_tokens(), 3);
            let played: Vec<_> = std::iter::from_fn(|| replay.next_event()).collect();
            assert_eq!(played, events);
        }
        assert_eq!(cache.recording.load(Relaxed), 0);
    }

    #[test]
    fn what_breaks_off_or_fails_is_not_kept() {
        let cache = cache(1 << 20);
        drop(record(&cache, &[SequenceEvent::Token(token(3))]));
        let failed = SequenceEvent::Failed(RequestError::Cancelled);
        drop(record(&cache, &[SequenceEvent::Token(token(3)), failed]));
        assert!(cache.replay_or_record(key()).is_err());
        // But one that its reader has seen enough of is.
        let mut recorder = record(&cache, &[SequenceEvent::Token(token(3))]);
        recorder.complete_here(0);
        let mut replay = cache.replay_or_record(key()).unwrap();
        let event = Some(SequenceEvent::Token(token(3)));
        assert_eq!((replay.next_event(), replay.next_event()), (event, None));
    }

    #[test]
    fn recordings_under_way_are_bounded_too() {
        let cache = cache(64 << 10);
        let mut recorders: Vec<_> = (0..1000).map(|_| record(&cache, &[])).collect();
        for at in 0..100_000 {
            let recorder = &mut recorders[at % 1000];
            recorder.note(&SequenceEvent::Token(token(at as u32)), 0);
            assert!(cache.recording.load(Relaxed) <= 64 << 10);
        }
        drop(recorders);
        assert_eq!(cache.recording.load(Relaxed), 0);
        // One alone that is larger than its share is not kept.
        let mut recorder = record(&cache, &[]);
        for at in 0..1000 {
            recorder.note(&SequenceEvent::Token(token(at)), 0);
        }
        recorder.note(&SequenceEvent::Finished(FinishReason::Length), 0);
        assert_eq!(cache.size(), (0, 0));
    }
}
