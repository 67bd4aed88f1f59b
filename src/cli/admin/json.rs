//! What the server tells, for programs. Names are the proto's; times are RFC 3339.

use serde_json::{Value, json};

use super::table::state_name;
use crate::api::proto::ferry::v1 as pb;

pub fn models(models: &[pb::ModelStatus]) -> Value {
    json!({"models": models.iter().map(model).collect::<Vec<_>>()})
}

pub fn watched(message: &pb::WatchResponse) -> Value {
    let changes = message.changes.iter().map(|change| {
        json!({
            "model": change.model, "version": change.version,
            "from": state_name(change.from()), "to": state_name(change.to()),
            "reason": change.reason,
        })
    });
    json!({
        "models": message.models.iter().map(model).collect::<Vec<_>>(),
        "gone": message.gone,
        "changes": changes.collect::<Vec<_>>(),
    })
}

pub fn model(model: &pb::ModelStatus) -> Value {
    let decisions = model.decisions.iter().map(|decision| {
        json!({
            "at": decision.at.as_ref().map(ToString::to_string),
            "action": decision.action, "by": decision.by,
            "version": decision.version, "reason": decision.reason,
        })
    });
    json!({
        "name": model.name,
        "task": model.task,
        "reason": model.reason,
        "route": model.route.as_ref().map(route),
        "versions": model.versions.iter().map(version).collect::<Vec<_>>(),
        "decisions": decisions.collect::<Vec<_>>(),
    })
}

pub fn route_answer(answer: &pb::RouteResponse) -> Value {
    json!({"model": answer.model, "route": answer.route.as_ref().map(route)})
}

fn route(route: &pb::Route) -> Value {
    let share = |share: Option<pb::Share>| {
        share.map(|share| json!({"version": share.version, "percent": share.percent}))
    };
    // In the order of the labels, so that equal routes are equal texts.
    let labels: std::collections::BTreeMap<_, _> = route.labels.iter().collect();
    let or_null = |version: u64| Some(version).filter(|version| *version > 0);
    json!({
        "stable": or_null(route.stable),
        "canary": share(route.canary),
        "shadow": share(route.shadow),
        "labels": labels,
        "previous": or_null(route.previous),
    })
}

fn version(version: &pb::VersionStatus) -> Value {
    let comparison = version.comparison.iter();
    let comparison = comparison.map(|figure| (figure.name.clone(), json!(figure.value)));
    json!({
        "version": version.version,
        "state": state_name(version.state()),
        "reason": version.reason,
        "since": version.since.as_ref().map(ToString::to_string),
        "memory_bytes": version.memory_bytes,
        "in_flight": version.in_flight,
        "percent": version.percent,
        "shadow": version.shadow,
        "on_disk": version.on_disk,
        "answered": version.answered,
        "failed": version.failed,
        "load_ms": version.load_ms,
        "comparison": comparison.collect::<serde_json::Map<_, _>>(),
    })
}
