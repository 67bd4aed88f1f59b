//! Answers by their questions' names, bounded in bytes.
//!
//! What to forget first is `quick_cache`'s choice (S3-FIFO: what was asked once makes way before
//! what was asked again). The bound holds at every moment, not just on average.

use std::{
    fmt,
    time::{Duration, Instant},
};

use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter, unsync::Cache};

use super::key::Key;
use crate::telemetry::CacheMetrics;

/// What an entry takes beside its answer: key, places in the tables, the answer's own headers.
const ENTRY_BYTES: usize = 192;

/// Answers may take this share of the whole at most, so that one does not drive out all others.
const LARGEST_SHARE: usize = 8;

/// Answers by their questions' names.
pub struct Store<V> {
    entries: Cache<Key, Entry<V>, InBytes, DefaultHashBuilder, Forgotten>,
    max_bytes: usize,
    time_to_live: Option<Duration>,
    metrics: CacheMetrics,
}

#[derive(Debug, Clone)]
struct Entry<V> {
    answer: V,
    bytes: u64,
    since: Instant,
}

#[derive(Debug, Clone)]
struct InBytes;

impl<V> Weighter<Key, Entry<V>> for InBytes {
    fn weight(&self, _: &Key, entry: &Entry<V>) -> u64 {
        entry.bytes
    }
}

/// Counts what had to make way.
#[derive(Debug, Clone)]
struct Forgotten;

impl<V> Lifecycle<Key, V> for Forgotten {
    type RequestState = u64;

    fn on_evict(&self, forgotten: &mut u64, _: Key, _: V) {
        *forgotten += 1;
    }
}

impl<V: Clone> Store<V> {
    /// An empty store that takes `max_bytes` at most, all included.
    ///
    /// # Panics
    /// Never: all that the options need is given.
    pub fn new(max_bytes: usize, time_to_live: Option<Duration>, metrics: CacheMetrics) -> Self {
        let options = OptionsBuilder::new()
            // Grows with what comes in; this is where it starts.
            .estimated_items_capacity((max_bytes / 4096).clamp(16, 4096))
            .weight_capacity(max_bytes as u64)
            .shards(1)
            .build()
            .expect("both capacities are set");
        let hasher = DefaultHashBuilder::default();
        Self {
            entries: Cache::with_options(options, InBytes, hasher, Forgotten),
            max_bytes,
            time_to_live,
            metrics,
        }
    }

    /// The answer to the question of that name, if it is here and young enough at `now`.
    pub fn find(&mut self, key: &Key, now: Instant) -> Option<V> {
        let entry = self.entries.get(key)?;
        let age = now.saturating_duration_since(entry.since);
        if self.time_to_live.is_none_or(|most| age < most) {
            return Some(entry.answer.clone());
        }
        let before = self.entries.weight();
        self.entries.remove(key);
        self.metrics.expired.inc();
        self.note_bytes(before);
        None
    }

    /// Keeps an answer of `bytes` bytes, beside or in place of others. One that is too large is not
    /// kept.
    pub fn keep(&mut self, key: Key, answer: V, bytes: usize, now: Instant) {
        if bytes > self.largest() {
            return;
        }
        let before = self.entries.weight();
        let entry = Entry {
            answer,
            bytes: (bytes + ENTRY_BYTES) as u64,
            since: now,
        };
        let mut forgotten = 0;
        self.entries
            .insert_with_lifecycle(key, entry, &mut forgotten);
        self.metrics.evicted.inc_by(forgotten);
        self.note_bytes(before);
        debug_assert!(self.bytes() <= self.max_bytes, "the bound holds");
    }

    /// Bytes of the largest answer that is kept.
    pub fn largest(&self) -> usize {
        (self.max_bytes / LARGEST_SHARE).saturating_sub(ENTRY_BYTES)
    }

    /// Bytes of all that is here.
    pub fn bytes(&self) -> usize {
        self.entries.weight() as usize
    }

    /// Answers here.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<V> Store<V> {
    /// Two loads of one version share a gauge, so changes are told and not totals.
    fn note_bytes(&self, before: u64) {
        let now = self.entries.weight();
        self.metrics.bytes.add(now as i64 - before as i64);
    }
}

impl<V> Drop for Store<V> {
    fn drop(&mut self) {
        self.metrics.bytes.sub(self.entries.weight() as i64);
    }
}

impl<V> fmt::Debug for Store<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("max_bytes", &self.max_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cache::KeyBuilder, telemetry::Metrics};

    fn metrics() -> CacheMetrics {
        Metrics::new().cache("model", "1")
    }

    fn key(number: u64) -> Key {
        KeyBuilder::new().number(number).finish()
    }

    #[test]
    fn the_bound_holds_at_every_moment_of_random_traffic() {
        let metrics = metrics();
        let max_bytes = 64 << 10;
        let mut store = Store::new(max_bytes, None, metrics.clone());
        let now = Instant::now();
        let mut random = 7_u64;
        for _ in 0..20_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let (question, bytes) = ((random >> 33) % 500, (random >> 45) as usize % 10_000);
            if store.find(&key(question), now).is_none() {
                store.keep(key(question), question, bytes, now);
            }
            assert!(store.bytes() <= max_bytes);
            assert_eq!(metrics.bytes.get(), store.bytes() as i64);
        }
        assert!(!store.is_empty() && store.bytes() > max_bytes / 2);
        assert!(metrics.evicted.get() > 100);
        drop(store);
        assert_eq!(metrics.bytes.get(), 0);
    }

    #[test]
    fn what_was_asked_again_outlives_a_scan() {
        let now = Instant::now();
        let mut store = Store::new(64 << 10, None, metrics());
        store.keep(key(0), 0, 100, now);
        for number in 1..10_000 {
            assert_eq!(store.find(&key(0), now), Some(0), "after {number}");
            store.keep(key(number), number, 100, now);
        }
    }

    #[test]
    fn an_answer_is_forgotten_at_its_age() {
        let now = Instant::now();
        let metrics = metrics();
        let mut store = Store::new(1 << 20, Some(Duration::from_secs(10)), metrics.clone());
        store.keep(key(1), "answer", 10, now);
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(store.find(&key(1), later(9)), Some("answer"));
        assert_eq!(store.find(&key(1), later(10)), None);
        assert_eq!((metrics.expired.get(), store.bytes()), (1, 0));
    }

    #[test]
    fn an_answer_that_is_too_large_drives_out_nothing() {
        let now = Instant::now();
        let mut store = Store::new(1 << 20, None, metrics());
        store.keep(key(1), 1, 100, now);
        store.keep(key(2), 2, store.largest() + 1, now);
        store.keep(key(3), 3, store.largest(), now);
        assert_eq!(store.find(&key(1), now), Some(1));
        assert_eq!(store.find(&key(2), now), None);
        assert_eq!(store.find(&key(3), now), Some(3));
    }
}
