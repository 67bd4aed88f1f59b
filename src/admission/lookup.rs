//! Which model answers a caller: it must be there, and the caller's key must open it.
//!
//! Whom a key doesn't open is refused before it is looked up, so that nobody learns from an error
//! which other models there are.

use std::{sync::Arc, time::Instant};

use super::{Admission, AllowedModels, Call, CallContext};
use crate::{
    config::Task,
    error::{RequestError, Stage},
    repository::ServedModel,
};

impl Admission {
    /// Finds the model a call names, unless the server is going down or the call is late already.
    ///
    /// # Errors
    /// [`RequestError`] with what is wrong.
    pub fn find(
        &self,
        call: &Call,
        context: &CallContext,
    ) -> Result<Arc<ServedModel>, RequestError> {
        self.find_for(&call.model, &call.version, call.task, context)
    }

    /// Finds the model that a call to generate names, as [`Admission::find`] does.
    ///
    /// # Errors
    /// [`RequestError`] with what is wrong.
    pub fn find_generator(
        &self,
        model: &str,
        version: &str,
        context: &CallContext,
    ) -> Result<Arc<ServedModel>, RequestError> {
        self.find_for(model, version, Some(Task::Generate), context)
    }

    fn find_for(
        &self,
        model: &str,
        version: &str,
        task: Option<Task>,
        context: &CallContext,
    ) -> Result<Arc<ServedModel>, RequestError> {
        self.check_open(context)?;
        let version = context.version_of(version)?;
        let key = context.route_key.as_deref();
        permitted(&context.models, model, || {
            self.repository().route(model, version, task, key)
        })
    }

    /// The model that is to tell about itself, to who may ask `models`.
    ///
    /// # Errors
    /// [`RequestError`] with what is wrong.
    pub fn look_up(
        &self,
        model: &str,
        version: &str,
        models: &AllowedModels,
    ) -> Result<Arc<ServedModel>, RequestError> {
        permitted(models, model, || {
            self.repository().find(model, version, None)
        })
    }

    /// Refuses calls while the server goes down, and those that are late already.
    pub(super) fn check_open(&self, context: &CallContext) -> Result<(), RequestError> {
        if self.is_closed() {
            return Err(RequestError::ShuttingDown);
        }
        if context.is_late(Instant::now()) {
            return Err(RequestError::DeadlineExceeded {
                stage: Stage::Admission,
            });
        }
        Ok(())
    }

    /// Waits until a model that was unloaded to make room for others is back, up to the call's
    /// deadline. Any other is no matter of waiting.
    pub async fn wake(&self, model: &str, context: &CallContext) {
        if !self.repository().is_evicted(model) || !context.models.allows(model) {
            return;
        }
        let (repository, name) = (Arc::clone(self.repository()), model.to_owned());
        let loading = tokio::task::spawn_blocking(move || {
            // Whoever comes second finds it loaded; why it failed is in its state.
            if repository.is_evicted(&name) {
                let _ = repository.load(&name, None);
            }
        });
        match context.deadline {
            None => drop(loading.await),
            Some(deadline) => drop(tokio::time::timeout_at(deadline.into(), loading).await),
        }
    }
}

/// What `find` finds under `name`, for who may ask `models`.
fn permitted(
    models: &AllowedModels,
    name: &str,
    find: impl FnOnce() -> Result<Arc<ServedModel>, RequestError>,
) -> Result<Arc<ServedModel>, RequestError> {
    if !name.is_empty() {
        models.check(name)?;
    }
    match find() {
        Ok(model) => {
            // Of a call that names none, this is the first to say which it is.
            models.check(&model.name)?;
            Ok(model)
        }
        // These list the models there are.
        Err(_) if name.is_empty() && models.is_restricted() => {
            models.check("")?;
            Err(RequestError::invalid("model", "no name", "a model's name"))
        }
        Err(RequestError::ModelNotFound { name, known }) => {
            let known: Vec<_> = known
                .split(", ")
                .filter(|name| models.allows(name))
                .collect();
            Err(RequestError::ModelNotFound {
                name,
                known: if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                },
            })
        }
        Err(error) => Err(error),
    }
}
