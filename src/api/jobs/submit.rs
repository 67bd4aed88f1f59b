//! What of the call that submits a job holds for its rows: they run when nobody calls.

use axum::http::HeaderMap;

use crate::{
    admission::AllowedModels,
    api::{gate::allowed_models, trace::Headers},
    error::RequestError,
    jobs::{NewRow, Submitter},
    telemetry::traces,
};

/// Reads it from the call's headers and its key.
pub fn submitter(headers: &HeaderMap) -> Submitter {
    let models = allowed_models();
    let (key, models) = models.kept().unzip();
    let (traceparent, tracestate) = traces::caller_of(&Headers(headers)).unwrap_or_default();
    Submitter {
        key: key.unwrap_or_default().to_owned(),
        models: models.map(<[String]>::to_vec),
        traceparent,
        tracestate,
    }
}

/// The models that its rows may ask.
pub fn models_of(submitter: &Submitter) -> AllowedModels {
    let patterns = submitter.models.as_deref();
    AllowedModels::restored(patterns.map(|patterns| (submitter.key.as_str(), patterns)))
}

/// Refuses a row for a model that its submitter's key doesn't open; `field` is how errors name it. One
/// that names no model is looked at when it is run.
///
/// # Errors
/// [`RequestError::NotPermitted`].
pub fn check_row(models: &AllowedModels, row: &NewRow, field: &str) -> Result<(), RequestError> {
    if row.model.is_empty() {
        return Ok(());
    }
    models.check(&row.model).map_err(|error| match error {
        RequestError::NotPermitted { what } => RequestError::NotPermitted {
            what: format!("{field}: {what}"),
        },
        other => other,
    })
}
