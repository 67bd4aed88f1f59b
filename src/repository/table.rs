//! What is served, as one immutable table that is replaced as a whole: looking a version up takes no
//! lock.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use serde::Serialize;

use super::{Route, ServedModel, mirror::Trial};
use crate::{config::Task, error::RequestError};

/// Decisions that are remembered of a model.
const DECISIONS: usize = 32;

/// Where a version is on its way: absent, loading, warming, ready, draining, absent.
#[derive(Debug, Clone)]
pub enum VersionState {
    /// Its weights are being read.
    Loading,
    /// It runs its warm-up.
    Warming,
    /// It takes requests.
    Ready(Arc<ServedModel>),
    /// It takes none any more and ends those it has.
    Draining,
    /// It did not load.
    Failed {
        /// Why.
        reason: String,
    },
    /// It is not loaded.
    Absent {
        /// Why.
        reason: String,
    },
}

impl VersionState {
    /// The state's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Warming => "warming",
            Self::Ready(_) => "ready",
            Self::Draining => "draining",
            Self::Failed { .. } => "failed",
            Self::Absent { .. } => "absent",
        }
    }

    /// Why it is in that state, where that is no matter of course.
    pub fn reason(&self) -> &str {
        match self {
            Self::Failed { reason } | Self::Absent { reason } => reason,
            _ => "",
        }
    }

    /// The version, if it takes requests.
    pub fn ready(&self) -> Option<&Arc<ServedModel>> {
        match self {
            Self::Ready(served) => Some(served),
            _ => None,
        }
    }
}

/// A version in the table.
#[derive(Debug, Clone)]
pub(super) struct VersionEntry {
    pub state: VersionState,
    pub since: SystemTime,
    /// The loaded copy that `Draining` waits for.
    pub copy: u64,
    /// The same, for telling what it still has; it is gone when its last request is.
    pub leaving: Weak<ServedModel>,
    /// Why it could not be loaded again, while what was loaded before serves on.
    pub last_failure: Option<String>,
}

/// A change of a route, with what it was based on.
#[derive(Debug, Clone, Serialize)]
pub struct Decision {
    /// When, in seconds since 1970.
    pub at: f64,
    /// What was done: `promote`, `rollback`, `step`, `route`, `swap`, `refuse`.
    pub action: &'static str,
    /// Who: `operator`, `rollout` or `watch`.
    pub by: &'static str,
    /// The version it was about.
    pub version: u64,
    /// Why, with the figures.
    pub reason: String,
}

/// A model in the table.
#[derive(Debug, Clone, Default)]
pub(super) struct ModelEntry {
    pub route: Route,
    pub versions: BTreeMap<u64, VersionEntry>,
    pub decisions: VecDeque<Decision>,
    /// Why it has no version to serve.
    pub note: Option<String>,
    /// Whether it was unloaded to make room and comes back when it is asked for.
    pub evicted: bool,
    /// The stable version and its candidate, while there is one.
    pub trial: Option<Arc<Trial>>,
    /// Requests that chose a version so far.
    pub draws: Arc<AtomicU64>,
}

/// Every model that was ever loaded or found.
pub(super) type Table = BTreeMap<String, Arc<ModelEntry>>;

impl ModelEntry {
    /// The loaded copy of a version.
    pub fn ready(&self, version: u64) -> Option<&Arc<ServedModel>> {
        self.versions.get(&version)?.state.ready()
    }

    /// All that are ready, lowest version first.
    pub fn all_ready(&self) -> impl Iterator<Item = (u64, &Arc<ServedModel>)> {
        self.versions
            .iter()
            .filter_map(|(version, entry)| Some((*version, entry.state.ready()?)))
    }

    /// The stable version, or any that is ready.
    pub fn stable(&self) -> Option<&Arc<ServedModel>> {
        self.route.stable.and_then(|stable| self.ready(stable))
    }

    /// Sets a version's state.
    pub fn set(&mut self, version: u64, state: VersionState) {
        let before = self.versions.get(&version);
        let entry = VersionEntry {
            copy: before.map_or(0, |entry| entry.copy),
            leaving: Weak::new(),
            last_failure: None,
            since: SystemTime::now(),
            state,
        };
        self.versions.insert(version, entry);
    }

    /// Remembers a decision; the oldest is forgotten.
    pub fn remember(&mut self, decision: Decision) {
        if self.decisions.len() == DECISIONS {
            self.decisions.pop_front();
        }
        self.decisions.push_back(decision);
    }

