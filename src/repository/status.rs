//! What is told of the models: to operators, to Triton's index, on the log at start.

use std::time::UNIX_EPOCH;

use serde::Serialize;

use super::{
    Decision, Evidence, MirrorCounts, Repository, Route, VersionState,
    mirror::Trial,
    rollout::{Baseline, evidence},
    table::{ModelEntry, VersionEntry},
};

/// A model and its versions.
#[derive(Debug, Clone, Serialize)]
pub struct ModelStatus {
    /// The model's name.
    pub name: String,
    /// What it does; empty while no version is loaded.
    pub task: String,
    /// Who gets which version.
    pub route: Route,
    /// Why it has no version to serve; empty where it has.
    pub note: String,
    /// Its versions, lowest first: loaded, or on disk.
    pub versions: Vec<VersionStatus>,
    /// The candidate beside the stable version, while there is one.
    pub trial: Option<TrialStatus>,
    /// The latest changes of its route, oldest first.
    pub decisions: Vec<Decision>,
}

/// A version of a model.
#[derive(Debug, Clone, Serialize)]
pub struct VersionStatus {
    /// Its number.
    pub version: u64,
    /// `absent`, `loading`, `warming`, `ready`, `draining` or `failed`.
    pub state: &'static str,
    /// Why it is in that state, or why it could not be loaded again.
    pub reason: String,
    /// Since when, in seconds since 1970.
    pub since: f64,
    /// Whether its files are there.
    pub on_disk: bool,
    /// Names that requests may give instead of the number.
    pub labels: Vec<String>,
    /// Of a hundred requests that name no version, those that it answers.
    pub percent: f64,
    /// Bytes of its weights and caches in memory.
    pub memory_bytes: u64,
    /// Requests that it has now.
    pub in_flight: usize,
    /// Requests that it answered since it was loaded.
    pub answered: u64,
    /// Requests that failed by the server's fault since it was loaded.
    pub failed: u64,
    /// How long it took to load and warm, in milliseconds.
    pub load_ms: u64,
}

/// A candidate beside the stable version.
#[derive(Debug, Clone, Serialize)]
pub struct TrialStatus {
    /// The stable version.
    pub stable: u64,
    /// The candidate.
    pub candidate: u64,
    /// What became of the copies of requests.
    pub copies: MirrorCounts,
    /// What was seen since both were loaded.
    pub evidence: Evidence,
    /// The comparison in full.
    pub comparison: serde_json::Value,
}

impl Repository {
    /// All models that were ever loaded or are on disk, by name.
    pub fn status(&self) -> Vec<ModelStatus> {
        let table = self.table();
        let on_disk = self.find_on_disk().unwrap_or_default();
        let mut names: Vec<&str> = table
            .keys()
            .map(String::as_str)
            .chain(on_disk.iter().map(|model| model.name.as_str()))
            .collect();
        names.sort_unstable();
        names.dedup();
        let nothing = ModelEntry::default();
        names
            .into_iter()
            .map(|name| {
                let entry = table.get(name).map_or(&nothing, |entry| &**entry);
                let versions = on_disk
                    .iter()
                    .find(|model| model.name == name)
                    .map_or(&[][..], |model| &model.versions);
                of_model(name, entry, versions)
            })
            .collect()
    }

    /// One of them; `None` when there is no such model.
    pub fn status_of(&self, name: &str) -> Option<ModelStatus> {
        self.status().into_iter().find(|model| model.name == name)
    }
}

impl ModelStatus {
    /// The version that answers where none is named.
    pub fn stable(&self) -> Option<&VersionStatus> {
        let stable = self.route.stable?;
        self.versions
            .iter()
            .find(|version| version.version == stable && version.state == "ready")
    }
}

fn of_model(name: &str, entry: &ModelEntry, on_disk: &[u64]) -> ModelStatus {
    let mut numbers: Vec<u64> = entry.versions.keys().chain(on_disk).copied().collect();
    numbers.sort_unstable();
    numbers.dedup();
    let any_ready = entry.all_ready().next();
    ModelStatus {
        name: name.to_owned(),
        task: any_ready.map_or_else(String::new, |(_, served)| served.task().to_string()),
        route: entry.route.clone(),
        note: entry.note.clone().unwrap_or_default(),
        versions: numbers
            .into_iter()
            .map(|number| {
                let version = entry.versions.get(&number);
                of_version(number, version, &entry.route, on_disk.contains(&number))
            })
            .collect(),
        trial: entry.trial.as_ref().map(|trial| of_trial(trial, entry)),
        decisions: entry.decisions.iter().cloned().collect(),
    }
}

fn of_version(
    number: u64,
    entry: Option<&VersionEntry>,
    route: &Route,
    on_disk: bool,
) -> VersionStatus {
    let labels = route.all_labels();
    let labels = labels.iter().filter(|(_, labelled)| **labelled == number);
    let mut status = VersionStatus {
        version: number,
        state: "absent",
        reason: "not loaded".to_owned(),
        since: 0.0,
        on_disk,
        labels: labels.map(|(label, _)| (*label).to_owned()).collect(),
        percent: route.percent_of(number),
        memory_bytes: 0,
        in_flight: 0,
        answered: 0,
        failed: 0,
        load_ms: 0,
    };
    let Some(entry) = entry else {
        return status;
    };
    status.state = entry.state.name();
    entry.state.reason().clone_into(&mut status.reason);
    if let Some(failure) = &entry.last_failure {
        status.reason = match entry.state {
            VersionState::Ready(_) => format!("could not be loaded again: {failure}"),
            _ => failure.clone(),
        };
    }
    if let Some(lost) = entry.state.ready().and_then(|served| served.lost()) {
        status.state = "failed";
        status.reason = lost;
    }
    let since = entry.since.duration_since(UNIX_EPOCH);
    status.since = since.unwrap_or_default().as_secs_f64();
    let leaving = entry.leaving.upgrade();
    if let Some(served) = entry.state.ready().or(leaving.as_ref()) {
        let traffic = served.traffic.read();
        status.memory_bytes = served.memory_bytes;
        status.in_flight = served.traffic.in_flight();
        status.answered = traffic.answered;
        status.failed = traffic.failed;
        status.load_ms = served.load_time.as_millis() as u64;
    }
    status
}

fn of_trial(trial: &Trial, entry: &ModelEntry) -> TrialStatus {
    TrialStatus {
        stable: trial.stable,
        candidate: trial.candidate,
        copies: trial.counts(),
        evidence: evidence(trial, entry, &Baseline::default()),
        comparison: serde_json::to_value(trial.figures()).unwrap_or_default(),
    }
}
