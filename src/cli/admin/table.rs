//! What the server tells, for people.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use comfy_table::{CellAlignment, Table, presets};

use crate::api::proto::ferry::v1::{self as pb, VersionState};

/// A state as people say it.
pub fn state_name(state: VersionState) -> &'static str {
    match state {
        VersionState::Unspecified => "gone",
        VersionState::Absent => "absent",
        VersionState::Loading => "loading",
        VersionState::Warming => "warming",
        VersionState::Ready => "ready",
        VersionState::Draining => "draining",
        VersionState::Failed => "failed",
    }
}

/// A change of a state, in a line.
pub fn told(change: &pb::StateChange) -> String {
    let pb::StateChange { model, version, .. } = change;
    let state = state_name(change.to());
    match change.reason.as_str() {
        "" => format!("{model} {version}: {state}"),
        reason => format!("{model} {version}: {state}: {reason}"),
    }
}

/// All models: a line for each version.
pub fn overview(models: &[pb::ModelStatus]) -> String {
    let mut table = columns(&[
        "MODEL",
        "VERSION",
        "STATE",
        "TRAFFIC",
        "IN FLIGHT",
        "MEMORY",
        "SINCE",
        "NOTE",
    ]);
    for column in [1, 3, 4, 5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for model in models {
        let mut name = model.name.as_str();
        if model.versions.is_empty() {
            table.add_row([name, "-", "absent", "-", "-", "-", "-", &model.reason]);
        }
        for version in &model.versions {
            let is_loaded = matches!(
                version.state(),
                VersionState::Ready | VersionState::Draining
            );
            let if_loaded = |text: String| if is_loaded { text } else { "-".to_owned() };
            table.add_row([
                name.to_owned(),
                version.version.to_string(),
                state_name(version.state()).to_owned(),
                if_loaded(percent(version.percent)),
                if_loaded(version.in_flight.to_string()),
                if_loaded(mebibytes(version.memory_bytes)),
                version.since.as_ref().map_or_else(|| "-".to_owned(), age),
                note(model, version),
            ]);
            // Once for each model, as one reads it.
            name = "";
        }
    }
    lines(&table)
}

/// One model: its versions, its route, how candidates compare, what was decided.
pub fn details(model: &pb::ModelStatus) -> String {
    let mut page = overview(std::slice::from_ref(model));
    if let Some(shown) = &model.route {
        let _ = writeln!(page, "\nroute: {}", route(shown));
    }
    if !model.reason.is_empty() {
        let _ = writeln!(page, "\nnot served: {}", model.reason);
    }
    for version in &model.versions {
        if version.comparison.is_empty() {
            continue;
        }
        let number = version.version;
        let _ = writeln!(page, "\nversion {number} beside the stable one:");
        let mut table = columns(&["FIGURE", "FOUND"]);
        for figure in &version.comparison {
            table.add_row([figure.name.clone(), number_text(figure.value)]);
        }
        page.push_str(&lines(&table));
    }
    if !model.decisions.is_empty() {
        page.push_str("\ndecisions, newest last:\n");
        let mut table = columns(&["AT", "ACTION", "VERSION", "BY", "WHY"]);
        for decision in &model.decisions {
            table.add_row([
                decision
                    .at
                    .as_ref()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                decision.action.clone(),
                decision.version.to_string(),
                decision.by.clone(),
                decision.reason.clone(),
            ]);
        }
        page.push_str(&lines(&table));
    }
    page
}

/// A route in a line.
pub fn route(route: &pb::Route) -> String {
    let mut parts = Vec::new();
    match route.stable {
        0 => parts.push("no stable version".to_owned()),
        version => parts.push(format!("stable {version}")),
    }
    let mut share = |name: &str, share: Option<pb::Share>| {
        if let Some(pb::Share {
            version,
            percent: part,
        }) = share
        {
            parts.push(format!("{name} {version} ({})", percent(part)));
        }
    };
    share("canary", route.canary);
    share("shadow", route.shadow);
    let mut labels: Vec<_> = route.labels.iter().collect();
    labels.sort();
    parts.extend(
        labels
            .into_iter()
            .map(|(label, version)| format!("{label} = {version}")),
    );
    if route.previous > 0 {
        parts.push(format!("before: {}", route.previous));
    }
    parts.join(", ")
}

/// What a version is in the route, and why it is in its state.
fn note(model: &pb::ModelStatus, version: &pb::VersionStatus) -> String {
    let number = version.version;
    let mut parts = Vec::new();
    if let Some(route) = &model.route {
        if route.stable == number {
            parts.push("stable".to_owned());
        }
        if route.canary.is_some_and(|share| share.version == number) {
            parts.push("canary".to_owned());
        }
        if let Some(share) = route.shadow.filter(|share| share.version == number) {
            parts.push(format!("shadow of {}", percent(share.percent)));
        }
        let mut labels: Vec<_> = route
            .labels
            .iter()
            .filter(|(_, labelled)| **labelled == number)
            .map(|(label, _)| label.clone())
            .collect();
        labels.sort();
        parts.extend(labels);
    }
    // Of a version that nobody has touched its state says as much.
    let untouched = version.state() == VersionState::Absent && version.since.is_none();
    if !version.reason.is_empty() && !untouched {
        parts.push(version.reason.clone());
    }
    parts.join(", ")
}

fn columns(names: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(names);
    table
}

/// A table's lines without the spaces that line up nothing.
fn lines(table: &Table) -> String {
    let mut page = String::new();
    for line in table.lines() {
        let line = line.trim_end();
        // The first column has a space in front of it, too.
        let _ = writeln!(page, "{}", line.strip_prefix(' ').unwrap_or(line));
    }
    page
}

/// A time as short as it is still useful.
pub fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        short if short < 10.0 => format!("{short:.2} s"),
        middling if middling < 120.0 => format!("{middling:.1} s"),
        long => format!("{:.0} min", long / 60.0),
    }
}

