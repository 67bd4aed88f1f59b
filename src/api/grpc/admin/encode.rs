//! What the repository tells, as messages.

use std::{sync::Arc, time::Duration};

use prost_types::Timestamp;

use crate::{
    api::proto::ferry::v1 as pb,
    error::RequestError,
    repository::{
        Decision, ModelStatus, Repository, Route, Share, Swap, TrialStatus, VersionStatus,
    },
};

/// One model's status, if it is there. Looks at the models folder, so not on an I/O thread.
pub async fn status(repository: &Arc<Repository>, name: &str) -> Option<pb::ModelStatus> {
    let (repository, name) = (Arc::clone(repository), name.to_owned());
    let looking = tokio::task::spawn_blocking(move || repository.status_of(&name));
    looking.await.ok()?.as_ref().map(model)
}

/// The status of the model called `name`, or of all where it is empty.
///
/// # Errors
/// [`RequestError::ModelNotFound`].
pub async fn named(
    repository: &Arc<Repository>,
    name: &str,
) -> Result<Vec<pb::ModelStatus>, RequestError> {
    let looking = Arc::clone(repository);
    let models = tokio::task::spawn_blocking(move || looking.status())
        .await
        .map_err(|_| RequestError::internal("the status panicked; see the log"))?;
    if name.is_empty() {
        return Ok(models.iter().map(model).collect());
    }
    if let Some(found) = models.iter().find(|model| model.name == name) {
        return Ok(vec![model(found)]);
    }
    let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    Err(RequestError::ModelNotFound {
        name: name.chars().take(64).collect(),
        known: if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        },
    })
}

/// The versions of a model that take requests.
pub fn ready_versions(repository: &Repository, name: &str) -> Vec<u64> {
    let versions = repository.status_of(name).map(|model| model.versions);
    let versions = versions.unwrap_or_default();
    versions
        .into_iter()
        .filter(|version| version.state == "ready")
        .map(|version| version.version)
        .collect()
}

/// A route.
pub fn route(route: &Route) -> pb::Route {
    let share = |share: Option<Share>| {
        share.map(|Share { version, percent }| pb::Share { version, percent })
    };
    pb::Route {
        stable: route.stable.unwrap_or_default(),
        canary: share(route.canary),
        shadow: share(route.shadow),
        labels: route.labels.clone().into_iter().collect(),
        previous: route.previous.unwrap_or_default(),
    }
}

/// What a swap did, in a sentence.
pub fn swapped(model: &str, swap: &Swap) -> String {
    let Swap { from, to, load, .. } = swap;
    let loaded = match load.as_millis() {
        0 => "was ready".to_owned(),
        milliseconds => format!("loaded and warmed in {milliseconds} ms"),
    };
    match from {
        Some(from) => format!("{model}: {to} serves instead of {from}; it {loaded}"),
        None => format!("{model}: {to} serves; it {loaded}"),
    }
}

fn model(status: &ModelStatus) -> pb::ModelStatus {
    let route = route(&status.route);
    let is_routed = route != pb::Route::default();
    pb::ModelStatus {
        name: status.name.clone(),
        task: status.task.clone(),
        route: is_routed.then_some(route),
        versions: status
            .versions
            .iter()
            .map(|version| self::version(version, status))
            .collect(),
        decisions: status.decisions.iter().map(decision).collect(),
        reason: status.note.clone(),
    }
}

fn version(version: &VersionStatus, model: &ModelStatus) -> pb::VersionStatus {
    use pb::VersionState as S;
    let state = match version.state {
        "absent" => S::Absent,
        "loading" => S::Loading,
        "warming" => S::Warming,
        "ready" => S::Ready,
        "draining" => S::Draining,
        "failed" => S::Failed,
        _ => S::Unspecified,
    };
    let trial = model.trial.as_ref();
    let trial = trial.filter(|trial| trial.candidate == version.version);
    let shadow = model.route.shadow;
    pb::VersionStatus {
        version: version.version,
        state: state.into(),
        reason: version.reason.clone(),
        since: (version.since > 0.0).then(|| timestamp(version.since)),
        on_disk: version.on_disk,
        memory_bytes: version.memory_bytes,
        in_flight: version.in_flight as u64,
        percent: version.percent,
        shadow: shadow.is_some_and(|share| share.version == version.version),
        answered: version.answered,
        failed: version.failed,
        load_ms: version.load_ms,
        comparison: trial.map(figures).unwrap_or_default(),
    }
}

/// What was seen of a candidate, and of the stable version beside it.
fn figures(trial: &TrialStatus) -> Vec<pb::Figure> {
    let mut figures = Vec::new();
    let mut add = |name: String, value: f64| figures.push(pb::Figure { name, value });
    let evidence = &trial.evidence;
    for (who, seen) in [
        ("candidate", evidence.candidate),
        ("stable", evidence.stable),
    ] {
        add(format!("{who}.requests"), seen.requests as f64);
        add(format!("{who}.failed"), seen.failed as f64);
        if let Some(p99) = seen.p99_ms {
            add(format!("{who}.p99_ms"), p99);
        }
    }
    add("copies.compared".to_owned(), trial.copies.mirrored as f64);
    add("copies.dropped".to_owned(), trial.copies.dropped as f64);
    add("copies.failed".to_owned(), trial.copies.failed as f64);
    add_numbers("", &trial.comparison, &mut add);
    figures
}

/// Every number in a JSON document, by its path.
fn add_numbers(path: &str, value: &serde_json::Value, add: &mut impl FnMut(String, f64)) {
    match value {
        serde_json::Value::Number(number) => {
            if let Some(number) = number.as_f64() {
                add(path.to_owned(), number);
            }
        }
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                let inner = match path {
                    "" => name.clone(),
                    path => format!("{path}.{name}"),
                };
                add_numbers(&inner, value, add);
            }
        }
        _ => {}
    }
}

fn decision(decision: &Decision) -> pb::Decision {
    pb::Decision {
        at: Some(timestamp(decision.at)),
        action: decision.action.to_owned(),
        by: decision.by.to_owned(),
        version: decision.version,
        reason: decision.reason.clone(),
    }
}

/// Seconds since 1970 as a timestamp.
fn timestamp(seconds: f64) -> Timestamp {
    let since = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        // Finer than a millisecond says nothing, and f64 doesn't have it.
        nanos: since.subsec_millis() as i32 * 1_000_000,
    }
}
