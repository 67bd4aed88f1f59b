//! Whether a model's answers have gradients, and the thread that finds them.

use std::{path::PathBuf, sync::Arc};

use super::{LoadError, Loading};
use crate::{
    config::Task,
    engine::{Engine, GradientEngine},
    models::{DifferentiableEncoder, EncoderSpec, LoadOptions},
    ops::Compute,
    repository::memory,
};

/// Bytes that one point of a line may take.
const MAX_POINT_BYTES: usize = 2 << 30;

/// Starts a model's gradients; the inner error is what is allowed instead, where it has none.
pub(super) fn start(
    loading: &Loading<'_>,
    (source, options): (PathBuf, LoadOptions),
    (spec, is_f32, parameters): (EncoderSpec, bool, usize),
    engine: &Arc<Engine>,
    max_tokens: usize,
) -> Result<Result<GradientEngine, String>, LoadError> {
    let name = &loading.model.name;
    let others = "KERNEL_SHAP, LIME or OCCLUSION";
    if loading.manifest.task == Task::Tokens {
        return Ok(Err(others.to_owned()));
    }
    if options.compute != Compute::F32 {
        return Ok(Err(format!(
            "{others}: '{name}' computes in {}, and gradients are those of an f32 model; set \
             compute = \"f32\" in its manifest",
            options.compute.name()
        )));
    }
    if !is_f32 {
        return Ok(Err(format!(
            "{others}: the weights of '{name}' are quantized, and gradients are those of an f32 model; \
             serve it without quantize, from files that are not quantized"
        )));
    }
    let most = (1..=max_tokens).rev();
    let most = most
        .into_iter()
        .find(|&tokens| DifferentiableEncoder::point_bytes(&spec, tokens) <= MAX_POINT_BYTES)
        .unwrap_or(0);
    let load = move || {
        let needed = 4 * parameters as u64;
        if let Some(free) = memory::available().filter(|&free| free < needed) {
            let (needed, free) = (needed >> 20, free >> 20);
            return Err(format!(
                "a second copy takes {needed} MiB and {free} MiB are free"
            ));
        }
        DifferentiableEncoder::load(&source, &options.head).map_err(|error| error.to_string())
    };
    let queue = Arc::downgrade(engine);
    let is_busy = move || {
        queue
            .upgrade()
            .is_some_and(|engine| engine.waiting_rows() > 0)
    };
    let bytes = move |tokens| DifferentiableEncoder::point_bytes(&spec, tokens);
    let started = GradientEngine::start(name, Box::new(load), Box::new(is_busy), most, bytes)?;
    Ok(Ok(started))
}
