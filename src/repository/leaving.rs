//! Takes versions out of service: they drain, and are gone when their last request is.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Repository,
    store::lock,
    table::{ModelEntry, VersionState, unknown},
};
use crate::error::RequestError;

impl Repository {
    /// Takes a version out of service, or all of them. Requests that were accepted are answered; then
    /// it is freed.
    ///
    /// # Errors
    /// [`RequestError::ModelNotFound`] when no model of that name was ever loaded,
    /// [`RequestError::VersionNotFound`] when that version was not, [`RequestError::Refused`] when it
    /// is the stable one and others are ready: that would leave them without requests.
    pub fn unload(&self, name: &str, version: Option<u64>) -> Result<(), RequestError> {
        let table = self.table();
        if !table.contains_key(name) {
            return Err(unknown(&table, name));
        }
        let operation = self.operation_of(name);
        let _held = lock(&operation);
        let entry = self.entry(name)?;
        if let Some(version) = version {
            if !entry.versions.contains_key(&version) {
                return Err(entry.no_such_version(name, &version.to_string()));
            }
            let mut others = entry.all_ready().filter(|(other, _)| *other != version);
            if entry.route.stable == Some(version)
                && let Some((other, _)) = others.next()
            {
                return Err(RequestError::Refused {
                    what: format!(
                        "version {version} of model '{name}' is the stable one; swap to another \
                         (such as {other}) first, or unload the model as a whole"
                    ),
                });
            }
        }
        self.take_out(name, version, "unloaded", false);
        Ok(())
    }

    /// Takes a version out of service, or all of them. The caller holds the model's operation.
    pub(super) fn take_out(&self, name: &str, version: Option<u64>, why: &str, evicted: bool) {
        self.inner.change(name, |entry| {
            let gone: Vec<u64> = match version {
                Some(version) => vec![version],
                None => entry.versions.keys().copied().collect(),
            };
            for version in gone {
                if !evicted {
                    entry.route.forget(version);
                }
                leave(entry, version, why);
            }
            entry.evicted = evicted;
            if entry.all_ready().next().is_none() {
                entry.note = Some(why.to_owned());
            }
        });
        tracing::info!(model = name, version, why, "unloaded");
    }

    /// Waits until a version that takes no more requests has ended those it had; true when it has.
    pub fn wait_until_gone(&self, name: &str, version: u64, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut changing = lock(&self.inner.changing);
        loop {
            let draining = self.table().get(name).is_some_and(|entry| {
                let entry = entry.versions.get(&version);
                entry.is_some_and(|entry| matches!(entry.state, VersionState::Draining))
            });
            let left = end.saturating_duration_since(Instant::now());
            if !draining || left.is_zero() {
                return !draining;
            }
            let waited = self.inner.settled.wait_timeout(changing, left);
            changing = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Lets a version go that nothing routes to, unless it is kept for rolling back.
pub(super) fn retire(entry: &mut ModelEntry, version: Option<u64>) {
    let Some(version) = version.filter(|&version| !entry.route.uses(version)) else {
        return;
    };
    let keeps = entry
        .stable()
        .is_some_and(|stable| stable.manifest.versions.keep_previous);
    if keeps && entry.route.previous == Some(version) {
        return;
    }
    leave(entry, version, "replaced");
}

/// Takes a version's loaded copy out of the table: it drains, and is gone when its last request is.
pub(super) fn leave(entry: &mut ModelEntry, version: u64, why: &str) {
    let copy = entry
        .ready(version)
        .map(|served| (served.lease.copy(), Arc::downgrade(served)));
    let state = match copy {
        Some(_) => VersionState::Draining,
        None => VersionState::Absent {
            reason: why.to_owned(),
        },
    };
    entry.set(version, state);
    if let (Some((copy, leaving)), Some(entry)) = (copy, entry.versions.get_mut(&version)) {
        entry.copy = copy;
        entry.leaving = leaving;
        // What to say once it has drained.
        entry.last_failure = Some(why.to_owned());
    }
}
