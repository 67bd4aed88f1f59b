//! `ferry fetch`: brings the files that a manifest names from the Hugging Face Hub.

use std::path::{Path, PathBuf};

use clap::Args;
use hf_hub::{Repo, RepoType, api::sync::ApiBuilder};

use super::Failure;
use crate::{
    config::{ModelManifest, manifest::is_inside},
    repository::{FoundModel, find_models},
};

/// Bring a model's files from the Hugging Face Hub, as its model.toml says. The hub's address and
/// token come from `HF_ENDPOINT` and `HF_TOKEN`, as its own tools take them.
#[derive(Debug, Args)]
pub struct Fetch {
    /// Names in the models folder; none for all that name a source.
    names: Vec<String>,
    /// The models folder.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "models",
        env = "FERRY_MODELS"
    )]
    models: PathBuf,
    /// The version to write the files as.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    as_version: u64,
    /// Another hub, or a mirror.
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT")]
    endpoint: Option<String>,
    /// For gated models.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Fetch again what is there.
    #[arg(long)]
    force: bool,
}

impl Fetch {
    pub fn run(self) -> Result<(), Failure> {
        let found = find_models(&self.models)?;
        for name in &self.names {
            if !found.iter().any(|model| model.name == *name) {
                let folder = self.models.display();
                return Err(format!("no folder {folder}/{name} with a model.toml").into());
            }
        }
        let mut failures = 0;
        for model in &found {
            let asked_for = self.names.contains(&model.name);
            if !asked_for && !self.names.is_empty() {
                continue;
            }
            let manifest = ModelManifest::read(&model.manifest_path())?;
            if manifest.source.huggingface.is_empty() {
                if asked_for {
                    return Err(
                        format!("{}: model.toml has no source.huggingface", model.name).into(),
                    );
                }
                continue;
            }
            if let Err(error) = self.fetch(model, &manifest) {
                say_aside!("{}: {error}", model.name);
                failures += 1;
            }
        }
        match failures {
            0 => Ok(()),
            failures => Err(format!("{failures} models could not be fetched").into()),
        }
    }

    fn fetch(&self, model: &FoundModel, manifest: &ModelManifest) -> Result<(), Failure> {
        let dir = model.version_dir(self.as_version);
        let source = &manifest.source;
        let cache = tempfile::Builder::new()
            .prefix(".fetch-")
            .tempdir_in(&model.dir)?;
        let mut builder = ApiBuilder::new()
            .with_cache_dir(cache.path().to_owned())
            .with_progress(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_retries(3)
            .with_token(self.token.clone());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let revision = match source.revision.as_str() {
            "" => "main",
            revision => revision,
        };
        let repo = builder.build()?.repo(Repo::with_revision(
            source.huggingface.clone(),
            RepoType::Model,
            revision.to_owned(),
        ));
        for file in &source.files {
            // The manifest's validation says so too; here is where it would do harm.
            assert!(is_inside(file), "a validated path");
            let target = dir.join(file);
            if target.is_file() && !self.force {
                say!("{}: {file} is there", model.name);
                continue;
            }
            let fetched = repo.download(file)?;
            put_in_place(&fetched, &target)?;
            let bytes = target.metadata()?.len();
            say!("{}: {file}, {bytes} bytes", model.name);
        }
        Ok(())
    }
}

/// Copies beside the target and renames, so that a half-written file never looks whole.
fn put_in_place(fetched: &Path, target: &Path) -> std::io::Result<()> {
    let folder = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut half = tempfile::NamedTempFile::new_in(folder)?;
    std::io::copy(&mut std::fs::File::open(fetched)?, &mut half)?;
    half.persist(target)?;
    Ok(())
}
