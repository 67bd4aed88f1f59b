//! The one place where it changes what is served: load, swap, route, unload.
//!
//! Two locks: one for the time of a change of the table, which is short, and one a model for the time
//! of an operation on it, which may be a load. So a roll-back never waits for another model's load.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{
    FoundModel, LoadError, ServedModel,
    discover::find_models,
    lease::Lease,
    load::{LoadSettings, LoadStage, load_version, read_manifest},
    memory::{self, NoMemory},
    mirror::{Mirror, Trial},
    rollout::{Baseline, evidence, in_figures},
    route::{Route, RouteChange, Share},
    state_file,
    table::{Decision, ModelEntry, Table, VersionState, only_one, unknown},
    verdict::{Verdict, judge},
};
use crate::{
    config::{
        ModelManifest, Task,
        server::{ModelControl, ModelsConfig},
    },
    error::RequestError,
    telemetry::{Metrics, Traffic},
};

/// The models of one repository folder.
#[derive(Debug)]
pub struct Repository {
    inner: Arc<Inner>,
}

/// What the repository shares with the leases of what it has loaded.
#[derive(Debug)]
pub(super) struct Inner {
    config: ModelsConfig,
    metrics: Metrics,
    table: ArcSwap<Table>,
    /// Held while the table is changed.
    changing: Mutex<()>,
    /// Told of every change, with `changing`.
    settled: Condvar,
    /// One a model, held while an operation on it is under way.
    operations: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
    changed: watch::Sender<()>,
    copies: AtomicU64,
    /// Bytes of what is loaded and of what is being loaded.
    resident: Mutex<u64>,
    loading: AtomicU64,
}

