//! A bounded pool of threads for work that would hold up the I/O threads: tokenization.
//!
//! Bounded by the bytes that wait, not by jobs, since a job costs what its text weighs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crossbeam::channel::{Sender, unbounded};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// More bytes wait for a thread than the pool takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolFull {
    /// Bytes waiting.
    pub waiting_bytes: usize,
    /// Bytes that may wait.
    pub max_waiting_bytes: usize,
}

/// Threads that run jobs in the order they come.
#[derive(Debug, Clone)]
pub struct CpuPool {
    // Unbounded in slots, bounded in bytes by `waiting_bytes`: every job weighs at least one.
    jobs: Sender<Job>,
    waiting_bytes: Arc<AtomicUsize>,
    max_waiting_bytes: usize,
}

impl CpuPool {
    /// Starts `threads` threads that end when the pool's last clone is dropped.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(threads: usize, max_waiting_bytes: usize) -> std::io::Result<Self> {
        let (jobs, waiting) = unbounded::<Job>();
        for index in 0..threads.max(1) {
            let waiting = waiting.clone();
            std::thread::Builder::new()
                .name(format!("text-{index}"))
                .spawn(move || {
                    for job in waiting {
                        job();
                    }
                })?;
        }
        Ok(Self {
            jobs,
            waiting_bytes: Arc::default(),
            max_waiting_bytes,
        })
    }

    /// Queues `work`, which weighs `bytes`. The receiver yields its result, or an error if `work`
    /// panicked. Dropping the receiver before a thread takes the job skips it.
    ///
    /// # Errors
    /// [`PoolFull`] when the bytes that wait would exceed the bound.
    pub fn submit<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, PoolFull> {
        let weight = Weight::claim(&self.waiting_bytes, bytes.max(1), self.max_waiting_bytes)?;
        let (reply, result) = oneshot::channel();
        let job = Box::new(move || {
            let _weight = weight;
            if reply.is_closed() {
                return;
            }
            // A tokenizer that panics on some text fails that text, not the thread.
            if let Ok(value) = catch_unwind(AssertUnwindSafe(work)) {
                let _ = reply.send(value);
            }
        });
        // The threads hold the receiver as long as a sender lives, so this can't fail; if it did,
        // the caller would see its reply channel close.
        let _ = self.jobs.send(job);
        Ok(result)
    }
}

/// Bytes counted as waiting until dropped.
struct Weight {
    waiting: Arc<AtomicUsize>,
    bytes: usize,
}

impl Weight {
    fn claim(waiting: &Arc<AtomicUsize>, bytes: usize, limit: usize) -> Result<Self, PoolFull> {
        waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                now.checked_add(bytes).filter(|&then| then <= limit)
            })
            .map_err(|waiting_bytes| PoolFull {
                waiting_bytes,
                max_waiting_bytes: limit,
            })?;
        Ok(Self {
            waiting: Arc::clone(waiting),
            bytes,
        })
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_fails_alone() {
        let pool = CpuPool::start(1, 100).unwrap();
        let bad = pool.submit(1, || -> u32 { panic!("bad text") }).unwrap();
        let good = pool.submit(1, || 7).unwrap();
        assert!(bad.await.is_err());
        assert_eq!(good.await, Ok(7));
    }

    #[tokio::test]
    async fn bytes_beyond_the_bound_are_refused_until_room_is_made() {
        let pool = CpuPool::start(1, 10).unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let first = pool.submit(6, move || held.recv().is_ok()).unwrap();
        assert_eq!(
            pool.submit(5, || ()).unwrap_err(),
            PoolFull {
                waiting_bytes: 6,
                max_waiting_bytes: 10
            }
        );
        release.send(()).unwrap();
        assert_eq!(first.await, Ok(true));
        let after = loop {
            // The weight is given back just after the reply.
            if let Ok(after) = pool.submit(5, || ()) {
                break after;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(after.await, Ok(()));
    }
}
