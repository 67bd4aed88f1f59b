//! The repository extension: what is there, load, unload.

use std::sync::Arc;

use crate::{
    admission::{AllowedModels, Operator},
    api::grpc::{Shared, admin::Audit},
    api::proto::inference::{
        self as pb, model_repository_parameter::ParameterChoice,
        repository_index_response::ModelIndex,
    },
    error::RequestError,
    repository::{Repository, VersionStatus},
};

/// What there is, as far as the caller may ask it.
pub fn index(
    repository: &Repository,
    allowed: &AllowedModels,
    only_ready: bool,
) -> pb::RepositoryIndexResponse {
    let mut models = Vec::new();
    let status = repository.status().into_iter();
    for model in status.filter(|model| allowed.allows(&model.name)) {
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
    shared: &Shared,
    operator: Operator,
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
    act(
        shared,
        operator,
        "load",
        request.model_name,
        |repository, name| repository.load(name, None).map(drop),
    )
    .await?;
    Ok(pb::RepositoryModelLoadResponse {})
}

/// Unloads a model. What it has accepted is still answered.
pub async fn unload(
    shared: &Shared,
    operator: Operator,
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
    act(
        shared,
        operator,
        "unload",
        request.model_name,
        |repository, name| repository.unload(name, None),
    )
    .await?;
    Ok(pb::RepositoryModelUnloadResponse {})
}

/// Does what the operator asks, off the I/O threads, and accounts for it. A caller that goes away
/// does not stop it.
async fn act(
    shared: &Shared,
    operator: Operator,
    action: &'static str,
    model: String,
    work: impl FnOnce(&Repository, &str) -> Result<(), RequestError> + Send + 'static,
) -> Result<(), RequestError> {
    let repository = Arc::clone(shared.admission.repository());
    let operators = Arc::clone(&shared.operators);
    let name: String = model.chars().take(64).collect();
    let audit = Audit::open(
        operators,
        operator,
        action,
        &name,
        "over the public port".to_owned(),
    );
    tokio::task::spawn_blocking(move || {
        let result = repository
            .check_control()
            .and_then(|()| work(&repository, &model));
        audit.close(&result);
        result
    })
    .await
    .map_err(|_| RequestError::internal("the action panicked; see the log"))?
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
