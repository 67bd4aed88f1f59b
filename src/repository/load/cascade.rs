//! Checks a cascade before its first model serves: every further model is on disk, does the same and
//! has the same labels, and none comes twice.

use std::path::Path;

use super::{FoundModel, LoadError, Loading, read_manifest};
use crate::{
    config::{ModelManifest, Task, cascade::MAX_STAGES, manifest::find_gguf},
    models::EncoderSpec,
    repository::find_models,
    telemetry::CascadeMetrics,
};

/// The metrics of the cascade that the manifest asks for, if it can be run.
pub(super) fn check(
    loading: &Loading<'_>,
    labels: &[String],
) -> Result<Option<CascadeMetrics>, LoadError> {
    let cascade = &loading.manifest.cascade;
    if !cascade.is_set() {
        return Ok(None);
    }
    follow(loading.model, loading.manifest, labels).map_err(|reason| LoadError::Cascade {
        manifest: loading.model.manifest_path(),
        reason,
    })?;
    let (model, version) = (&loading.model.name, loading.version);
    Ok(Some(loading.families.cascade(
        model,
        version,
        &cascade.model,
    )))
}

fn follow(first: &FoundModel, manifest: &ModelManifest, labels: &[String]) -> Result<(), String> {
    let folder = first.dir.parent().unwrap_or(Path::new("."));
    let models = find_models(folder).map_err(|error| format!("the models folder: {error}"))?;
    let mut path = vec![first.name.clone()];
    let mut cascade = manifest.cascade.clone();
    while cascade.is_set() {
        let name = &cascade.model;
        let seen = path.contains(name);
        path.push(name.clone());
        if seen {
            return Err(format!(
                "the cascade comes back to '{name}': {}",
                path.join(" → ")
            ));
        }
        if path.len() > MAX_STAGES {
            let path = path.join(" → ");
            return Err(format!("more than {MAX_STAGES} models in a row: {path}"));
        }
        let Some(found) = models.iter().find(|model| model.name == *name) else {
            let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
            return Err(format!(
                "no model '{name}'; models here: {}",
                known.join(", ")
            ));
        };
        let newest = found.versions.last();
        let newest = newest.ok_or_else(|| format!("'{name}' has no version on disk"))?;
        let dir = found.version_dir(*newest);
        let theirs = read_manifest(found, &dir).map_err(|error| error.to_string())?;
        if theirs.task != manifest.task {
            let (other, own) = (theirs.task, manifest.task);
            return Err(format!("'{name}' does '{other}', not '{own}'"));
        }
        if manifest.task == Task::Generate {
            // Texts have no labels to compare.
            cascade = theirs.cascade;
            continue;
        }
        let source = find_gguf(&dir).unwrap_or(dir);
        let spec = EncoderSpec::read_source(&source).map_err(|error| error.to_string())?;
        if !labels.is_empty() && spec.labels != labels {
            let (other, own) = (spec.labels.join(", "), labels.join(", "));
            return Err(format!("the labels of '{name}' are {other}, not {own}"));
        }
        cascade = theirs.cascade;
    }
    Ok(())
}
