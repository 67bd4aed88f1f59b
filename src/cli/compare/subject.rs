//! What the user names as a side: a model of the models folder, a version's folder, a GGUF file.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::{
    cli::Failure,
    config::{ModelManifest, manifest::find_gguf},
    repository::{FoundModel, find_models},
};

/// A side's files.
#[derive(Debug, PartialEq)]
pub struct Subject {
    /// The version's folder, or a GGUF file.
    files: PathBuf,
    /// The folder with its manifest, where there is one.
    model_dir: Option<PathBuf>,
}

/// Splits `NAME@VERSION`; the version is empty where none is named.
pub fn split_version(given: &str) -> (&str, &str) {
    given.rsplit_once('@').unwrap_or((given, ""))
}

impl Subject {
    /// Finds what `given` names: a path with a model's files, or `NAME` or `NAME@VERSION` in the folder
    /// `models`.
    ///
    /// # Errors
    /// When there is nothing, with what there is.
    pub fn find(given: &str, models: &Path) -> Result<Self, Failure> {
        let path = Path::new(given);
        let is_gguf = path.extension().is_some_and(|end| end == "gguf") && path.is_file();
        if is_gguf || path.join("config.json").is_file() || find_gguf(path).is_some() {
            return Ok(Self::at(path));
        }
        let (name, version) = split_version(given);
        let found =
            find_models(models).map_err(|error| format!("{}: {error}", models.display()))?;
        let Some(model) = found.iter().find(|model| model.name == name) else {
            let names: Vec<_> = found.iter().map(|model| model.name.as_str()).collect();
            return Err(format!(
                "'{given}' is neither a version's folder nor a GGUF file, and no model of {}; there \
                 are: {}",
                models.display(),
                names.join(", ")
            )
            .into());
        };
        Ok(Self {
            files: model.version_dir(pick_version(model, version)?),
            model_dir: Some(model.dir.clone()),
        })
    }

    /// A version's folder or a GGUF file. A manifest above it, where the models folder has it, counts.
    fn at(path: &Path) -> Self {
        let folder = if path.is_file() {
            path.parent()
        } else {
            Some(path)
        };
        let folder = folder.and_then(|folder| folder.canonicalize().ok());
        let above = folder.as_deref().and_then(Path::parent);
        Self {
            files: path.to_owned(),
            model_dir: above
                .filter(|above| above.join("model.toml").is_file())
                .map(Path::to_owned),
        }
    }

    /// Makes a model of it in the models folder `root`: version 1 of `name`, of links. Of its manifest
    /// stands what says how it answers, not which versions are served or who gets their requests.
    ///
    /// # Errors
    /// When the manifest is wrong or a link can't be made.
    pub fn place(&self, root: &Path, name: &str) -> Result<(), Failure> {
        let placed = root.join(name);
        std::fs::create_dir(&placed)?;
        if let Some(model_dir) = &self.model_dir {
            for entry in std::fs::read_dir(model_dir)? {
                let entry = entry?;
                let is_version = entry.file_name().to_string_lossy().parse::<u64>().is_ok();
                if entry.file_name() == "model.toml" {
                    let manifest = alone(ModelManifest::read(&entry.path())?);
                    std::fs::write(placed.join("model.toml"), toml::to_string(&manifest)?)?;
                } else if !is_version {
                    symlink(entry.path().canonicalize()?, placed.join(entry.file_name()))?;
                }
            }
        }
        let version = placed.join("1");
        let files = self.files.canonicalize()?;
        if files.is_dir() {
            symlink(files, version)?;
        } else {
            std::fs::create_dir(&version)?;
            symlink(files, version.join("model.gguf"))?;
        }
        Ok(())
    }
}

/// The manifest of a model that is alone: what says how it answers.
fn alone(manifest: ModelManifest) -> ModelManifest {
    ModelManifest {
        input: manifest.input,
        embed: manifest.embed,
        classify: manifest.classify,
        batching: manifest.batching,
        generate: manifest.generate,
        resources: manifest.resources,
        ..ModelManifest::of(manifest.task)
    }
}

fn pick_version(model: &FoundModel, wanted: &str) -> Result<u64, Failure> {
    let name = &model.name;
    let Some(&newest) = model.versions.last() else {
        return Err(format!("model '{name}' has no version on disk; fetch it first").into());
    };
    if wanted.is_empty() {
        return Ok(newest);
    }
    let found = model
        .versions
        .iter()
        .find(|version| version.to_string() == wanted);
    found.copied().ok_or_else(|| {
        let there: Vec<_> = model.versions.iter().map(u64::to_string).collect();
        let there = there.join(", ");
        format!("model '{name}' has no version '{wanted}'; there are: {there}").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for version in ["a/1", "a/2", "b"] {
            let dir = root.path().join(version);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("config.json"), "{}").unwrap();
        }
        std::fs::write(root.path().join("a/model.toml"), "task = \"embed\"").unwrap();
        std::fs::write(root.path().join("b/x.gguf"), "").unwrap();
        root
    }

    #[test]
    fn names_versions_and_paths_are_found() {
        let root = models();
        let dir = |part: &str| root.path().join(part);
        let find = |given: &str| Subject::find(given, root.path()).unwrap();
        assert_eq!(find("a").files, dir("a/2"));
        assert_eq!(find("a@1").files, dir("a/1"));
        let by_path = find(dir("a/1").to_str().unwrap());
        assert_eq!(by_path.files, dir("a/1"));
        assert!(by_path.model_dir.unwrap().ends_with("a"));
        let file = find(dir("b/x.gguf").to_str().unwrap());
        assert_eq!(file.model_dir, None);
        for (given, says) in [("c", "there are: a"), ("a@3", "there are: 1, 2")] {
            let error = Subject::find(given, root.path()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_placed_model_has_its_manifest_and_one_version() {
        let root = models();
        let place = tempfile::tempdir().unwrap();
        let find = |given: &str| Subject::find(given, root.path()).unwrap();
        find("a").place(place.path(), "reference").unwrap();
        let gguf = root.path().join("b/x.gguf");
        find(gguf.to_str().unwrap())
            .place(place.path(), "candidate")
            .unwrap();
        let found = find_models(place.path()).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|model| model.versions == [1]));
        assert!(place.path().join("reference/model.toml").is_file());
        assert!(place.path().join("reference/1/config.json").is_file());
        assert!(place.path().join("candidate/1/model.gguf").is_file());
    }
}
