//! Changes who is answered by which version: swap, route, promote, roll back. Each change is kept with
//! what it was based on.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{
    Repository,
    leaving::retire,
    rollout::{Baseline, evidence, in_figures},
    route::{Route, RouteChange},
    store::lock,
    table::{Decision, ModelEntry},
    verdict::{Verdict, judge},
};
use crate::{config::rollout::is_label, error::RequestError};

/// What a swap did.
#[derive(Debug, Clone, PartialEq)]
pub struct Swap {
    /// The version that was stable before.
    pub from: Option<u64>,
    /// The version that is now.
    pub to: u64,
    /// How long it took to load and warm; nothing where it was ready.
    pub load: Duration,
    /// Requests that the old version still had as it stopped getting more.
    pub in_flight: usize,
}

/// Who changes a route, and why; kept with the model's decisions and logged.
#[derive(Debug, Clone)]
pub(super) struct Reason {
    pub action: &'static str,
    pub by: &'static str,
    pub why: String,
}

impl Repository {
    /// Makes `version` the stable one: loads it beside the old one if it is not ready, routes to it
    /// at once, and lets the old one end what it has. No request fails, and none waits for the load.
    ///
    /// # Errors
    /// As [`Repository::load`]; the old version serves on then.
    pub fn swap(&self, name: &str, version: u64) -> Result<Swap, RequestError> {
        self.swap_because(
            name,
            version,
            Reason {
                action: "swap",
                by: "operator",
                why: "asked for".to_owned(),
            },
        )
    }

    pub(super) fn swap_because(
        &self,
        name: &str,
        version: u64,
        reason: Reason,
    ) -> Result<Swap, RequestError> {
        let operation = self.operation(name)?;
        let mut held = lock(&operation);
        *held = None;
        let entry = self.entry(name)?;
        let began = Instant::now();
        if entry.ready(version).is_none() {
            self.load_one(&self.found(name)?, version)?;
        }
        let load = began.elapsed();
        let mut swap = Swap {
            from: None,
            to: version,
            load,
            in_flight: 0,
        };
        self.inner.change(name, |entry| {
            swap.from = entry.route.stable.filter(|&from| from != version);
            if let Some(from) = swap.from.and_then(|from| entry.ready(from)) {
                swap.in_flight = from.traffic.in_flight();
            }
            entry.route.promote(version);
            decide(name, entry, version, reason);
            retire(entry, swap.from);
        });
        self.save_route(name);
        Ok(swap)
    }

    /// Changes who gets which version. Every version that is routed to must be ready.
    ///
    /// # Errors
    /// [`RequestError`] naming the version that is not ready, or the percentage or label that is not
    /// one.
    pub fn set_route(&self, name: &str, change: &RouteChange) -> Result<Route, RequestError> {
        let entry = self.entry(name)?;
        check_change(name, &entry, change)?;
        let route = self.inner.change(name, |entry| {
            let route = &mut entry.route;
            if let Some(stable) = change.stable {
                route.promote(stable);
            }
            if let Some(canary) = change.canary {
                route.canary = canary;
            }
            if let Some(shadow) = change.shadow {
                route.shadow = shadow;
            }
            for (label, version) in &change.labels {
                match version {
                    Some(version) => route.labels.insert(label.clone(), *version),
                    None => route.labels.remove(label),
                };
            }
            let reason = Reason {
                action: "route",
                by: "operator",
                why: describe(&entry.route),
            };
            let about = entry.route.candidate().or(entry.route.stable);
            decide(name, entry, about.unwrap_or(0), reason);
            entry.route.clone()
        });
        self.save_route(name);
        Ok(route)
    }

    /// Changes a route for a reason, without any check.
    pub(super) fn change_route(
        &self,
        name: &str,
        version: u64,
        reason: Reason,
        change: impl FnOnce(&mut Route),
    ) -> Result<Route, RequestError> {
        self.entry(name)?;
        let route = self.inner.change(name, |entry| {
            change(&mut entry.route);
            decide(name, entry, version, reason);
            entry.route.clone()
        });
        self.save_route(name);
        Ok(route)
    }

    /// Makes the canary (or else the shadow) the stable version, and lets the old one end what it
    /// has. Without `force`, only when the manifest's rules hold, so far as there is evidence.
    ///
    /// # Errors
    /// [`RequestError::Refused`] when there is no candidate, or it breaks a rule; with the figures.
    pub fn promote(&self, name: &str, force: bool) -> Result<Route, RequestError> {
        let entry = self.entry(name)?;
        if let (Some(trial), Some(stable)) = (&entry.trial, entry.stable())
            && !force
        {
            let evidence = evidence(trial, &entry, &Baseline::default());
            let why = match judge(&stable.manifest.rollout, &evidence) {
                Verdict::Holds => None,
                Verdict::Broken(broken) => Some(broken.to_string()),
                Verdict::Unknown { seen, needed } => Some(format!(
                    "{seen} requests were seen (and a fifth of them compared), {needed} are needed"
                )),
            };
            if let Some(why) = why {
                let figures = in_figures(&evidence);
                let what = format!(
                    "version {} of model '{name}' is not promoted: {why}; {figures}; force it to \
                     promote all the same",
                    trial.candidate
                );
                let reason = Reason {
                    action: "refuse",
                    by: "operator",
                    why: format!("{why}; {figures}"),
                };
                self.change_route(name, trial.candidate, reason, |_| {})?;
                return Err(RequestError::Refused { what });
            }
        }
        self.promote_because(
            name,
            Reason {
                action: "promote",
                by: "operator",
                why: "asked for".to_owned(),
            },
        )
    }

