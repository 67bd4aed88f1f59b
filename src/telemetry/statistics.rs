//! Cumulative statistics of a model version, in the terms of the Open Inference Protocol's
//! statistics extension: times are sums in nanoseconds, so that two readings give a rate.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where the time of one answered request went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestTimes {
    /// From arrival to the last answer.
    pub total: Duration,
    /// Waiting to board.
    pub queue: Duration,
    /// Tokenizing.
    pub input: Duration,
    /// In the batch.
    pub execute: Duration,
    /// From the model's output to the answer.
    pub output: Duration,
}

/// Where the time of one batch went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchTimes {
    /// Packing the rows.
    pub input: Duration,
    /// Running the model.
    pub execute: Duration,
    /// Handing out the answers.
    pub output: Duration,
}

/// A count and a sum of times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatDuration {
    /// How often.
    pub count: u64,
    /// Sum in nanoseconds.
    pub ns: u64,
}

#[derive(Debug, Default)]
struct Sum {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Sum {
    fn add(&self, time: Duration) {
        self.add_times(1, time);
    }

    fn add_times(&self, count: usize, each: Duration) {
        self.count.fetch_add(count as u64, Relaxed);
        let all = each.as_nanos() as u64 * count as u64;
        self.ns.fetch_add(all, Relaxed);
    }

    fn read(&self) -> StatDuration {
        StatDuration {
            count: self.count.load(Relaxed),
            ns: self.ns.load(Relaxed),
        }
    }
}

#[derive(Debug, Default)]
struct BatchSums {
    input: Sum,
    execute: Sum,
    output: Sum,
}

/// The counters of one model version.
#[derive(Debug)]
pub struct ModelStatistics {
    last_inference_ms: AtomicU64,
    rows: AtomicU64,
    batches: AtomicU64,
    success: Sum,
    fail: Sum,
    queue: Sum,
    input: Sum,
    execute: Sum,
    output: Sum,
    cache_hit: Sum,
    cache_miss: Sum,
    /// By rows of the batch, from 1.
    by_size: Box<[BatchSums]>,
}

/// A reading of [`ModelStatistics`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Time of the last batch, in milliseconds since 1970.
    pub last_inference_ms: u64,
    /// Rows executed.
    pub rows: u64,
    /// Batches executed.
    pub batches: u64,
    /// Answered requests, total time.
    pub success: StatDuration,
    /// Failed requests, total time.
    pub fail: StatDuration,
    /// Answered requests, time waiting to board.
    pub queue: StatDuration,
    /// Answered requests, time tokenizing.
    pub input: StatDuration,
    /// Answered requests, time in the batch.
    pub execute: StatDuration,
    /// Answered requests, time to make the answer.
    pub output: StatDuration,
    /// Rows whose answer was in the response cache, time to look it up.
    pub cache_hit: StatDuration,
    /// Rows whose answer was not, time to find that out.
    pub cache_miss: StatDuration,
    /// Rows of a batch, and its input, execute and output times; sizes that occurred.
    pub by_size: Vec<(u64, [StatDuration; 3])>,
}

impl ModelStatistics {
    /// Counters for batches of up to `max_rows` rows.
    pub fn new(max_rows: usize) -> Self {
        Self {
            last_inference_ms: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            success: Sum::default(),
            fail: Sum::default(),
            queue: Sum::default(),
            input: Sum::default(),
            execute: Sum::default(),
            output: Sum::default(),
            cache_hit: Sum::default(),
            cache_miss: Sum::default(),
            by_size: (0..max_rows).map(|_| BatchSums::default()).collect(),
        }
    }

    /// Records an answered request.
    pub fn record_success(&self, times: &RequestTimes) {
        self.success.add(times.total);
        self.queue.add(times.queue);
        self.input.add(times.input);
        self.execute.add(times.execute);
        self.output.add(times.output);
    }

    /// Records a request that failed after `total`.
    pub fn record_failure(&self, total: Duration) {
        self.fail.add(total);
    }

    /// Records that rows were looked up in the response cache, which took `elapsed` in all.
    pub fn record_lookups(&self, hits: usize, misses: usize, elapsed: Duration) {
        let each = elapsed / (hits + misses).max(1) as u32;
        self.cache_hit.add_times(hits, each);
        self.cache_miss.add_times(misses, each);
    }

    /// Records a batch of `rows` rows.
    pub fn record_batch(&self, rows: usize, times: &BatchTimes) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.last_inference_ms
            .store(now.as_millis() as u64, Relaxed);
        self.rows.fetch_add(rows as u64, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        if let Some(sums) = rows.checked_sub(1).and_then(|at| self.by_size.get(at)) {
            sums.input.add(times.input);
            sums.execute.add(times.execute);
            sums.output.add(times.output);
        }
    }

    /// Reads all counters. They are read one after the other, so a request that ends meanwhile may
    /// be in some and not yet in others.
    pub fn read(&self) -> Snapshot {
        let by_size = self
            .by_size
            .iter()
            .enumerate()
            .filter(|(_, sums)| sums.execute.count.load(Relaxed) > 0)
            .map(|(at, sums)| {
                let times = [sums.input.read(), sums.execute.read(), sums.output.read()];
                (at as u64 + 1, times)
            })
            .collect();
        Snapshot {
            last_inference_ms: self.last_inference_ms.load(Relaxed),
            rows: self.rows.load(Relaxed),
            batches: self.batches.load(Relaxed),
            success: self.success.read(),
            fail: self.fail.read(),
            queue: self.queue.read(),
            input: self.input.read(),
            execute: self.execute.read(),
            output: self.output.read(),
            cache_hit: self.cache_hit.read(),
            cache_miss: self.cache_miss.read(),
            by_size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_kept_by_their_size() {
        let statistics = ModelStatistics::new(4);
        let times = BatchTimes {
            execute: Duration::from_nanos(5),
            ..BatchTimes::default()
        };
        statistics.record_batch(3, &times);
        statistics.record_batch(3, &times);
        let snapshot = statistics.read();
        assert_eq!((snapshot.rows, snapshot.batches), (6, 2));
        let [(size, [_, execute, _])] = snapshot.by_size[..] else {
            panic!("one size expected: {snapshot:?}");
        };
        assert_eq!((size, execute.count, execute.ns), (3, 2, 10));
    }
}