/// How long an evicted model's last requests are waited for.
const EVICTION: Duration = Duration::from_secs(5);

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
    /// A repository over `config.directory` in which nothing is loaded yet.
    pub fn new(config: ModelsConfig, metrics: Metrics) -> Self {
        let inner = Inner {
            config,
            metrics,
            table: ArcSwap::default(),
            changing: Mutex::new(()),
            settled: Condvar::new(),
            operations: Mutex::default(),
            changed: watch::Sender::new(()),
            copies: AtomicU64::new(0),
            resident: Mutex::new(0),
            loading: AtomicU64::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// A repository over the folder `root`, with the defaults otherwise.
    pub fn over(root: PathBuf, metrics: Metrics) -> Self {
        let config = ModelsConfig {
            directory: root,
            ..ModelsConfig::default()
        };
        Self::new(config, metrics)
    }

    /// Tells of every change of a state.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// What it was told to do.
    pub fn config(&self) -> &ModelsConfig {
        &self.inner.config
    }

    /// Models in the folder, by name.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn find_on_disk(&self) -> std::io::Result<Vec<FoundModel>> {
        find_models(&self.inner.config.directory)
    }

    pub(super) fn table(&self) -> Arc<Table> {
        self.inner.table.load_full()
    }

    /// Refuses changes where nobody may make any.
    ///
    /// # Errors
    /// [`RequestError::Refused`] with `models.control = "none"`.
    pub fn check_control(&self) -> Result<(), RequestError> {
        if self.inner.config.control == ModelControl::None {
            return Err(RequestError::Refused {
                what: "models.control is \"none\": what is served does not change".to_owned(),
            });
        }
        Ok(())
    }

    /// Loads the versions that the model's manifest asks for, or one `version`; again, where it is
    /// loaded already. What was loaded before serves until the new copy is ready, and goes on when
    /// that fails. Takes seconds; call it off the I/O threads.
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
        let _held = lock(&operation);
        let found = self.found(name)?;
        match version {
            Some(version) => {
                let served = self.load_one(&found, version)?;
                self.inner.change(name, |entry| {
                    if entry.stable().is_none() {
                        entry.route.stable = Some(version);
                    }
                });
                Ok(served)
            }
            None => self.load_selected(&found),
        }
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
        let _held = lock(&operation);
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
    fn take_out(&self, name: &str, version: Option<u64>, why: &str, evicted: bool) {
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

    /// Notes why a model that is on disk is not served.
    pub fn mark_unavailable(&self, name: &str, reason: String) {
        self.inner.change(name, |entry| entry.note = Some(reason));
    }

    /// The model that answers questions about `name` and `version` (a number or a label; empty: the
    /// stable one). An empty `name` finds the only ready model of `task`, if there is just one.
    ///
    /// # Errors
    /// [`RequestError`] saying which of name, version or state is wrong, and what is there.
    pub fn find(
        &self,
        name: &str,
        version: &str,
        task: Option<Task>,
    ) -> Result<Arc<ServedModel>, RequestError> {
        let version = if version.is_empty() {
            "stable"
        } else {
            version
        };
        let found = self.route(name, version, task, None);
        // What has no stable version says better why than that there is no such label.
        match found {
            Err(RequestError::VersionNotFound { .. }) if version == "stable" => {
                self.route(name, "", task, None)
            }
            found => found,
        }
    }

    /// The version that answers a request for `name` and `version`: as [`Repository::find`], but
    /// where no version is named the route chooses, for the sticky `key` if there is one.
    ///
    /// # Errors
    /// [`RequestError`] saying which of name, version or state is wrong, and what is there.
    pub fn route(
        &self,
        name: &str,
        version: &str,
        task: Option<Task>,
        key: Option<&str>,
    ) -> Result<Arc<ServedModel>, RequestError> {
        let table = self.inner.table.load();
        let name = if name.is_empty() {
            only_one(&table, task)?
        } else {
            name
        };
        let entry = table.get(name).ok_or_else(|| unknown(&table, name))?;
        let served = entry.find(name, version, key)?;
        match task {
            Some(asked) if asked != served.task() => Err(RequestError::WrongTask {
                model: served.name.clone(),
                task: served.task().to_string(),
                asked: asked.to_string(),
            }),
            _ => Ok(served),
        }
    }

    /// The stable versions of all models that have one, by name.
    pub fn ready(&self) -> Vec<Arc<ServedModel>> {
        let table = self.inner.table.load();
        table
            .values()
            .filter_map(|entry| entry.stable().cloned())
            .collect()
    }

    /// Every version that takes requests, by name and number.
    pub fn all_ready(&self) -> Vec<Arc<ServedModel>> {
        let table = self.inner.table.load();
        table
            .values()
            .flat_map(|entry| entry.all_ready())
            .map(|(_, served)| Arc::clone(served))
            .collect()
    }

    /// Whether a model was unloaded to make room and comes back when it is asked for.
    pub fn is_evicted(&self, name: &str) -> bool {
        let table = self.inner.table.load();
        table.get(name).is_some_and(|entry| entry.evicted)
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
    fn load_one(&self, found: &FoundModel, version: u64) -> Result<Arc<ServedModel>, RequestError> {
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
        let settings = LoadSettings::of(&inner.config);
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

    /// The model's folder.
    fn found(&self, name: &str) -> Result<FoundModel, RequestError> {
        self.find_on_disk()
            .map_err(|error| RequestError::internal(format_args!("models folder: {error}")))?
            .into_iter()
            .find(|model| model.name == name)
            .ok_or_else(|| unknown(&self.table(), name))
    }

    /// What is known of a model.
    pub(super) fn entry(&self, name: &str) -> Result<Arc<ModelEntry>, RequestError> {
        let table = self.table();
        match table.get(name) {
            Some(entry) => Ok(Arc::clone(entry)),
            None => self.found(name).map(|_| Arc::default()),
        }
    }

    /// The lock of operations on a model that is on disk.
    fn operation(&self, name: &str) -> Result<Arc<Mutex<()>>, RequestError> {
        // Names that are nobody's must not fill the map.
        self.found(name)?;
        Ok(self.operation_of(name))
    }

    fn operation_of(&self, name: &str) -> Arc<Mutex<()>> {
        let mut operations = lock(&self.inner.operations);
        Arc::clone(operations.entry(name.to_owned()).or_default())
    }

    /// Keeps a model's route for the next start.
    fn save_route(&self, name: &str) {
        let path = &self.inner.config.state_file;
        if path.as_os_str().is_empty() {
            return;
        }
        let _one_at_a_time = lock(&self.inner.changing);
        let mut routes = state_file::read(path);
        if let Some(entry) = self.table().get(name) {
            routes.insert(name.to_owned(), entry.route.clone());
        }
        if let Err(error) = state_file::write(path, &routes) {
            tracing::error!(%error, path = %path.display(), "the route can't be kept for the next start");
        }
    }
}

impl Inner {
    /// Changes what is known of a model, and tells everybody.
    fn change<T>(&self, name: &str, change: impl FnOnce(&mut ModelEntry) -> T) -> T {
        let changing = lock(&self.changing);
        let mut table = Table::clone(&self.table.load());
        let entry = Arc::make_mut(table.entry(name.to_owned()).or_default());
        let result = change(entry);
        wire(name, entry, &self.metrics);
        // The last holder of a loaded copy frees it, and its lease comes back here: not under the
        // lock.
        let before = self.table.swap(Arc::new(table));
        self.settled.notify_all();
        drop(changing);
        drop(before);
        self.changed.send_replace(());
        result
    }

    /// The last request of a loaded copy is done.
    pub(super) fn copy_is_gone(&self, name: &str, version: u64, copy: u64, bytes: u64) {
        {
            let mut resident = lock(&self.resident);
            *resident = resident.saturating_sub(bytes);
        }
        self.change(name, |entry| {
            if let Some(version) = entry.versions.get_mut(&version)
                && version.copy == copy
                && matches!(version.state, VersionState::Draining)
            {
                let reason = version
                    .last_failure
                    .take()
                    .unwrap_or_else(|| "unloaded".to_owned());
                version.state = VersionState::Absent { reason };
                version.since = SystemTime::now();
            }
        });
        tracing::debug!(model = name, version, "drained and freed");
    }
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
        if !crate::config::rollout::is_label(label) || label == "stable" || label == "canary" {
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

/// Lets a version go that nothing routes to, unless it is kept for rolling back.
fn retire(entry: &mut ModelEntry, version: Option<u64>) {
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
fn leave(entry: &mut ModelEntry, version: u64, why: &str) {
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

/// Sets who mirrors to whom: the stable version to the shadow, the canary to the stable version.
fn wire(name: &str, entry: &mut ModelEntry, metrics: &Metrics) {
    let route = entry.route.clone();
    let stable = entry.stable().cloned();
    let candidate = route.candidate().and_then(|version| entry.ready(version));
    let (Some(stable), Some(candidate)) = (stable, candidate.cloned()) else {
        entry.trial = None;
        for (_, served) in entry.all_ready() {
            served.mirror.store(None);
        }
        return;
    };
    let pair = (stable.number(), candidate.number());
    let trial = match &entry.trial {
        Some(trial) if (trial.stable, trial.candidate) == pair => Arc::clone(trial),
        _ => {
            let metrics = metrics.trial(name, &stable.version, &candidate.version);
            Arc::new(Trial::new(&stable, &candidate, metrics))
        }
    };
    entry.trial = Some(Arc::clone(&trial));
    for (version, served) in entry.all_ready() {
        let mirror = if version == pair.0
            && let Some(shadow) = route.shadow.filter(|shadow| shadow.version == pair.1)
        {
            Some((&candidate, shadow.percent, true))
        } else if version == pair.1 && route.canary.is_some() {
            Some((&stable, stable.manifest.rollout.compare_percent, false))
        } else {
            None
        };
        let mirror = mirror.map(|(other, percent, to_candidate)| {
            Arc::new(Mirror::new(
                other,
                percent,
                to_candidate,
                Arc::clone(&trial),
            ))
        });
        served.mirror.store(mirror);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
