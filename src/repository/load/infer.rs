//! What a version without a manifest does, by what its files say.

use std::path::Path;

use super::LoadError;
use crate::{
    config::{ModelManifest, Pooling, Task, manifest::find_gguf},
    models::{EncoderSpec, StoredTask, gguf::GgufFile},
    ops,
};

/// The manifest of a folder of Hugging Face's files, of one with a GGUF file, or of that file
/// itself. `None` where nothing tells.
///
/// # Errors
/// If a GGUF file is damaged.
pub fn infer_manifest(path: &Path) -> Result<Option<ModelManifest>, LoadError> {
    let alone = || find_gguf(path).filter(|_| !path.join("config.json").exists());
    let file = if path.is_file() {
        Some(path.to_owned())
    } else {
        alone()
    };
    match file {
        Some(file) => of_gguf(&file).map(Some),
        None => Ok(ModelManifest::infer(path)),
    }
}

fn of_gguf(path: &Path) -> Result<ModelManifest, LoadError> {
    let file = GgufFile::open(path)?;
    if !EncoderSpec::is_in(&file) {
        return Ok(ModelManifest::of(Task::Generate));
    }
    let spec = EncoderSpec::from_gguf(&file)?;
    let (task, max_tokens) = EncoderSpec::stored_task(&file)?;
    let mut manifest = match task {
        StoredTask::Embed(pooling) => {
            let mut manifest = ModelManifest::of(Task::Embed);
            manifest.embed.pooling = match pooling {
                ops::Pooling::Mean => Pooling::Mean,
                ops::Pooling::Cls => Pooling::Cls,
                ops::Pooling::Last => Pooling::Last,
            };
            manifest
        }
        StoredTask::SequenceClass if spec.labels.len() == 1 => ModelManifest::of(Task::Rerank),
        StoredTask::SequenceClass => ModelManifest::of(Task::Classify),
        StoredTask::TokenClass => ModelManifest::of(Task::Tokens),
    };
    manifest.input.max_tokens = max_tokens.unwrap_or(0);
    Ok(manifest)
}
