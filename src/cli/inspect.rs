//! `ferry inspect`: what a model is made of, from its configuration and headers alone.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::Failure;
use crate::{
    models::ModelSummary,
    repository::{FoundModel, find_models, read_manifest},
};

/// Tell what a model is made of, without loading it.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A model's name in the models folder, or the path of a folder with its files.
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

impl Inspect {
    pub fn run(self) -> Result<(), Failure> {
        let (found, dir) = self.find()?;
        let summary = ModelSummary::read(&dir)?;
        let manifest = found.as_ref().map(|model| read_manifest(model, &dir));
        let manifest = manifest.transpose()?;
        if self.json {
            let tensors: Vec<_> = summary
                .tensors
                .iter()
                .map(|tensor| {
                    json!({
                        "name": tensor.name, "dtype": tensor.dtype,
                        "shape": tensor.shape, "bytes": tensor.bytes,
                    })
                })
                .collect();
            let described = json!({
                "path": dir,
                "model_type": summary.model_type,
                "architectures": summary.architectures,
                "task": manifest.as_ref().map(|manifest| manifest.task.to_string()),
                "parameters": summary.parameters,
                "file_bytes": summary.file_bytes,
                "memory_bytes": summary.memory_bytes,
                "unsupported": summary.spec.as_ref().err().map(ToString::to_string),
                "tensors": tensors,
            });
            println!("{}", serde_json::to_string_pretty(&described)?);
            return Ok(());
        }
        row("path", dir.display());
        row("architecture", summary.architectures.join(", "));
        if let Some(manifest) = &manifest {
            row("task", manifest.task);
            row("licence", &manifest.license);
        }
        match &summary.spec {
            Ok(spec) => {
                row(
                    "encoder",
                    format_args!(
                        "{}, {} layers, hidden {}, {} heads, feed-forward {}",
                        spec.model_type, spec.layers, spec.hidden, spec.heads, spec.intermediate
                    ),
                );
                row("vocabulary", spec.vocabulary);
                let allowed = spec.max_tokens();
                let asked = manifest
                    .as_ref()
                    .map_or(0, |manifest| manifest.input.max_tokens);
                let used = if asked == 0 { allowed } else { asked };
                row(
                    "tokens",
                    format_args!("{used} a row (the model has {allowed} positions)"),
                );
            }
            Err(error) => row("unsupported", error),
        }
        row("parameters", millions(summary.parameters));
        row("file", mebibytes(summary.file_bytes));
        row(
            "memory",
            format_args!(
                "{} as f32, activations beside",
                mebibytes(summary.memory_bytes)
            ),
        );
        row("tensors", summary.tensors.len());
        let mut dtypes: Vec<&str> = summary
            .tensors
            .iter()
            .map(|tensor| &*tensor.dtype)
            .collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        row("dtypes", dtypes.join(", "));
        if self.tensors {
            println!();
            for tensor in &summary.tensors {
                println!(
                    "{:<6} {:>18} {:>12}  {}",
                    tensor.dtype,
                    format!("{:?}", tensor.shape),
                    tensor.bytes,
                    tensor.name
                );
            }
        }
        Ok(())
    }

    /// The model, if it is one of the models folder, and the folder of its newest version.
    fn find(&self) -> Result<(Option<FoundModel>, PathBuf), Failure> {
        let path = Path::new(&self.model);
        if path.join("config.json").is_file() {
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

fn row(name: &str, value: impl std::fmt::Display) {
    println!("{name:<13} {value}");
}

fn millions(count: usize) -> String {
    format!("{:.1} M", count as f64 / 1e6)
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
