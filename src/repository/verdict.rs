//! Whether a candidate version holds beside the stable one: the rules of `[rollout]`, pure.

use std::time::Duration;

use serde::Serialize;

use crate::{
    config::{RolloutConfig, rollout::MaxDrift},
    quality::drift::State,
};

/// What was seen of one version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seen {
    /// Requests that it answered or failed.
    pub requests: u64,
    /// Those that failed by the server's fault.
    pub failed: u64,
    /// The 99th percentile of its latency, in milliseconds.
    pub p99_ms: Option<f64>,
}

impl Seen {
    /// From a reading of its traffic.
    pub fn new(answered: u64, failed: u64, p99: Option<Duration>) -> Self {
        Self {
            requests: answered + failed,
            failed,
            p99_ms: p99.map(|p99| p99.as_secs_f64() * 1e3),
        }
    }
}

/// What is known of a candidate.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Evidence {
    /// The stable version.
    pub stable: Seen,
    /// The candidate. Of a shadow, its copies.
    pub candidate: Seen,
    /// Requests that both answered.
    pub compared: u64,
    /// How far these answers agree, 0 to 1.
    pub agreement: Option<f64>,
    /// Whether the candidate's rows have drifted from its baseline, where that is looked for.
    pub drift: Option<Drift>,
}

/// How a candidate's rows stand to its baseline.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Drift {
    /// The worst state of any signal.
    pub state: State,
    /// The signals that are not as usual, and how far off they are.
    pub signals: Vec<(&'static str, f64)>,
}

/// A rule that a candidate broke.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BrokenRule {
    /// The rule's key in `[rollout]`.
    pub rule: &'static str,
    /// What was found.
    pub found: f64,
    /// What would have been right.
    pub allowed: f64,
}

impl std::fmt::Display for BrokenRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            rule,
            found,
            allowed,
        } = self;
        write!(f, "{rule}: found {found:.4}, allowed {allowed:.4}")
    }
}

/// What the evidence says.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Too little was seen, out of so many requests that are needed.
    Unknown {
        /// Requests seen.
        seen: u64,
        /// Requests needed.
        needed: u64,
    },
    /// Every rule holds.
    Holds,
    /// A rule is broken.
    Broken(BrokenRule),
}

/// Judges a candidate by the rules.
///
/// Failures count from the first request on, as soon as there are more than the window's least number
/// of requests may have: a candidate that fails at once is not given a hundred requests to fail.
pub fn judge(rules: &RolloutConfig, evidence: &Evidence) -> Verdict {
    let candidate = &evidence.candidate;
    let broken = |rule, found, allowed| {
        Verdict::Broken(BrokenRule {
            rule,
            found,
            allowed,
        })
    };
    let error_rate = candidate.failed as f64 / candidate.requests.max(1) as f64;
    let tolerated = rules.max_error_rate * rules.min_requests as f64;
    if candidate.failed as f64 > tolerated && error_rate > rules.max_error_rate {
        return broken("max_error_rate", error_rate, rules.max_error_rate);
    }
    // A state changes after windows of rows, which are enough whatever the requests.
    if let Some(drift) = &evidence.drift
        && drift.state > allowed(rules.max_drift)
    {
        let number = |state: State| f64::from(state as u8);
        return broken(
            "max_drift",
            number(drift.state),
            number(allowed(rules.max_drift)),
        );
    }
    // Answers that differ widely show in few comparisons.
    if rules.min_agreement > 0.0
        && let Some(agreement) = evidence.agreement
        && evidence.compared >= rules.min_requests.div_ceil(5)
        && agreement < rules.min_agreement
    {
        return broken("min_agreement", agreement, rules.min_agreement);
    }
    let mut seen = candidate.requests;
    if rules.min_agreement > 0.0 && evidence.compared < rules.min_requests.div_ceil(5) {
        seen = seen.min(evidence.compared * 5);
    }
    if seen < rules.min_requests {
        return Verdict::Unknown {
            seen,
            needed: rules.min_requests,
        };
    }
    if rules.max_p99_ratio > 0.0
        && let (Some(stable), Some(candidate)) = (evidence.stable.p99_ms, candidate.p99_ms)
        && candidate / stable > rules.max_p99_ratio
    {
        return broken("max_p99_ratio", candidate / stable, rules.max_p99_ratio);
    }
    Verdict::Holds
}

