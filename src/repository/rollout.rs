//! Judges candidates while they serve, and promotes them or rolls them back by their manifest's rules.
//! A thread that looks at every trial a few times a window; what it decides is `verdict`'s.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    Repository, Share,
    mirror::Trial,
    routing::Reason,
    table::ModelEntry,
    verdict::{Drift, Evidence, Seen, Verdict, judge},
};
use crate::{
    config::RolloutConfig, error::RequestError, quality::drift::State, telemetry::TrafficReading,
};

/// How often trials are looked at, at most.
const TICK: Duration = Duration::from_millis(250);

/// Starts the thread that judges candidates. It ends with the repository.
///
/// # Errors
/// When the system refuses a thread.
pub fn run_rollouts(repository: &Arc<Repository>) -> std::io::Result<()> {
    let repository = Arc::downgrade(repository);
    std::thread::Builder::new()
        .name("rollout".to_owned())
        .spawn(move || run(&repository))?;
    Ok(())
}

fn run(repository: &Weak<Repository>) {
    let mut windows = BTreeMap::new();
    loop {
        std::thread::sleep(TICK);
        let Some(repository) = repository.upgrade() else {
            return;
        };
        for (name, entry) in repository.table().iter() {
            let Some(rules) = automatic_rules(entry) else {
                windows.remove(name);
                continue;
            };
            let Some(trial) = &entry.trial else {
                windows.remove(name);
                continue;
            };
            let now = Instant::now();
            let window = windows
                .entry(name.clone())
                .or_insert_with(|| Window::begin(trial, entry, now));
            if !Arc::ptr_eq(&window.trial, trial) {
                *window = Window::begin(trial, entry, now);
            }
            if let Some(step) = window.judge(entry, &rules, now) {
                take(&repository, name, entry, step);
            }
        }
    }
}

/// The rules by which the model's candidate is judged, if nobody has to be asked.
fn automatic_rules(entry: &ModelEntry) -> Option<RolloutConfig> {
    let rules = &entry.stable()?.manifest.rollout;
    rules.automatic.then(|| rules.clone())
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    RollBack(String),
    Widen(f64, String),
    Promote(String),
}

/// The time in which a candidate is judged.
#[derive(Debug)]
struct Window {
    trial: Arc<Trial>,
    began: Instant,
    baseline: Baseline,
    /// Windows in a row that held.
    held: u32,
}

impl Window {
    fn begin(trial: &Arc<Trial>, entry: &ModelEntry, now: Instant) -> Self {
        Self {
            trial: Arc::clone(trial),
            began: now,
            baseline: Baseline {
                stable: read(entry, trial.stable),
                candidate: read(entry, trial.candidate),
            },
            held: 0,
        }
    }

    /// What the candidate's answers since the window began lead to.
    fn judge(&mut self, entry: &ModelEntry, rules: &RolloutConfig, now: Instant) -> Option<Step> {
        let evidence = evidence(&self.trial, entry, &self.baseline);
        match judge(rules, &evidence) {
            Verdict::Broken(broken) => Some(Step::RollBack(format!(
                "{broken}; {}",
                in_figures(&evidence)
            ))),
            Verdict::Unknown { .. } => None,
            Verdict::Holds => {
                if now - self.began < Duration::from_secs_f64(rules.window_seconds) {
                    return None;
                }
                let held = self.held + 1;
                *self = Self::begin(&Arc::clone(&self.trial), entry, now);
                self.held = held;
                if rules.promote_after == 0 || held < rules.promote_after {
                    return None;
                }
                self.held = 0;
                let why = format!("{held} windows held; {}", in_figures(&evidence));
                let percent = entry.route.canary.map_or(100.0, |canary| canary.percent);
                let next = rules.steps.iter().find(|&&step| step > percent);
                match next.filter(|_| entry.route.canary.is_some()) {
                    Some(&next) => Some(Step::Widen(next, why)),
                    None => Some(Step::Promote(why)),
                }
            }
        }
    }
}