    /// The version that answers a request for `version`: a number, a label, or the choice of the
    /// route (for the sticky `key`) where it is empty.
    pub fn find(
        &self,
        name: &str,
        version: &str,
        key: Option<&str>,
    ) -> Result<Arc<ServedModel>, RequestError> {
        if version.is_empty() {
            return self.choose(name, key);
        }
        let number = match version.parse::<u64>() {
            Ok(number) => Some(number),
            Err(_) => self.route.labelled(version),
        };
        let entry = number.and_then(|number| self.versions.get(&number));
        match entry.map(|entry| &entry.state) {
            Some(VersionState::Ready(served)) => Ok(Arc::clone(served)),
            Some(state) if !matches!(state, VersionState::Absent { .. }) => {
                let name = format!("{name}' version '{version}");
                Err(not_ready(&name, state))
            }
            _ => Err(self.no_such_version(name, version)),
        }
    }

    /// The error of a version that is not here.
    pub fn no_such_version(&self, name: &str, version: &str) -> RequestError {
        RequestError::VersionNotFound {
            name: name.to_owned(),
            version: version.chars().take(64).collect(),
            known: self.known_versions(),
        }
    }

    /// The choice of the route; the stable version where the canary is not ready.
    fn choose(&self, name: &str, key: Option<&str>) -> Result<Arc<ServedModel>, RequestError> {
        if let Some(stable) = self.stable()
            && self.route.canary.is_none()
        {
            return Ok(Arc::clone(stable));
        }
        let draw = self.draws.fetch_add(1, Relaxed);
        let chosen = self.route.choose(key, draw);
        let chosen = chosen.and_then(|version| self.ready(version));
        match chosen.or_else(|| self.stable()) {
            Some(served) => Ok(Arc::clone(served)),
            None => Err(self.why_not(name)),
        }
    }

    /// Why no version answers.
    fn why_not(&self, name: &str) -> RequestError {
        let states = || self.versions.values().map(|entry| &entry.state);
        let coming =
            states().find(|state| matches!(state, VersionState::Loading | VersionState::Warming));
        if let Some(state) = coming {
            return not_ready(name, state);
        }
        let newest = states().next_back();
        let reason = match (&self.note, newest) {
            (Some(note), _) => note.clone(),
            (None, Some(state)) if !state.reason().is_empty() => state.reason().to_owned(),
            (None, Some(VersionState::Ready(_))) => {
                "versions are loaded, and none is routed to; name one, or set a route".to_owned()
            }
            (None, _) => "no version is loaded".to_owned(),
        };
        RequestError::ModelNotReady {
            name: name.to_owned(),
            state: "unavailable".to_owned(),
            reason,
        }
    }

    /// The versions and labels that a request may name.
    fn known_versions(&self) -> String {
        let numbers = self.all_ready().map(|(version, _)| version.to_string());
        let labels = self.route.all_labels().into_keys().map(str::to_owned);
        let known: Vec<String> = numbers.chain(labels).collect();
        if known.is_empty() {
            return "none".to_owned();
        }
        known.join(", ")
    }
}

fn not_ready(name: &str, state: &VersionState) -> RequestError {
    let reason = match state {
        VersionState::Loading | VersionState::Warming => "try again shortly",
        VersionState::Draining => "it ends what it has; name another version",
        other => other.reason(),
    };
    RequestError::ModelNotReady {
        name: name.to_owned(),
        state: state.name().to_owned(),
        reason: reason.to_owned(),
    }
}

/// The only ready model of a task.
pub(super) fn only_one(table: &Table, task: Option<Task>) -> Result<&str, RequestError> {
    let mut fit = table.iter().filter(|(_, entry)| {
        entry
            .stable()
            .is_some_and(|served| task.is_none_or(|task| task == served.task()))
    });
    match (fit.next(), fit.next()) {
        (Some((only, _)), None) => Ok(only),
        (None, _) => Err(RequestError::invalid(
            "model",
            "no name",
            "a model's name (no ready model does this task)",
        )),
        (Some((first, _)), Some((second, _))) => {
            let names: Vec<&str> = [first, second]
                .into_iter()
                .chain(fit.map(|(name, _)| name))
                .map(String::as_str)
                .collect();
            let allowed = format!("one of {}", names.join(", "));
            Err(RequestError::invalid("model", "no name", allowed))
        }
    }
}

/// The error of a name that is not here.
pub(super) fn unknown(table: &Table, name: &str) -> RequestError {
    let known: Vec<&str> = table.keys().map(String::as_str).collect();
    RequestError::ModelNotFound {
        name: name.chars().take(64).collect(),
        known: if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        },
    }
}
