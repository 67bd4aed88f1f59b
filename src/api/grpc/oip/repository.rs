//! The repository extension: what is there, load, unload.

use std::sync::Arc;

use crate::{
    api::proto::inference::{
        self as pb, model_repository_parameter::ParameterChoice,
        repository_index_response::ModelIndex,
    },
    error::RequestError,
    repository::{Repository, VersionStatus},
};

pub fn index(repository: &Repository, only_ready: bool) -> pb::RepositoryIndexResponse {
    let mut models = Vec::new();
    for model in repository.status() {
        let loaded = |version: &&VersionStatus| version.since > 0.0;
        let versions = model.versions.iter().filter(loaded);
        let before = models.len();
        models.extend(versions.map(|version| ModelIndex {
            name: model.name.clone(),
            version: version.version.to_string(),
            state: triton_state(version.state).to_owned(),
            reason: version.reason.clone(),
        }));
        if models.len() == before {
            // Never loaded: on disk, or without a version at all.
            let version = model.versions.last();
            let reason = Some(model.note).filter(|note| !note.is_empty());
            models.push(ModelIndex {
                name: model.name,
                version: version.map_or_else(String::new, |version| version.version.to_string()),
                state: "UNAVAILABLE".to_owned(),
                reason: reason.unwrap_or_else(|| "not loaded".to_owned()),
            });
        }
    }
    models.retain(|model| !only_ready || model.state == "READY");
    pb::RepositoryIndexResponse { models }
}

/// Triton's name for a state.
fn triton_state(state: &str) -> &'static str {
    match state {
        "ready" => "READY",
        "loading" | "warming" => "LOADING",
        "draining" => "UNLOADING",
        _ => "UNAVAILABLE",
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
    tokio::task::spawn_blocking(move || {
        repository.check_control()?;
        repository.load(&request.model_name, None)
    })
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
    tokio::task::spawn_blocking(move || {
        repository.check_control()?;
        repository.unload(&request.model_name, None)
    })
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
