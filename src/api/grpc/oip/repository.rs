//! The repository extension: what is there, load, unload.

use std::sync::Arc;

use crate::{
    api::proto::inference::{
        self as pb, model_repository_parameter::ParameterChoice,
        repository_index_response::ModelIndex,
    },
    error::RequestError,
    repository::{ModelState, Repository},
};

pub fn index(repository: &Repository, only_ready: bool) -> pb::RepositoryIndexResponse {
    let models = repository.standings().into_iter().filter_map(|standing| {
        let (state, reason) = match standing.state {
            ModelState::Ready(_) => ("READY", String::new()),
            ModelState::Loading => ("LOADING", String::new()),
            ModelState::Unavailable { reason } => ("UNAVAILABLE", reason),
        };
        (!only_ready || state == "READY").then(|| ModelIndex {
            name: standing.name,
            version: standing.version.unwrap_or_default(),
            state: state.to_owned(),
            reason,
        })
    });
    pb::RepositoryIndexResponse {
        models: models.collect(),
    }
}

/// Loads a model, or loads it again, off the I/O threads.
pub async fn load(
    repository: &Arc<Repository>,
    request: pb::RepositoryModelLoadRequest,
) -> Result<pb::RepositoryModelLoadResponse, RequestError> {
    check_repository(&request.repository_name)?;
    if let Some(name) = request.parameters.keys().next() {
        return Err(RequestError::Unimplemented {
            what: format!(
                "load parameter '{}': a model is configured by its model.toml",
                name.chars().take(64).collect::<String>()
            ),
        });
    }
    let repository = Arc::clone(repository);
    tokio::task::spawn_blocking(move || repository.load(&request.model_name))
        .await
        .map_err(|_| RequestError::internal("the load panicked"))??;
    Ok(pb::RepositoryModelLoadResponse {})
}

/// Unloads a model. What it has accepted is still answered.
pub async fn unload(
    repository: &Arc<Repository>,
    request: pb::RepositoryModelUnloadRequest,
) -> Result<pb::RepositoryModelUnloadResponse, RequestError> {
    check_repository(&request.repository_name)?;
    // No model depends on another here, so `unload_dependents` says nothing, true or false.
    for (name, parameter) in &request.parameters {
        let understood = name == "unload_dependents"
            && matches!(
                parameter.parameter_choice,
                Some(ParameterChoice::BoolParam(_))
            );
        if !understood {
            return Err(RequestError::invalid(
                format!("parameters.{}", name.chars().take(64).collect::<String>()),
                "a parameter that isn't known",
                "unload_dependents (bool)",
            ));
        }
    }
    let repository = Arc::clone(repository);
    // Waits for a load under way, so it is not for an I/O thread either.
    tokio::task::spawn_blocking(move || repository.unload(&request.model_name))
        .await
        .map_err(|_| RequestError::internal("the unload panicked"))??;
    Ok(pb::RepositoryModelUnloadResponse {})
}

fn check_repository(name: &str) -> Result<(), RequestError> {
    if name.is_empty() {
        return Ok(());
    }
    Err(RequestError::invalid(
        "repository_name",
        format_args!("'{}'", name.chars().take(64).collect::<String>()),
        "nothing: there is one repository",
    ))
}
