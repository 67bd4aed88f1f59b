//! The thread that writes lines, and the files that it writes to.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender};

use super::{cover::Cover, queue::Told};
use crate::{config::RequestLogConfig, telemetry::RequestLogMetrics};

/// Bytes written in one go, about.
const CHUNK: usize = 256 << 10;

/// Time after a failure for which nothing is tried.
const PAUSE: Duration = Duration::from_millis(500);

/// Starts the thread. It ends when nobody can send lines any more.
pub(super) fn start(
    config: &RequestLogConfig,
    cover: Cover,
    told: Receiver<Told>,
    waiting_bytes: Arc<AtomicUsize>,
    metrics: RequestLogMetrics,
) -> io::Result<()> {
    let mut files = Files {
        path: config.file.clone(),
        max_bytes: config.max_file_bytes,
        keep: config.max_files,
        open: None,
    };
    // A path that can't be written is a mistake to be told at the start, not a disk that is full.
    files.open()?;
    let writer = Writer {
        files,
        cover,
        told,
        waiting_bytes,
        metrics,
        failed_at: None,
    };
    std::thread::Builder::new()
        .name("request-log".to_owned())
        .spawn(move || writer.run())?;
    Ok(())
}

struct Writer {
    files: Files,
    cover: Cover,
    told: Receiver<Told>,
    waiting_bytes: Arc<AtomicUsize>,
    metrics: RequestLogMetrics,
    /// When writing failed last, since it last went well.
    failed_at: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        let mut chunk = Vec::with_capacity(CHUNK);
        while let Ok(first) = self.told.recv() {
            let (mut lines, mut flushes) = (0, Vec::new());
            let mut next = Some(first);
            while let Some(told) = next {
                self.take(told, &mut chunk, &mut lines, &mut flushes);
                next = (chunk.len() < CHUNK)
                    .then(|| self.told.try_recv().ok())
                    .flatten();
            }
            self.write(&chunk, lines);
            chunk.clear();
            for done in flushes {
                let _ = done.send(());
            }
        }
    }

    fn take(
        &self,
        told: Told,
        chunk: &mut Vec<u8>,
        lines: &mut u64,
        flushes: &mut Vec<Sender<()>>,
    ) {
        match told {
            Told::Flush(done) => flushes.push(done),
            Told::Line(mut line, bytes) => {
                self.cover.apply(&mut line);
                let whole = chunk.len();
                if serde_json::to_writer(&mut *chunk, &line).is_ok() {
                    chunk.push(b'\n');
                    *lines += 1;
                } else {
                    chunk.truncate(whole);
                    self.metrics.failed.inc();
                }
                self.waiting_bytes.fetch_sub(bytes, Relaxed);
            }
        }
    }

    fn write(&mut self, chunk: &[u8], lines: u64) {
        if chunk.is_empty() {
            return;
        }
        if self.failed_at.is_some_and(|at| at.elapsed() < PAUSE) {
            self.metrics.failed.inc_by(lines);
            return;
        }
        match self.files.write(chunk) {
            Ok(()) => {
                if self.failed_at.take().is_some() {
                    tracing::info!("the request log is written again");
                    self.metrics.failing.set(0);
                }
                self.metrics.written.inc_by(lines);
            }
            Err(error) => {
                if self.failed_at.is_none() {
                    let file = self.files.path.display();
                    tracing::warn!(%file, %error, "the request log can't be written; its lines are dropped");
                    self.metrics.failing.set(1);
                }
                self.failed_at = Some(Instant::now());
                self.metrics.failed.inc_by(lines);
            }
        }
    }
}

/// The file that is written, and those before it.
struct Files {
    path: PathBuf,
    max_bytes: u64,
    /// How many are kept.
    keep: u32,
    open: Option<(File, u64)>,
}

impl Files {
    fn open(&mut self) -> io::Result<&mut (File, u64)> {
        let open = if let Some(open) = self.open.take() {
            open
        } else {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path)?;
            let bytes = file.metadata()?.len();
            (file, bytes)
        };
        Ok(self.open.insert(open))
    }

    /// Appends whole lines, to a new file where they would outgrow this one.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let max_bytes = self.max_bytes;
        let (_, bytes) = self.open()?;
        if *bytes > 0 && *bytes + lines.len() as u64 > max_bytes {
            self.open = None;
            self.shift()?;
        }
        let (file, bytes) = self.open()?;
        let written = file.write_all(lines);
        if written.is_err() {
            // A line that was cut off is no line. Fails where the file can't be cut, as a device.
            let _ = file.set_len(*bytes);
            // Opened anew next time: somebody may have made room by moving it away.
            self.open = None;
            return written;
        }
        *bytes += lines.len() as u64;
        Ok(())
    }

    /// Makes each file one older; the oldest goes.
    fn shift(&self) -> io::Result<()> {
        if self.keep == 1 {
            return fs::remove_file(&self.path);
        }
        for age in (1..self.keep - 1).rev() {
            let (from, to) = (self.aged(age), self.aged(age + 1));
            if from.exists() {
                fs::rename(from, to)?;
            }
        }
        fs::rename(&self.path, self.aged(1))
    }

    fn aged(&self, age: u32) -> PathBuf {
        aged(&self.path, age)
    }
}

/// The name of a file that was written so many files ago.
pub(super) fn aged(path: &Path, age: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{age}"));
    PathBuf::from(name)
}
