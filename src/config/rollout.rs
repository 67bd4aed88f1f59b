//! The manifest's `[versions]`, `[canary]`, `[shadow]` and `[rollout]`: which versions are loaded and
//! who gets which.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Violation;

/// Which of a model's versions are loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ServedVersions {
    /// A rule.
    Rule(VersionRule),
    /// Just these.
    These(Vec<u64>),
}

/// A rule for which versions are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionRule {
    /// The newest, as many as `versions.latest` says.
    Latest,
    /// All that are there.
    All,
}

/// Which versions are loaded, and what they are called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VersionsConfig {
    /// `"latest"`, `"all"`, or a list such as `[1, 3]`.
    pub serve: ServedVersions,
    /// How many of the newest, where `serve = "latest"`.
    pub latest: usize,
    /// The version that answers where a request names none; unset for the newest that is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable: Option<u64>,
    /// Whether the version that was stable before stays loaded, so that rolling back takes no load.
    pub keep_previous: bool,
    /// Further names that requests may give instead of a number.
    pub labels: BTreeMap<String, u64>,
}

impl Default for VersionsConfig {
    fn default() -> Self {
        Self {
            serve: ServedVersions::Rule(VersionRule::Latest),
            latest: 1,
            stable: None,
            keep_previous: false,
            labels: BTreeMap::new(),
        }
    }
}

impl VersionsConfig {
    /// The versions to load of those on disk (lowest first), lowest first. A canary or shadow that
    /// the manifest names is loaded whatever `serve` says.
    pub fn select(&self, on_disk: &[u64], also: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut selected: Vec<u64> = match &self.serve {
            ServedVersions::Rule(VersionRule::All) => on_disk.to_vec(),
            ServedVersions::Rule(VersionRule::Latest) => {
                let first = on_disk.len().saturating_sub(self.latest);
                on_disk[first..].to_vec()
            }
            ServedVersions::These(these) => these.clone(),
        };
        selected.extend(self.stable);
        selected.extend(also);
        selected.sort_unstable();
        selected.dedup();
        selected
    }
}

/// A version that gets a share of the requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShareConfig {
    /// The version; 0 for none.
    pub version: u64,
    /// Requests of a hundred that it gets.
    pub percent: f64,
}

/// How far a candidate's rows may have drifted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaxDrift {
    /// They must be as usual.
    Ok,
    /// Up to a warning.
    #[default]
    Warning,
    /// As far as they like.
    Drifted,
}

/// When a candidate (canary or shadow) is promoted or rolled back without anybody asking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// Whether candidates are judged at all.
    pub automatic: bool,
    /// How often, in seconds.
    pub window_seconds: f64,
    /// Requests that a candidate must have answered in a window to be judged.
    pub min_requests: u64,
    /// Requests of one that may fail by the server's fault.
    pub max_error_rate: f64,
    /// The candidate's 99th percentile of latency, as a multiple of the stable version's; 0 for any.
    pub max_p99_ratio: f64,
    /// How far the candidate's answers must agree with the stable version's, from 0 to 1; 0 for any.
    pub min_agreement: f64,
    /// The worst state of its drift, where its manifest has drift looked for and it has a baseline.
    pub max_drift: MaxDrift,
    /// Requests of a hundred at the canary that the stable version answers too, for `min_agreement`.
    pub compare_percent: f64,
    /// The canary's percentages on its way; after the last comes promotion.
    pub steps: Vec<f64>,
    /// Windows in a row that must hold before a step or a promotion; 0 never promotes.
    pub promote_after: u32,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            automatic: false,
            window_seconds: 30.0,
            min_requests: 100,
            max_error_rate: 0.01,
            max_p99_ratio: 2.0,
            min_agreement: 0.98,
            max_drift: MaxDrift::default(),
            compare_percent: 20.0,
            steps: Vec::new(),
            promote_after: 0,
        }
    }
}

pub(super) fn validate(
    versions: &VersionsConfig,
    canary: &ShareConfig,
    shadow: &ShareConfig,
    rollout: &RolloutConfig,
) -> Result<(), Violation> {
    Violation::unless(
        versions.latest >= 1,
        "versions.latest",
        versions.latest,
        "1 or more",
    )?;
    let these = match &versions.serve {
        ServedVersions::These(these) => these.as_slice(),
        ServedVersions::Rule(_) => &[1],
    };
    Violation::unless(
        !these.is_empty() && these.iter().all(|&version| version > 0),
        "versions.serve",
        format_args!("{these:?}"),
        "\"latest\", \"all\", or a list of versions from 1",
    )?;
    let odd = versions.labels.keys().find(|name| !is_label(name));
    Violation::unless(
        odd.is_none(),
        "versions.labels",
        odd.map_or("", String::as_str),
        "labels of letters, digits, '-', '_' and '.', beginning with a letter; 'latest' is taken",
    )?;
    let percentage = |value: f64| (0.0..=100.0).contains(&value);
    Violation::unless(
        percentage(canary.percent),
        "canary.percent",
        canary.percent,
        "0 to 100",
    )?;
    Violation::unless(
        percentage(shadow.percent),
        "shadow.percent",
        shadow.percent,
        "0 to 100",
    )?;
    Violation::unless(
        (0.05..=86_400.0).contains(&rollout.window_seconds),
        "rollout.window_seconds",
        rollout.window_seconds,
        "0.05 to 86400",
    )?;
    Violation::unless(
        rollout.min_requests >= 1,
        "rollout.min_requests",
        rollout.min_requests,
        "1 or more",
    )?;
    Violation::unless(
        (0.0..=1.0).contains(&rollout.max_error_rate),
        "rollout.max_error_rate",
        rollout.max_error_rate,
        "0 to 1",
    )?;
    Violation::unless(
        rollout.max_p99_ratio >= 0.0,
        "rollout.max_p99_ratio",
        rollout.max_p99_ratio,
        "0 (any) or more",
    )?;
    Violation::unless(
        (0.0..=1.0).contains(&rollout.min_agreement),
        "rollout.min_agreement",
        rollout.min_agreement,
        "0 (any) to 1",
    )?;
    Violation::unless(
        percentage(rollout.compare_percent),
        "rollout.compare_percent",
        rollout.compare_percent,
        "0 to 100",
    )?;
    Violation::unless(
        rollout.steps.iter().all(|&step| percentage(step)) && rollout.steps.is_sorted(),
        "rollout.steps",
        format_args!("{:?}", rollout.steps),
        "percentages from 0 to 100, rising",
    )
}

/// Whether a text may be a label: it can't be taken for a version's number.
pub fn is_label(name: &str) -> bool {
    name != "latest"
        && name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(text: &str) -> VersionsConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_newest_are_selected_unless_it_says_otherwise() {
        let on_disk = [1, 2, 5];
        let select = |text: &str| versions(text).select(&on_disk, []);
        assert_eq!(select(""), [5]);
        assert_eq!(select("latest = 2"), [2, 5]);
        assert_eq!(select("serve = \"all\""), [1, 2, 5]);
        assert_eq!(select("serve = [1, 2]"), [1, 2]);
        assert_eq!(select("stable = 1"), [1, 5]);
        assert_eq!(versions("").select(&on_disk, [2]), [2, 5]);
        assert_eq!(versions("").select(&[], []), [0_u64; 0]);
    }

    #[test]
    fn a_label_is_never_a_number() {
        for label in ["stable", "canary", "blue-2", "v1.5"] {
            assert!(is_label(label), "{label}");
        }
        for other in ["", "1", "1a", "latest", "a b", "ä", "../x"] {
            assert!(!is_label(other), "{other}");
        }
    }
}
