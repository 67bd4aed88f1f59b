//! The table of what is served, and the one way to change it. What changes it stands in `loading`,
//! `routing` and `leaving`.
//!
//! Two locks: one for the time of a change of the table, which is short, and one a model for the time
//! of an operation on it, which may be a load. So a roll-back never waits for another model's load.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{
    Alarm, FoundModel, ServedModel,
    discover::find_models,
    mirror::wire,
    state_file,
    table::{ModelEntry, Table, VersionState, only_one, unknown},
};
use crate::{
    config::{
        Task,
        server::{ModelControl, ModelsConfig},
    },
    error::RequestError,
    telemetry::{CascadeMetrics, Metrics},
};

/// The models of one repository folder.
#[derive(Debug)]
pub struct Repository {
    pub(super) inner: Arc<Inner>,
}

/// Held while something is done with a model. In it: when the load of the whole model began that was
/// the last to be done, if that went well.
pub(super) type Operation = Arc<Mutex<Option<Instant>>>;

/// What the repository shares with the leases of what it has loaded.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: ModelsConfig,
    pub(super) metrics: Metrics,
    pub(super) table: ArcSwap<Table>,
    /// Held while the table is changed.
    pub(super) changing: Mutex<()>,
    /// Held while the routes' file is replaced.
    pub(super) saving: Mutex<()>,
    /// Told of every change, with `changing`.
    pub(super) settled: Condvar,
    /// One a model, held while an operation on it is under way.
    pub(super) operations: Mutex<BTreeMap<String, Operation>>,
    pub(super) changed: watch::Sender<()>,
    pub(super) alarm: Alarm,
    pub(super) copies: AtomicU64,
    /// Bytes of what is loaded and of what is being loaded.
    pub(super) resident: Mutex<u64>,
    pub(super) loading: AtomicU64,
}

impl Repository {
    /// A repository over `config.directory` in which nothing is loaded yet.
    pub fn new(config: ModelsConfig, metrics: Metrics) -> Self {
        let changed = watch::Sender::new(());
        let inner = Inner {
            alarm: Alarm::new(changed.clone()),
            config,
            metrics,
            table: ArcSwap::default(),
            changing: Mutex::new(()),
            saving: Mutex::new(()),
            settled: Condvar::new(),
            operations: Mutex::default(),
            changed,
            copies: AtomicU64::new(0),
            resident: Mutex::new(0),
            loading: AtomicU64::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Tells of every change of a state.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// Tells why the process has to end: an instance of a model is lost, and the configuration
    /// (`models.on_device_failure`, `models.watchdog`) says so.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.inner.alarm.fatal()
    }

    /// The models that refuse everything since all their instances are lost, by name.
    pub fn lost(&self) -> Vec<String> {
        let ready = self.ready().into_iter();
        let lost = ready.filter(|served| served.lost().is_some());
        lost.map(|served| served.name.clone()).collect()
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

    /// Counts what `from` hands on to the model `to`.
    pub fn cascade_metrics(&self, from: &ServedModel, to: &str) -> CascadeMetrics {
        self.inner.metrics.cascade(&from.name, &from.version, to)
    }

    /// Whether a model was unloaded to make room and comes back when it is asked for.
    pub fn is_evicted(&self, name: &str) -> bool {
        let table = self.inner.table.load();
        table.get(name).is_some_and(|entry| entry.evicted)
    }

    /// The model's folder.
    pub(super) fn found(&self, name: &str) -> Result<FoundModel, RequestError> {
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
    pub(super) fn operation(&self, name: &str) -> Result<Operation, RequestError> {
        // Names that are nobody's must not fill the map.
        self.found(name)?;
        Ok(self.operation_of(name))
    }

    pub(super) fn operation_of(&self, name: &str) -> Operation {
        let mut operations = lock(&self.inner.operations);
        Arc::clone(operations.entry(name.to_owned()).or_default())
    }

    /// Keeps a model's route for the next start.
    pub(super) fn save_route(&self, name: &str) {
        let path = &self.inner.config.state_file;
        if path.as_os_str().is_empty() {
            return;
        }
        // Not `changing`: whoever changes the table must not wait for the disk.
        let _one_at_a_time = lock(&self.inner.saving);
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
    pub(super) fn change<T>(&self, name: &str, change: impl FnOnce(&mut ModelEntry) -> T) -> T {
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
