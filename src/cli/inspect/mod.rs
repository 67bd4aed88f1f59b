//! `ferry inspect`: what a model is made of, from its configuration and headers alone.

mod decoder;
mod encoder;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::Failure;
use crate::{
    config::{ModelManifest, Task, manifest::find_gguf},
    models::FileContents,
    repository::{FoundModel, find_models, infer_manifest, read_manifest},
};

/// Tell what a model is made of, without loading it.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A model's name in the models folder, or the path of a folder with its files or of a GGUF file.
    model: String,
    /// The models folder.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "models",
        env = "FERRY_MODELS"
    )]
    models: PathBuf,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What the kinds of models tell of themselves.
struct Description {
    /// What only its kind has, for people.
    rows: Vec<(&'static str, String)>,
    /// The same, for programs.
    json: Value,
    contents: FileContents,
    /// What the memory figure counts.
    memory: &'static str,
}

impl Inspect {
    pub fn run(self) -> Result<(), Failure> {
        let (found, path) = self.find()?;
        let manifest = match &found {
            Some(model) => Some(read_manifest(model, &path)?),
            None => infer_manifest(&path)?,
        };
        let task = manifest.as_ref().map(|manifest| manifest.task);
        let asked = manifest
            .as_ref()
            .map_or(0, |manifest| manifest.input.max_tokens);
        let source = find_gguf(&path).unwrap_or_else(|| path.clone());
        let description = if task == Some(Task::Generate) {
            decoder::describe(&source, asked)?
        } else {
            encoder::describe(&source, asked)?
        };
        if self.json {
            return print_json(&path, manifest.as_ref(), description);
        }
        row("path", path.display());
        if let Some(manifest) = &manifest {
            row("task", manifest.task);
            row("licence", &manifest.license);
        }
        self.print(&description);
        Ok(())
    }

    fn print(&self, description: &Description) {
        for (name, value) in &description.rows {
            row(name, value);
        }
        let contents = &description.contents;
        row("parameters", millions(contents.parameters));
        row("file", mebibytes(contents.file_bytes));
        let memory = mebibytes(contents.memory_bytes);
        row("memory", format_args!("{memory} {}", description.memory));
        row("tensors", contents.tensors.len());
        let types: Vec<String> = contents
            .types()
            .into_iter()
            .map(|(name, count)| format!("{name} ({count})"))
            .collect();
        row("types", types.join(", "));
        if self.tensors {
            say!();
            for tensor in &contents.tensors {
                say!(
                    "{:<6} {:>18} {:>12}  {}",
                    tensor.dtype,
                    format!("{:?}", tensor.shape),
                    tensor.bytes,
                    tensor.name
                );
            }
        }
    }

    /// The model, if it is one of the models folder, and the folder of its newest version.
    fn find(&self) -> Result<(Option<FoundModel>, PathBuf), Failure> {
        let path = Path::new(&self.model);
        let is_gguf = path.extension().is_some_and(|end| end == "gguf") && path.is_file();
        if is_gguf || path.join("config.json").is_file() || find_gguf(path).is_some() {
            return Ok((None, path.to_owned()));
        }
        let models = find_models(&self.models)?;
        let names: Vec<_> = models.iter().map(|model| model.name.clone()).collect();
        let Some(model) = models.into_iter().find(|model| model.name == self.model) else {
            return Err(format!(
                "no model '{}' in {}; there are: {}",
                self.model,
                self.models.display(),
                names.join(", ")
            )
            .into());
        };
        let Some(&version) = model.versions.last() else {
            return Err(format!(
                "model '{}' has no version on disk; fetch it first",
                model.name
            )
            .into());
        };
        let dir = model.version_dir(version);
        Ok((Some(model), dir))
    }
}

fn print_json(
    path: &Path,
    manifest: Option<&ModelManifest>,
    description: Description,
) -> Result<(), Failure> {
    let contents = description.contents;
    let tensors: Vec<_> = contents
        .tensors
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name, "dtype": tensor.dtype,
                "shape": tensor.shape, "bytes": tensor.bytes,
            })
        })
        .collect();
    let mut described = description.json;
    described["path"] = json!(path);
    described["task"] = json!(manifest.map(|manifest| manifest.task.to_string()));
    described["parameters"] = json!(contents.parameters);
    described["file_bytes"] = json!(contents.file_bytes);
    described["memory_bytes"] = json!(contents.memory_bytes);
    described["tensors"] = json!(tensors);
    say!("{}", serde_json::to_string_pretty(&described)?);
    Ok(())
}

fn row(name: &str, value: impl std::fmt::Display) {
    say!("{name:<13} {value}");
}

fn millions(count: usize) -> String {
    format!("{:.1} M", count as f64 / 1e6)
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
