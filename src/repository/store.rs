//! Which models are here and in what state, and the one place where that changes.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{FoundModel, LoadError, ServedModel, find_models, load_model};
use crate::{config::Task, error::RequestError, telemetry::Metrics};

/// A model's state.
#[derive(Debug, Clone)]
pub enum ModelState {
    /// Being loaded for the first time.
    Loading,
    /// Taking requests.
    Ready(Arc<ServedModel>),
    /// Not there: never loaded, failed, or unloaded.
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// A model's name and state, for listings.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The model's name.
    pub name: String,
    /// Its newest version on disk, or the one that is served.
    pub version: Option<String>,
    /// Its state.
    pub state: ModelState,
}

type States = BTreeMap<String, ModelState>;

/// The models of one repository folder.
#[derive(Debug)]
pub struct Repository {
    root: PathBuf,
    metrics: Metrics,
    states: ArcSwap<States>,
    /// Held while a model is loaded or unloaded, never while one is looked up.
    changing: Mutex<()>,
    changed: watch::Sender<()>,
}

impl Repository {
    /// A repository over `root` in which nothing is loaded yet.
    pub fn new(root: PathBuf, metrics: Metrics) -> Self {
        Self {
            root,
            metrics,
            states: ArcSwap::default(),
            changing: Mutex::new(()),
            changed: watch::Sender::new(()),
        }
    }

