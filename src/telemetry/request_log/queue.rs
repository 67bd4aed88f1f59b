//! Which requests are written down, and the queue that they wait in.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam::channel::{Sender, TrySendError, bounded};

use super::{cover::Cover, line::Line, writer};
use crate::{config::RequestLogConfig, telemetry::RequestLogMetrics};

/// Lines that wait at most, whatever their bytes.
const MAX_WAITING: usize = 16_384;

/// What the writer is told.
#[derive(Debug)]
pub(super) enum Told {
    /// To write a line, which counts for so many bytes.
    Line(Box<Line>, usize),
    /// To say when all before it is written.
    Flush(Sender<()>),
}

/// The log of requests. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct RequestLog(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    queue: Sender<Told>,
    waiting_bytes: Arc<AtomicUsize>,
    max_waiting_bytes: usize,
    sample: f64,
    seen: AtomicU64,
    metrics: RequestLogMetrics,
}

impl RequestLog {
    /// Starts the thread that writes, where `config` wants it.
    ///
    /// # Errors
    /// When the file can't be opened, or there is no thread to be had.
    pub fn start(config: &RequestLogConfig, metrics: RequestLogMetrics) -> io::Result<Self> {
        if !config.is_on() {
            return Ok(Self(None));
        }
        let cover = Cover::new(config).map_err(io::Error::other)?;
        let (queue, told) = bounded(MAX_WAITING);
        let waiting_bytes = Arc::<AtomicUsize>::default();
        writer::start(
            config,
            cover,
            told,
            Arc::clone(&waiting_bytes),
            metrics.clone(),
        )?;
        Ok(Self(Some(Arc::new(Inner {
            queue,
            waiting_bytes,
            max_waiting_bytes: config.max_waiting_bytes,
            sample: config.sample,
            seen: AtomicU64::new(0),
            metrics,
        }))))
    }

    /// Whether the request that comes now is to be written down: the n-th is when it brings those that
    /// are up to their share.
    pub fn takes(&self) -> bool {
        let Some(inner) = &self.0 else {
            return false;
        };
        let seen = inner.seen.fetch_add(1, Relaxed) as f64;
        let due = |requests: f64| (requests * inner.sample).floor();
        due(seen + 1.0) > due(seen)
    }

    /// Puts a line in the queue; one that finds no room is dropped and counted.
    pub fn write(&self, line: Line) {
        let Some(inner) = &self.0 else {
            return;
        };
        let bytes = line.bytes();
        let before = inner.waiting_bytes.fetch_add(bytes, Relaxed);
        let fits = before + bytes <= inner.max_waiting_bytes;
        let sent = fits
            && match inner.queue.try_send(Told::Line(Box::new(line), bytes)) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            };
        if !sent {
            inner.waiting_bytes.fetch_sub(bytes, Relaxed);
            inner.metrics.dropped.inc();
        }
    }

    /// Waits until everything so far is written, or `limit` has passed. To be called from a thread that
    /// may wait.
    pub fn flush(&self, limit: Duration) -> bool {
        let Some(inner) = &self.0 else {
            return true;
        };
        let until = Instant::now() + limit;
        let (done, is_done) = bounded(1);
        let told = inner.queue.send_deadline(Told::Flush(done), until);
        told.is_ok() && is_done.recv_deadline(until).is_ok()
    }
}
