//! Brings versions to where they take requests: memory first, then files, warm-up, and the table.

use std::sync::{Arc, atomic::Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::{
    FoundModel, LoadError, Repository, ServedModel,
    lease::Lease,
    leaving::retire,
    load::{LoadSettings, LoadStage, load_version, read_manifest},
    memory::{self, NoMemory},
    route::{Route, Share},
    state_file,
    store::{Inner, lock},
    table::{ModelEntry, VersionState},
};
use crate::{config::ModelManifest, device::Place, error::RequestError, telemetry::Traffic};

/// How long an evicted model's last requests are waited for.
const EVICTION: Duration = Duration::from_secs(5);

impl Repository {
    /// Loads the versions that the model's manifest asks for, or one `version`; again, where it is
    /// loaded already. What was loaded before serves until the new copy is ready, and goes on when
    /// that fails. Many who ask at once have it loaded once. Takes seconds; call it off the I/O threads.
    ///
    /// A single version that nothing routes to takes only requests that name it, unless the model had
    /// no version to serve.
    ///
    /// # Errors
    /// [`RequestError::ModelNotFound`] when there is no such folder,
    /// [`RequestError::VersionNotFound`], [`RequestError::ModelNotReady`] with the reason when it
    /// doesn't load.
    pub fn load(&self, name: &str, version: Option<u64>) -> Result<Arc<ServedModel>, RequestError> {
        let operation = self.operation(name)?;
        let asked = Instant::now();
        let mut last_load = lock(&operation);
        let began = Instant::now();
        let is_done = last_load.take().is_some_and(|began| began >= asked);
        if version.is_none()
            && is_done
            && let Ok(served) = self.find(name, "", None)
        {
            // Many asked at once: what one of them began since then is what they all wanted.
            *last_load = Some(asked);
            return Ok(served);
        }
        let found = self.found(name)?;
        let Some(version) = version else {
            let served = self.load_selected(&found)?;
            *last_load = Some(began);
            return Ok(served);
        };
        let served = self.load_one(&found, version)?;
        self.inner.change(name, |entry| {
            if entry.stable().is_none() {
                entry.route.stable = Some(version);
            }
        });
        Ok(served)
    }

    /// Brings a version to where it could take requests, without giving it any that don't name it.
    ///
    /// # Errors
    /// As [`Repository::load`].
    pub fn warm(&self, name: &str, version: u64) -> Result<Arc<ServedModel>, RequestError> {
        let operation = self.operation(name)?;
        let _held = lock(&operation);
        let entry = self.entry(name)?;
        match entry.ready(version) {
            Some(served) => Ok(Arc::clone(served)),
            None => self.load_one(&self.found(name)?, version),
        }
    }

    /// Loads what the manifest asks for, and routes by it.
    fn load_selected(&self, found: &FoundModel) -> Result<Arc<ServedModel>, RequestError> {
        let name = &found.name;
        let manifest = match manifest_of(found) {
            Ok(manifest) => manifest,
            Err(error) => return Err(self.failed(name, found.versions.last().copied(), &error)),
        };
        // What was decided in an earlier run holds until somebody loads the model anew.
        let kept = match self.table().get(name) {
            Some(entry) if entry.stable().is_some() => None,
            _ => state_file::read(&self.inner.config.state_file).remove(name),
        };
        let asked = asked_route(&manifest, kept);
        let also = [asked.stable, asked.canary.map(|share| share.version)]
            .into_iter()
            .chain([asked.shadow.map(|share| share.version)])
            .flatten()
            .chain(asked.labels.values().copied());
        let selected = manifest.versions.select(&found.versions, also);
        let mut failure = None;
        // The newest first: what is asked for most is served soonest.
        for &version in selected.iter().rev() {
            if let Err(error) = self.load_one(found, version) {
                failure = failure.or(Some(error));
            }
        }
        self.inner.change(name, |entry| {
            let ready: Vec<u64> = entry
                .all_ready()
                .map(|(version, _)| version)
                .filter(|version| selected.contains(version))
                .collect();
            let is_ready = |version: &u64| ready.contains(version);
            let ready_share = |share: &Share| ready.contains(&share.version);
            let before = entry.route.clone();
            let candidate = asked.candidate();
            let newest = ready
                .iter()
                .rev()
                .find(|&&version| Some(version) != candidate);
            let stable = asked.stable.filter(is_ready);
            let stable = stable.or(newest.copied()).or(before.stable);
            entry.route = Route {
                stable,
                canary: asked.canary.filter(ready_share),
                shadow: asked.shadow.filter(ready_share),
                labels: asked.labels.clone(),
                previous: asked.previous.or(before.previous),
            };
            entry.route.labels.retain(|_, version| is_ready(version));
            if before.stable != stable && before.stable.is_some() {
                entry.route.previous = before.stable;
            }
            entry.note = None;
            entry.evicted = false;
            let unwanted: Vec<u64> = entry
                .all_ready()
                .map(|(version, _)| version)
                .filter(|version| !selected.contains(version))
                .collect();
            for version in unwanted {
                retire(entry, Some(version));
            }
        });
        match failure {
            Some(error) => Err(error),
            None => self.find(name, "", None),
        }
    }

    /// Loads one version to ready. The caller holds the model's operation.
    pub(super) fn load_one(
        &self,
        found: &FoundModel,
        version: u64,
    ) -> Result<Arc<ServedModel>, RequestError> {
        let name = &found.name;
        if !found.versions.contains(&version) {
            let known: Vec<String> = found.versions.iter().map(ToString::to_string).collect();
            return Err(RequestError::VersionNotFound {
                name: name.clone(),
                version: version.to_string(),
                known: format!("on disk {}", known.join(", ")),
            });
        }
        let inner = &self.inner;
        let dir = found.version_dir(version);
        let needed = read_manifest(found, &dir)
            .ok()
            .and_then(|manifest| memory::estimate(&dir, &manifest));
        let reserved = match self.reserve(name, needed.unwrap_or(0)) {
            Ok(reserved) => reserved,
            Err(error) => return Err(self.failed(name, Some(version), &error)),
        };
        let set = |state: VersionState| {
            inner.change(name, |entry| {
                // What is loaded already serves on meanwhile.
                if entry.ready(version).is_none() {
                    entry.set(version, state);
                }
            });
        };
        set(VersionState::Loading);
        tracing::info!(model = name, version, "loading");
        let settings = LoadSettings {
            alarm: inner.alarm.clone(),
            ..LoadSettings::of(&inner.config)
        };
        let loaded = load_version(
            found,
            version,
            &inner.metrics,
            &settings,
            &|stage| match stage {
                LoadStage::WarmUp => set(VersionState::Warming),
            },
        );
        let mut served = match loaded {
            Ok(served) => served,
            Err(error) => return Err(self.failed(name, Some(version), &error)),
        };
        let copy = inner.copies.fetch_add(1, Relaxed) + 1;
        let bytes = served.memory_bytes;
        *lock(&inner.resident) += bytes;
        served.lease = Lease::new(inner, name, version, copy, bytes);
        drop(reserved);
        let served = Arc::new(served);
        tracing::info!(
            model = name,
            version,
            task = %served.task(),
            device = places(&served.places),
            weights_mib = bytes >> 20,
            load_ms = served.load_time.as_millis() as u64,
            "ready"
        );
        inner.change(name, |entry| {
            entry.set(version, VersionState::Ready(Arc::clone(&served)));
            entry.note = None;
            entry.evicted = false;
        });
        Ok(served)
    }

    /// Notes a load that failed, and makes an error of it.
    fn failed(
        &self,
        name: &str,
        version: Option<u64>,
        error: &dyn std::error::Error,
    ) -> RequestError {
        let reason = error.to_string();
        let serving = self.inner.change(name, |entry| {
            let Some(version) = version else {
                entry.note = Some(reason.clone());
                return entry.stable().is_some();
            };
            if entry.ready(version).is_some() {
                if let Some(entry) = entry.versions.get_mut(&version) {
                    entry.last_failure = Some(reason.clone());
                }
            } else {
                let reason = reason.clone();
                entry.set(version, VersionState::Failed { reason });
            }
            entry.stable().is_some()
        });
        let what_serves = if serving {
            "the old version serves on"
        } else {
            "no version serves"
        };
        tracing::error!(
            model = name,
            version,
            error = reason,
            "load failed; {what_serves}"
        );
        RequestError::ModelNotReady {
            name: name.to_owned(),
            state: "load failed".to_owned(),
            reason,
        }
    }

    /// Sets memory aside for a load, or says that there is none. Makes room where that is allowed.
    fn reserve(&self, name: &str, needed: u64) -> Result<Reserved, NoMemory> {
        let inner = &self.inner;
        loop {
            let refused = {
                let resident = lock(&inner.resident);
                let loading = inner.loading.load(Relaxed);
                let limit = Some(inner.config.memory_mib << 20).filter(|&limit| limit > 0);
                let free = match limit {
                    Some(limit) => limit.saturating_sub(*resident + loading),
                    None => memory::available()
                        .unwrap_or(u64::MAX)
                        .saturating_sub(loading),
                };
                if needed <= free {
                    inner.loading.fetch_add(needed, Relaxed);
                    return Ok(Reserved {
                        inner: Arc::clone(inner),
                        bytes: needed,
                    });
                }
                NoMemory {
                    needed,
                    free,
                    limit,
                }
            };
            if !inner.config.evict_idle || !self.evict_one(name) {
                return Err(refused);
            }
        }
    }

    /// Unloads the model that nobody has used for longest and nobody uses now; false when there is
    /// none.
    fn evict_one(&self, but: &str) -> bool {
        let table = self.table();
        let last_use = |entry: &ModelEntry| {
            let ready = || entry.all_ready().map(|(_, served)| &served.traffic);
            let idle = ready().all(|traffic| traffic.in_flight() == 0);
            ready().map(Traffic::last_used_ms).max().filter(|_| idle)
        };
        let mut idle: Vec<_> = table
            .iter()
            .filter(|(name, _)| *name != but)
            .filter_map(|(name, entry)| Some((last_use(entry)?, name)))
            .collect();
        idle.sort_unstable();
        for (_, name) in idle {
            let operation = self.operation_of(name);
            // One that is being operated on may be waiting for room itself: waiting for it could be
            // for ever.
            let Ok(_held) = operation.try_lock() else {
                continue;
            };
            let versions: Vec<u64> = table[name]
                .all_ready()
                .map(|(version, _)| version)
                .collect();
            let why = "unloaded to make room; comes back when it is asked for";
            self.take_out(name, None, why, true);
            for version in versions {
                self.wait_until_gone(name, version, EVICTION);
            }
            return true;
        }
        false
    }
}

/// The places of a version's instances, each once.
fn places(places: &[Place]) -> String {
    let mut names: Vec<String> = places.iter().map(ToString::to_string).collect();
    names.dedup();
    names.join(",")
}

/// Memory set aside for a load.
struct Reserved {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.inner.loading.fetch_sub(self.bytes, Relaxed);
    }
}

/// The manifest, for the newest version where the files beside the weights say what it is.
fn manifest_of(found: &FoundModel) -> Result<ModelManifest, LoadError> {
    let newest = found
        .versions
        .last()
        .ok_or_else(|| LoadError::NoVersion(found.dir.clone()))?;
    read_manifest(found, &found.version_dir(*newest))
}

/// The route that a manifest asks for, or what was kept of an earlier run.
fn asked_route(manifest: &ModelManifest, kept: Option<Route>) -> Route {
    if let Some(kept) = kept {
        return kept;
    }
    let share = |share: &crate::config::ShareConfig| {
        (share.version > 0).then_some(Share {
            version: share.version,
            percent: share.percent,
        })
    };
    Route {
        stable: manifest.versions.stable,
        canary: share(&manifest.canary),
        shadow: share(&manifest.shadow),
        labels: manifest.versions.labels.clone(),
        previous: None,
    }
}
