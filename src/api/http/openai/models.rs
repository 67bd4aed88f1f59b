//! `/v1/models`: the models that take requests.

use axum::{
    Json,
    extract::{Path, State},
    response::IntoResponse,
};
use serde::Serialize;

use super::{
    errors::ApiError,
    output::{model_headers, unix_seconds},
};
use crate::{
    api::{gate::allowed_models, grpc::Shared},
    repository::ServedModel,
};

#[derive(Serialize)]
struct Models {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    task: String,
    version: String,
    max_model_len: usize,
}

impl Model {
    fn of(model: &ServedModel) -> Self {
        Self {
            id: model.name.clone(),
            object: "model",
            created: unix_seconds(model.loaded_at),
            owned_by: "ferry",
            task: model.task().to_string(),
            version: model.version.clone(),
            max_model_len: max_tokens(model),
        }
    }
}

/// Tokens that a row may have, or prompt and answer together.
fn max_tokens(model: &ServedModel) -> usize {
    match model.decoder() {
        Ok(decoder) => decoder.max_sequence_tokens,
        Err(_) => model
            .encoder()
            .map_or(0, |encoder| encoder.text.max_tokens()),
    }
}

/// All that are ready and that the caller's key opens, by name.
pub async fn list(State(shared): State<Shared>) -> impl IntoResponse {
    let mut ready = shared.admission.repository().ready();
    let models = allowed_models();
    ready.retain(|model| models.allows(&model.name));
    Json(Models {
        object: "list",
        data: ready.iter().map(|model| Model::of(model)).collect(),
    })
}

/// One of them.
pub async fn show(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let model = shared.admission.look_up(&name, "", &allowed_models())?;
    Ok((model_headers(&model), Json(Model::of(&model))))
}