fn age(since: &prost_types::Timestamp) -> String {
    let since = SystemTime::try_from(*since).unwrap_or(SystemTime::now());
    // A clock that was set back makes it now.
    let seconds = since.elapsed().unwrap_or_default().as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn percent(share: f64) -> String {
    format!("{} %", number_text(share))
}

/// Up to four digits after the point, and none that say nothing.
fn number_text(number: f64) -> String {
    let text = format!("{number:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_model_under_canary_reads_well() {
        let version = |version, state: VersionState, percent, reason: &str| pb::VersionStatus {
            version,
            state: state.into(),
            reason: reason.to_owned(),
            memory_bytes: 90 << 20,
            in_flight: 3,
            percent,
            ..pb::VersionStatus::default()
        };
        let share = Some(pb::Share {
            version: 2,
            percent: 12.5,
        });
        let model = pb::ModelStatus {
            name: "minilm".to_owned(),
            route: Some(pb::Route {
                stable: 1,
                canary: share,
                shadow: None,
                labels: HashMap::from([("blue".to_owned(), 2)]),
                previous: 0,
            }),
            versions: vec![
                version(1, VersionState::Ready, 87.5, ""),
                version(2, VersionState::Ready, 12.5, ""),
                version(3, VersionState::Failed, 0.0, "model.safetensors: cut short"),
            ],
            ..pb::ModelStatus::default()
        };
        let wanted = "\
MODEL   VERSION  STATE   TRAFFIC  IN FLIGHT    MEMORY  SINCE  NOTE
minilm        1  ready    87.5 %          3  90.0 MiB      -  stable
              2  ready    12.5 %          3  90.0 MiB      -  canary, blue
              3  failed        -          -         -      -  model.safetensors: cut short
";
        assert_eq!(overview(std::slice::from_ref(&model)), wanted);
        let page = details(&model);
        assert!(
            page.contains("route: stable 1, canary 2 (12.5 %), blue = 2"),
            "{page}"
        );
    }
}
