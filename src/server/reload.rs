//! Files that are read again when they change: certificates, API keys.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

/// What tells that a file has changed: when it was written, and its length. `None` where it isn't.
type Mark = Option<(SystemTime, u64)>;

/// Calls `reload` whenever one of `files` has changed, until `closing`. What it does may block.
pub(super) async fn follow_files(
    files: Vec<PathBuf>,
    every: Duration,
    closing: watch::Receiver<bool>,
    reload: impl Fn() + Clone + Send + 'static,
) {
    let mut seen = marks(&files);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut closing = closing;
    loop {
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => return,
            _ = ticks.tick() => {}
        }
        let (files, before, reload) = (files.clone(), seen.clone(), reload.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let now = marks(&files);
            if now != before {
                reload();
            }
            now
        });
        if let Ok(now) = looked.await {
            seen = now;
        }
    }
}

fn marks(files: &[PathBuf]) -> Vec<Mark> {
    files
        .iter()
        .map(|file| {
            // Through links: a mounted secret is swapped by its link.
            let metadata = std::fs::metadata(file).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
        .collect()
}
