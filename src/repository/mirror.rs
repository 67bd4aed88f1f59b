//! A stable version and its candidate on trial: who mirrors what to whom, and what came of it.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{ServedModel, table::ModelEntry};
use crate::{
    quality::comparison::{Comparison, Figures},
    telemetry::{Metrics, TrialMetrics},
};

/// A candidate beside the stable version, for as long as the two stay the same.
#[derive(Debug)]
pub struct Trial {
    /// The stable version.
    pub stable: u64,
    /// The candidate.
    pub candidate: u64,
    mirrored: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    comparison: Mutex<Comparison>,
    metrics: TrialMetrics,
}

/// What became of the copies of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MirrorCounts {
    /// Answered by both versions, and compared.
    pub mirrored: u64,
    /// Not sent since the other version was busy.
    pub dropped: u64,
    /// Not answered by the candidate although the stable version did.
    pub failed: u64,
}

impl Trial {
    pub(super) fn new(
        stable: &ServedModel,
        candidate: &ServedModel,
        metrics: TrialMetrics,
    ) -> Self {
        Self {
            stable: stable.number(),
            candidate: candidate.number(),
            mirrored: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            comparison: Mutex::new(Comparison::new(stable.task(), stable.activation)),
            metrics,
        }
    }

    /// Takes a request in that both have answered; `compare` adds its rows.
    pub fn record(&self, compare: impl FnOnce(&mut Comparison)) {
        let agreement = {
            let mut comparison = self.comparison();
            compare(&mut comparison);
            comparison.agreement()
        };
        self.mirrored.fetch_add(1, Relaxed);
        self.metrics.compared.inc();
        self.metrics.agreement.set(agreement.unwrap_or(f64::NAN));
    }

    /// Counts a copy that was not sent.
    fn count_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
        self.metrics.dropped.inc();
    }

    /// Counts a copy that was not answered.
    pub fn count_failed(&self) {
        self.failed.fetch_add(1, Relaxed);
        self.metrics.failed.inc();
    }

    /// How far the answers agree, 0 to 1; `None` before the first.
    pub fn agreement(&self) -> Option<f64> {
        self.comparison().agreement()
    }

    /// The comparison's figures.
    pub fn figures(&self) -> Figures {
        // They take some milliseconds; those who compare must not wait for them.
        let so_far = self.comparison().clone();
        so_far.figures()
    }

    /// What became of the copies.
    pub fn counts(&self) -> MirrorCounts {
        MirrorCounts {
            mirrored: self.mirrored.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }

    /// Held for a moment by those who compare, never on a request's way.
    fn comparison(&self) -> MutexGuard<'_, Comparison> {
        self.comparison
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where copies of a version's requests go.
#[derive(Debug)]
pub struct Mirror {
    /// Who gets the copies. Weak, since the other may mirror to this one.
    other: Weak<ServedModel>,
    percent: f64,
    /// Whether the copies go to the candidate, or come from it.
    pub to_candidate: bool,
    /// What comes of it.
    pub trial: Arc<Trial>,
    seen: AtomicU64,
}

impl Mirror {
    pub(super) fn new(
        other: &Arc<ServedModel>,
        percent: f64,
        to_candidate: bool,
        trial: Arc<Trial>,
    ) -> Self {
        Self {
            other: Arc::downgrade(other),
            percent,
            to_candidate,
            trial,
            seen: AtomicU64::new(0),
        }
    }

    /// The version that gets a copy of this request, if its turn has come and that version has
    /// nothing to do: copies are the first to be dropped under load.
    pub fn take(&self) -> Option<Arc<ServedModel>> {
        // The n-th request is due when it brings the copies up to their share.
        let seen = self.seen.fetch_add(1, Relaxed) as f64;
        let due = |requests: f64| (requests * self.percent / 100.0).floor();
        if due(seen + 1.0) <= due(seen) {
            return None;
        }
        let other = self.other.upgrade()?;
        if other.is_busy() {
            self.trial.count_dropped();
            return None;
        }
        Some(other)
    }
}

/// Sets who mirrors to whom: the stable version to the shadow, the canary to the stable version.
pub(super) fn wire(name: &str, entry: &mut ModelEntry, metrics: &Metrics) {
    let route = entry.route.clone();
    let stable = entry.stable().cloned();
    let candidate = route.candidate().and_then(|version| entry.ready(version));
    let (Some(stable), Some(candidate)) = (stable, candidate.cloned()) else {
        entry.trial = None;
        for (_, served) in entry.all_ready() {
            served.mirror.store(None);
        }
        return;
    };
    let pair = (stable.number(), candidate.number());
    let trial = match &entry.trial {
        Some(trial) if (trial.stable, trial.candidate) == pair => Arc::clone(trial),
        _ => {
            let metrics = metrics.trial(name, &stable.version, &candidate.version);
            Arc::new(Trial::new(&stable, &candidate, metrics))
        }
    };
    entry.trial = Some(Arc::clone(&trial));
    for (version, served) in entry.all_ready() {
        let mirror = if version == pair.0
            && let Some(shadow) = route.shadow.filter(|shadow| shadow.version == pair.1)
        {
            Some((&candidate, shadow.percent, true))
        } else if version == pair.1 && route.canary.is_some() {
            Some((&stable, stable.manifest.rollout.compare_percent, false))
        } else {
            None
        };
        let mirror = mirror.map(|(other, percent, to_candidate)| {
            Arc::new(Mirror::new(
                other,
                percent,
                to_candidate,
                Arc::clone(&trial),
            ))
        });
        served.mirror.store(mirror);
    }
}
