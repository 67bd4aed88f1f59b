//! The watchdog: finds runs of a model that do not come back, and has others take their place.
//!
//! ```text
//! executor: lays down its rows ─ runs the model ─ takes them back ─ answers
//!                    │                 ▲
//!                    ▼ a slow ticker looks: the same run, for too long?
//! watchdog: seizes the rows ─ answers them ─ starts another thread over a fresh model
//! ```
//!
//! A thread can't be stopped from outside. One that hangs is left behind with its model; should it
//! come back after all, it finds its bay seized and ends. So there may be only so many of them.

mod bay;
mod watch;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::recovery::Recovery;
use crate::error::RequestError;
use watch::{Looks, Seen};

pub(super) use bay::Bay;
pub use watch::Limit;

/// Is told why nothing more is done about instances that hang.
pub type Spent = Arc<dyn Fn(&str) + Send + Sync>;

/// What an engine does about runs that do not come back.
#[derive(Clone)]
pub struct Watchdog {
    /// When a run is too long.
    pub limit: Limit,
    /// Instances of the engine that may be left behind and replaced.
    pub replacements: usize,
    /// Who is told when one more hangs; without, it is lost and the others go on.
    pub spent: Option<Spent>,
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog")
            .field("limit", &self.limit)
            .field("replacements", &self.replacements)
            .finish_non_exhaustive()
    }
}

impl Watchdog {
    /// How the instance that hangs now is made anew, by the means that are there for one that is lost.
    pub(super) fn replacement<F>(&mut self, means: &Recovery<F>) -> Recovery<F> {
        if let Some(left) = self.replacements.checked_sub(1) {
            self.replacements = left;
            return means.clone();
        }
        match &self.spent {
            Some(tell) => Recovery::Tell(Arc::clone(tell)),
            None => Recovery::Stay,
        }
    }
}

/// What those are answered whose run hangs.
pub(super) fn hung(lasted: Duration) -> RequestError {
    RequestError::InstanceHung { lasted }
}

/// Looks at `bays` for as long as somebody else holds one of them. What a run that is too long has in
/// hand goes to `replace`, with its bay's number and how long it lasted; it returns the bay to watch in
/// that one's place.
pub(super) fn watch<T>(
    bays: Vec<Arc<Bay<T>>>,
    limit: &Limit,
    mut replace: impl FnMut(usize, Box<T>, Duration) -> Arc<Bay<T>>,
) {
    let mut bays: Vec<(Arc<Bay<T>>, Seen)> =
        bays.into_iter().map(|bay| (bay, Seen::default())).collect();
    let interval = limit.interval();
    let mut looks = Looks::begin(Instant::now(), interval);
    while bays.iter().any(|(bay, _)| Arc::strong_count(bay) > 1) {
        std::thread::sleep(interval);
        let passed = looks.look(Instant::now());
        for (index, (bay, seen)) in bays.iter_mut().enumerate() {
            let Some((run, lasted)) = seen.note(bay.running(), passed, limit) else {
                continue;
            };
            // Nothing where it came back just now.
            if let Some(hand) = bay.seize(run) {
                *bay = replace(index, hand, lasted);
                *seen = Seen::default();
            }
        }
    }
}