    pub(super) fn promote_because(
        &self,
        name: &str,
        reason: Reason,
    ) -> Result<Route, RequestError> {
        let entry = self.entry(name)?;
        let candidate = entry.route.candidate();
        let Some(candidate) = candidate.filter(|&version| entry.ready(version).is_some()) else {
            return Err(RequestError::Refused {
                what: format!(
                    "model '{name}' has no canary or shadow that is ready; set one first"
                ),
            });
        };
        let route = self.inner.change(name, |entry| {
            let from = entry.route.stable;
            entry.route.promote(candidate);
            decide(name, entry, candidate, reason);
            retire(entry, from);
            entry.route.clone()
        });
        self.save_route(name);
        // What it was asked and said while it was looked at is what is usual for it from now on.
        if let Some(drift) = entry
            .ready(candidate)
            .and_then(|served| served.drift.as_ref())
        {
            drift.rebase();
        }
        Ok(route)
    }

    /// Ends the candidacy of canary and shadow; where there is none, goes back to the version that
    /// was stable before, which is loaded if it isn't there any more.
    ///
    /// # Errors
    /// [`RequestError::Refused`] when there is nothing to go back to, or as [`Repository::load`].
    pub fn rollback(&self, name: &str) -> Result<Route, RequestError> {
        self.rollback_because(
            name,
            Reason {
                action: "rollback",
                by: "operator",
                why: "asked for".to_owned(),
            },
        )
    }

    pub(super) fn rollback_because(
        &self,
        name: &str,
        reason: Reason,
    ) -> Result<Route, RequestError> {
        let entry = self.entry(name)?;
        if let Some(candidate) = entry.route.candidate() {
            let route = self.inner.change(name, |entry| {
                let also = entry.route.shadow.map(|shadow| shadow.version);
                for version in [Some(candidate), also].into_iter().flatten() {
                    entry.route.forget_candidate(version);
                    retire(entry, Some(version));
                }
                decide(name, entry, candidate, reason);
                entry.route.clone()
            });
            self.save_route(name);
            return Ok(route);
        }
        let Some(previous) = entry.route.previous else {
            return Err(RequestError::Refused {
                what: format!(
                    "model '{name}' has no canary, no shadow and no version that was stable \
                     before; use swap with a version"
                ),
            });
        };
        self.swap_because(name, previous, reason)?;
        Ok(self.entry(name)?.route.clone())
    }
}

/// Checks that a change routes to what is ready, in shares that are ones.
fn check_change(name: &str, entry: &ModelEntry, change: &RouteChange) -> Result<(), RequestError> {
    let shares = [("canary", change.canary), ("shadow", change.shadow)];
    let shares = shares
        .into_iter()
        .filter_map(|(role, share)| Some((role, share??)));
    for (role, share) in shares.clone() {
        if !(0.0..=100.0).contains(&share.percent) {
            return Err(RequestError::invalid(
                format!("{role}.percent"),
                share.percent,
                "0 to 100",
            ));
        }
        if Some(share.version) == change.stable.or(entry.route.stable) {
            return Err(RequestError::invalid(
                format!("{role}.version"),
                share.version,
                "another version than the stable one",
            ));
        }
    }
    let labelled = change.labels.iter();
    for (label, _) in labelled.clone() {
        if !is_label(label) || label == "stable" || label == "canary" {
            return Err(RequestError::invalid(
                "labels",
                format_args!("'{}'", label.chars().take(64).collect::<String>()),
                "letters, digits, '-', '_', '.', beginning with a letter; 'latest', 'stable' and \
                 'canary' are taken",
            ));
        }
    }
    let versions = change
        .stable
        .into_iter()
        .chain(shares.map(|(_, share)| share.version))
        .chain(labelled.filter_map(|(_, version)| *version));
    for version in versions {
        if entry.ready(version).is_some() {
            continue;
        }
        return Err(RequestError::Refused {
            what: format!(
                "version {version} of model '{name}' is {}; warm it first",
                entry
                    .versions
                    .get(&version)
                    .map_or("absent", |entry| entry.state.name())
            ),
        });
    }
    Ok(())
}

/// Remembers and logs a change of the route.
fn decide(name: &str, entry: &mut ModelEntry, version: u64, reason: Reason) {
    let Reason {
        action,
        by,
        why: reason,
    } = reason;
    tracing::info!(
        model = name,
        version,
        action,
        by,
        reason,
        route = describe(&entry.route),
        "route changed"
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    entry.remember(Decision {
        at: now.unwrap_or_default().as_secs_f64(),
        action,
        by,
        version,
        reason,
    });
}

/// A route in words.
fn describe(route: &Route) -> String {
    let mut parts = Vec::new();
    if let Some(stable) = route.stable {
        parts.push(format!("stable {stable}"));
    }
    for (role, share) in [("canary", route.canary), ("shadow", route.shadow)] {
        if let Some(share) = share {
            parts.push(format!("{role} {} at {} %", share.version, share.percent));
        }
    }
    for (label, version) in &route.labels {
        parts.push(format!("{label} {version}"));
    }
    if parts.is_empty() {
        return "nothing".to_owned();
    }
    parts.join(", ")
}