    /// Tells of every change of a state.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Models in the folder, by name.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn find_on_disk(&self) -> std::io::Result<Vec<FoundModel>> {
        find_models(&self.root)
    }

    /// Loads a model, or loads it again: the old one serves until the new one is ready, and goes on
    /// serving when the new one fails. Takes seconds; call it off the I/O threads.
    ///
    /// # Errors
    /// [`RequestError::ModelNotFound`] when there is no such folder,
    /// [`RequestError::ModelNotReady`] with the reason when it doesn't load.
    pub fn load(&self, name: &str) -> Result<Arc<ServedModel>, RequestError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self
            .find_on_disk()
            .map_err(|error| RequestError::internal(format_args!("models folder: {error}")))?
            .into_iter()
            .find(|model| model.name == name)
            .ok_or_else(|| self.unknown(name))?;
        let before = self.states.load().get(name).cloned();
        if !matches!(before, Some(ModelState::Ready(_))) {
            self.set(name, ModelState::Loading);
        }
        tracing::info!(model = name, "loading");
        match self.load_found(&found) {
            Ok(served) => {
                let served = Arc::new(served);
                tracing::info!(
                    model = name,
                    version = served.version,
                    task = %served.task(),
                    weights_mib = served.memory_bytes >> 20,
                    load_ms = served.load_time.as_millis() as u64,
                    "ready"
                );
                self.set(name, ModelState::Ready(Arc::clone(&served)));
                Ok(served)
            }
            Err(error) => {
                let reason = error.to_string();
                if let Some(ready @ ModelState::Ready(_)) = before {
                    tracing::error!(model = name, %error, "load failed; the old version serves on");
                    self.set(name, ready);
                } else {
                    tracing::error!(model = name, %error, "load failed");
                    let reason = reason.clone();
                    self.set(name, ModelState::Unavailable { reason });
                }
                Err(RequestError::ModelNotReady {
                    name: name.to_owned(),
                    state: "load failed".to_owned(),
                    reason,
                })
            }
        }
    }

    /// Takes a model out of service. Requests that were accepted are answered; then it is freed.
    ///
    /// # Errors
    /// [`RequestError::ModelNotFound`] when no model of that name was ever loaded.
    pub fn unload(&self, name: &str) -> Result<(), RequestError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.states.load().contains_key(name) {
            return Err(self.unknown(name));
        }
        let reason = "unloaded".to_owned();
        self.set(name, ModelState::Unavailable { reason });
        tracing::info!(model = name, "unloaded");
        Ok(())
    }

    /// Notes why a model that is on disk is not served.
    pub fn mark_unavailable(&self, name: &str, reason: String) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.set(name, ModelState::Unavailable { reason });
    }

    /// The model that answers requests for `name` and `version` (empty: the one in service). An
    /// empty `name` finds the only ready model of `task`, if there is just one.
    ///
    /// # Errors
    /// [`RequestError`] saying which of name, version or state is wrong, and what is there.
    pub fn find(
        &self,
        name: &str,
        version: &str,
        task: Option<Task>,
    ) -> Result<Arc<ServedModel>, RequestError> {
        let states = self.states.load();
        let served = if name.is_empty() {
            Self::only_one(&states, task)?
        } else {
            match states.get(name) {
                Some(ModelState::Ready(served)) => Arc::clone(served),
                Some(ModelState::Loading) => {
                    return Err(not_ready(name, "loading", "try again shortly"));
                }
                Some(ModelState::Unavailable { reason }) => {
                    return Err(not_ready(name, "unavailable", reason));
                }
                None => return Err(self.unknown(name)),
            }
        };
        if !version.is_empty() && version != served.version {
            return Err(RequestError::VersionNotFound {
                name: served.name.clone(),
                version: version.to_owned(),
                known: served.version.clone(),
            });
        }
        match task {
            Some(asked) if asked != served.task() => Err(RequestError::WrongTask {
                model: served.name.clone(),
                task: served.task().to_string(),
                asked: asked.to_string(),
            }),
            _ => Ok(served),
        }
    }

    /// All models ever loaded or found, by name, with their states.
    pub fn standings(&self) -> Vec<Standing> {
        let on_disk = self.find_on_disk().unwrap_or_default();
        let states = self.states.load();
        let mut standings: BTreeMap<String, Standing> = on_disk
            .into_iter()
            .map(|model| {
                let standing = Standing {
                    name: model.name.clone(),
                    version: model.versions.last().map(ToString::to_string),
                    state: ModelState::Unavailable {
                        reason: "not loaded".to_owned(),
                    },
                };
                (model.name, standing)
            })
            .collect();
        for (name, state) in states.iter() {
            let standing = standings.entry(name.clone()).or_insert_with(|| Standing {
                name: name.clone(),
                version: None,
                state: state.clone(),
            });
            standing.state = state.clone();
            if let ModelState::Ready(served) = state {
                standing.version = Some(served.version.clone());
            }
        }
        standings.into_values().collect()
    }

    /// The models that take requests, by name.
    pub fn ready(&self) -> Vec<Arc<ServedModel>> {
        self.states
            .load()
            .values()
            .filter_map(|state| match state {
                ModelState::Ready(served) => Some(Arc::clone(served)),
                _ => None,
            })
            .collect()
    }

    /// The state of one model, if it was ever loaded.
    pub fn state(&self, name: &str) -> Option<ModelState> {
        self.states.load().get(name).cloned()
    }

    fn load_found(&self, found: &FoundModel) -> Result<ServedModel, LoadError> {
        load_model(found, &self.metrics)
    }

    fn only_one(states: &States, task: Option<Task>) -> Result<Arc<ServedModel>, RequestError> {
        let mut fit = states.values().filter_map(|state| match state {
            ModelState::Ready(served) if task.is_none_or(|task| task == served.task()) => {
                Some(served)
            }
            _ => None,
        });
        match (fit.next(), fit.next()) {
            (Some(only), None) => Ok(Arc::clone(only)),
            (None, _) => Err(RequestError::invalid(
                "model",
                "no name",
                "a model's name (no ready model does this task)",
            )),
            (Some(first), Some(second)) => {
                let names: Vec<&str> = [first, second]
                    .into_iter()
                    .chain(fit)
                    .map(|model| model.name.as_str())
                    .collect();
                let allowed = format!("one of {}", names.join(", "));
                Err(RequestError::invalid("model", "no name", allowed))
            }
        }
    }

    fn unknown(&self, name: &str) -> RequestError {
        let known: Vec<_> = self.states.load().keys().cloned().collect();
        RequestError::ModelNotFound {
            name: name.chars().take(64).collect(),
            known: if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            },
        }
    }

    fn set(&self, name: &str, state: ModelState) {
        let mut states = States::clone(&self.states.load());
        states.insert(name.to_owned(), state);
        self.states.store(Arc::new(states));
        self.changed.send_replace(());
    }
}

fn not_ready(name: &str, state: &str, reason: &str) -> RequestError {
    RequestError::ModelNotReady {
        name: name.to_owned(),
        state: state.to_owned(),
        reason: reason.to_owned(),
    }
}
