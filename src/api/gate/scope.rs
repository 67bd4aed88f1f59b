//! What a request's key restricts it to, around its handler: set where the key is read, asked where
//! headers become a context, so that it need not pass through every generated signature in between.

use crate::admission::AllowedModels;

tokio::task_local! {
    static MODELS: AllowedModels;
}

/// The models that the request handled here may ask.
pub fn allowed_models() -> AllowedModels {
    MODELS.try_with(AllowedModels::clone).unwrap_or_default()
}

/// Runs a handler with `models` as [`allowed_models`].
pub async fn restricted<F: Future>(models: AllowedModels, handler: F) -> F::Output {
    if models.is_restricted() {
        MODELS.scope(models, handler).await
    } else {
        handler.await
    }
}