fn read(entry: &ModelEntry, version: u64) -> TrafficReading {
    entry
        .ready(version)
        .map_or_else(TrafficReading::default, |served| served.traffic.read())
}

/// What both versions of a trial had been asked before it counts.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    stable: TrafficReading,
    candidate: TrafficReading,
}

/// What is known of a candidate since `baseline`.
pub(super) fn evidence(trial: &Trial, entry: &ModelEntry, baseline: &Baseline) -> Evidence {
    let seen = |version, earlier: &TrafficReading| {
        let since = read(entry, version).since(earlier);
        Seen::new(since.answered, since.failed, since.quantile(0.99))
    };
    let mut candidate = seen(trial.candidate, &baseline.candidate);
    let canary = entry.route.canary;
    if canary.is_none_or(|canary| canary.version != trial.candidate) {
        // A shadow's copies wait behind everything else: their time says nothing of the version.
        candidate.p99_ms = None;
    }
    Evidence {
        stable: seen(trial.stable, &baseline.stable),
        candidate,
        compared: trial.counts().mirrored,
        agreement: trial.agreement(),
        drift: drift(entry, trial.candidate),
    }
}

/// How a version's rows stand to its baseline, where that is looked for.
fn drift(entry: &ModelEntry, version: u64) -> Option<Drift> {
    let (state, readings) = entry.ready(version)?.drift.as_ref()?.state();
    let unusual = readings
        .iter()
        .filter(|reading| reading.state > State::Ok)
        .map(|reading| (reading.signal.name(), reading.value));
    Some(Drift {
        state,
        signals: unusual.collect(),
    })
}

/// The figures of a decision, for the log.
pub(super) fn in_figures(evidence: &Evidence) -> String {
    let Evidence {
        stable,
        candidate,
        compared,
        agreement,
        drift,
    } = evidence;
    let drift = drift.as_ref().map_or_else(String::new, |drift| {
        let signals = drift.signals.iter();
        let signals: Vec<_> = signals
            .map(|(signal, value)| format!(" {signal} {value:.3}"))
            .collect();
        format!("; drift {}{}", drift.state.name(), signals.join(","))
    });
    let p99 = |seen: &Seen| {
        seen.p99_ms
            .map_or_else(|| "-".to_owned(), |p99| format!("{p99:.1} ms"))
    };
    format!(
        "candidate: {} requests, {} failed, p99 {}; stable: {} requests, {} failed, p99 {}; \
         agreement {} over {compared} requests{drift}",
        candidate.requests,
        candidate.failed,
        p99(candidate),
        stable.requests,
        stable.failed,
        p99(stable),
        agreement.map_or_else(|| "-".to_owned(), |agreement| format!("{agreement:.4}")),
    )
}

fn take(repository: &Repository, name: &str, entry: &ModelEntry, step: Step) {
    let reason = |action, why| Reason {
        action,
        by: "rollout",
        why,
    };
    let done = match step {
        Step::RollBack(why) => {
            tracing::warn!(model = name, reason = why, "candidate is rolled back");
            repository.rollback_because(name, reason("rollback", why))
        }
        Step::Promote(why) => repository.promote_because(name, reason("promote", why)),
        Step::Widen(percent, why) => {
            let canary = entry.route.canary;
            repository.widen(name, canary, percent, reason("step", why))
        }
    };
    if let Err(error) = done {
        tracing::error!(model = name, %error, "a rollout's decision can't be carried out");
    }
}

impl Repository {
    /// Gives the canary a larger share, if it is still the one that was judged.
    fn widen(
        &self,
        name: &str,
        judged: Option<Share>,
        percent: f64,
        reason: Reason,
    ) -> Result<super::Route, RequestError> {
        let Some(judged) = judged else {
            return Ok(self.entry(name)?.route.clone());
        };
        self.change_route(name, judged.version, reason, |route| {
            if route.canary == Some(judged) {
                route.canary = Some(Share { percent, ..judged });
            }
        })
    }
}
