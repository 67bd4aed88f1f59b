//! Finds models in the repository folder: `NAME/VERSION/…`, versions being whole numbers from 1.

use std::path::{Path, PathBuf};

/// A model folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundModel {
    /// The folder's name, which is the model's.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// Versions there, lowest first.
    pub versions: Vec<u64>,
}

impl FoundModel {
    /// The manifest's place, whether or not there is one.
    pub fn manifest_path(&self) -> PathBuf {
        self.dir.join("model.toml")
    }

    /// The folder of a version.
    pub fn version_dir(&self, version: u64) -> PathBuf {
        self.dir.join(version.to_string())
    }
}

/// All model folders below `root`, by name: folders that hold a `model.toml` or a version.
///
/// # Errors
/// When `root` can't be read.
pub fn find_models(root: &Path) -> std::io::Result<Vec<FoundModel>> {
    let mut models = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let dir = entry?.path();
        let Some(name) = dir.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if !dir.is_dir() || name.starts_with('.') {
            continue;
        }
        let versions = find_versions(&dir)?;
        if versions.is_empty() && !dir.join("model.toml").is_file() {
            continue;
        }
        models.push(FoundModel {
            name: name.to_owned(),
            versions,
            dir,
        });
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(models)
}

fn find_versions(dir: &Path) -> std::io::Result<Vec<u64>> {
    let mut versions = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        // Only the plain spelling is a version, so that no two folders are the same one.
        let version = name
            .to_str()
            .and_then(|name| name.parse::<u64>().ok())
            .filter(|version| *version > 0 && name.to_str() == Some(&version.to_string()));
        if let Some(version) = version
            && entry.path().is_dir()
        {
            versions.push(version);
        }
    }
    versions.sort_unstable();
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_number_folders_are_versions() {
        let root = tempfile::tempdir().unwrap();
        for dir in [
            "a/1", "a/10", "a/2", "a/007", "a/0", "a/x", "b", ".c/1", "d",
        ] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::fs::write(root.path().join("d/model.toml"), "").unwrap();
        std::fs::write(root.path().join("fetch.py"), "").unwrap();
        let found: Vec<_> = find_models(root.path())
            .unwrap()
            .into_iter()
            .map(|model| (model.name, model.versions))
            .collect();
        assert_eq!(
            found,
            [("a".to_owned(), vec![1, 2, 10]), ("d".to_owned(), vec![])]
        );
    }
}