/// The worst state that a candidate may be in.
fn allowed(max: MaxDrift) -> State {
    match max {
        MaxDrift::Ok => State::Ok,
        MaxDrift::Warning => State::Warning,
        MaxDrift::Drifted => State::Drifted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(requests: u64, failed: u64, p99_ms: f64) -> Seen {
        Seen {
            requests,
            failed,
            p99_ms: Some(p99_ms),
        }
    }

    fn evidence(candidate: Seen, compared: u64, agreement: f64) -> Evidence {
        Evidence {
            stable: seen(1000, 0, 10.0),
            candidate,
            compared,
            agreement: Some(agreement),
            drift: None,
        }
    }

    fn broken_rule(evidence: &Evidence) -> Option<&'static str> {
        match judge(&RolloutConfig::default(), evidence) {
            Verdict::Broken(broken) => Some(broken.rule),
            _ => None,
        }
    }

    #[test]
    fn a_candidate_like_the_stable_version_holds() {
        let rules = RolloutConfig::default();
        let good = evidence(seen(100, 1, 12.0), 20, 0.999);
        assert_eq!(judge(&rules, &good), Verdict::Holds);
    }

    #[test]
    fn too_few_requests_say_nothing() {
        let rules = RolloutConfig::default();
        let few = evidence(seen(99, 0, 90.0), 20, 1.0);
        let needed = 100;
        assert_eq!(judge(&rules, &few), Verdict::Unknown { seen: 99, needed });
        let uncompared = evidence(seen(500, 0, 10.0), 3, 1.0);
        let unknown = Verdict::Unknown { seen: 15, needed };
        assert_eq!(judge(&rules, &uncompared), unknown);
    }

    #[test]
    fn each_rule_is_broken_by_its_own_fault() {
        assert_eq!(
            broken_rule(&evidence(seen(200, 3, 12.0), 40, 1.0)),
            Some("max_error_rate")
        );
        assert_eq!(
            broken_rule(&evidence(seen(200, 0, 21.0), 40, 1.0)),
            Some("max_p99_ratio")
        );
        assert_eq!(
            broken_rule(&evidence(seen(200, 0, 12.0), 40, 0.9)),
            Some("min_agreement")
        );
    }

    #[test]
    fn a_candidate_that_drifts_is_broken_before_anything_else_is_known() {
        let drifting = |state| Evidence {
            drift: Some(Drift {
                state,
                signals: vec![("length", 0.4)],
            }),
            ..evidence(seen(3, 0, 1.0), 0, 1.0)
        };
        assert_eq!(broken_rule(&drifting(State::Drifted)), Some("max_drift"));
        assert_eq!(broken_rule(&drifting(State::Warning)), None);
        assert_eq!(broken_rule(&drifting(State::Ok)), None);
        let judged = |max_drift| {
            let rules = RolloutConfig {
                max_drift,
                ..RolloutConfig::default()
            };
            matches!(judge(&rules, &drifting(State::Warning)), Verdict::Broken(_))
        };
        assert!(judged(MaxDrift::Ok) && !judged(MaxDrift::Drifted));
    }

    #[test]
    fn a_candidate_that_fails_or_differs_from_the_start_is_not_waited_for() {
        assert_eq!(
            broken_rule(&evidence(seen(2, 2, 1.0), 0, 1.0)),
            Some("max_error_rate")
        );
        assert_eq!(broken_rule(&evidence(seen(2, 1, 1.0), 0, 1.0)), None);
        assert_eq!(
            broken_rule(&evidence(seen(25, 0, 1.0), 20, 0.2)),
            Some("min_agreement")
        );
    }
}
