//! Follows the models folder: loads what comes, unloads what goes.
//!
//! The folder is looked at every few seconds; a file system's events would not be told by network
//! volumes. A change is acted on when two looks in a row have seen the same, so that a copy under way
//! is not taken for a model.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use super::{FoundModel, Repository};

/// Files of a version's folder that are looked at, at most.
const MAX_FILES: usize = 1024;

/// Starts the thread that follows the folder, from what is there now. It ends with the repository.
/// Only models that `wanted` takes are loaded.
///
/// # Errors
/// When the system refuses a thread.
pub fn follow_folder(
    repository: &Arc<Repository>,
    wanted: impl Fn(&str) -> bool + Send + 'static,
) -> std::io::Result<()> {
    let every = Duration::from_secs_f64(repository.config().poll_seconds);
    let mut followed = look(repository).unwrap_or_default();
    let repository = Arc::downgrade(repository);
    std::thread::Builder::new()
        .name("folder".to_owned())
        .spawn(move || follow(&repository, &mut followed, every, &wanted))?;
    Ok(())
}

/// Each model's fingerprint.
type Seen = BTreeMap<String, u64>;

fn follow(
    repository: &Weak<Repository>,
    followed: &mut Seen,
    every: Duration,
    wanted: &dyn Fn(&str) -> bool,
) {
    let mut last_look = followed.clone();
    loop {
        std::thread::sleep(every);
        let Some(repository) = repository.upgrade() else {
            return;
        };
        let Some(seen) = look(&repository) else {
            // A volume that is away for a moment is no reason to unload everything.
            continue;
        };
        for name in changed(followed, &last_look, &seen) {
            if let Some(fingerprint) = seen.get(&name) {
                followed.insert(name.clone(), *fingerprint);
                if wanted(&name) {
                    tracing::info!(model = name, "its folder has changed");
                    // Why it failed is in its state and in the log.
                    let _ = repository.load(&name, None);
                }
            } else {
                followed.remove(&name);
                tracing::info!(model = name, "its folder is gone");
                let _ = repository.unload(&name, None);
            }
        }
        last_look = seen;
    }
}

/// Models that differ from what is followed and did not change since the last look.
fn changed(followed: &Seen, last_look: &Seen, seen: &Seen) -> Vec<String> {
    let names = followed.keys().chain(seen.keys());
    let mut changed: Vec<String> = names
        .filter(|&name| followed.get(name) != seen.get(name))
        .filter(|&name| last_look.get(name) == seen.get(name))
        .cloned()
        .collect();
    changed.sort_unstable();
    changed.dedup();
    changed
}

fn look(repository: &Repository) -> Option<Seen> {
    match repository.find_on_disk() {
        Ok(found) => Some(
            found
                .iter()
                .map(|model| (model.name.clone(), fingerprint(model)))
                .collect(),
        ),
        Err(error) => {
            tracing::warn!(%error, "the models folder can't be read");
            None
        }
    }
}

/// Names, sizes and times of a model's files.
fn fingerprint(model: &FoundModel) -> u64 {
    let mut hasher = DefaultHasher::new();
    note_file(&model.manifest_path(), &mut hasher);
    for &version in &model.versions {
        version.hash(&mut hasher);
        let Ok(files) = std::fs::read_dir(model.version_dir(version)) else {
            continue;
        };
        let mut files: Vec<_> = files
            .take(MAX_FILES)
            .filter_map(|file| Some(file.ok()?.path()))
            .collect();
        files.sort_unstable();
        for file in files {
            note_file(&file, &mut hasher);
        }
    }
    hasher.finish()
}

fn note_file(path: &Path, hasher: &mut DefaultHasher) {
    // What Ferry itself puts there, such as prepared weights, changes nothing.
    let is_hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    if is_hidden {
        return;
    }
    let Ok(metadata) = path.metadata() else {
        return;
    };
    if metadata.is_file() {
        path.hash(hasher);
        metadata.len().hash(hasher);
        metadata.modified().ok().hash(hasher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<const N: usize>(models: [(&str, u64); N]) -> Seen {
        models
            .into_iter()
            .map(|(name, fingerprint)| (name.to_owned(), fingerprint))
            .collect()
    }

    #[test]
    fn a_change_counts_once_it_has_come_to_rest() {
        let followed = seen([("a", 1), ("b", 1), ("gone", 1)]);
        let now = seen([("a", 2), ("b", 1), ("new", 1)]);
        assert_eq!(changed(&followed, &followed, &now), [""; 0]);
        assert_eq!(changed(&followed, &now, &now), ["a", "gone", "new"]);
        assert_eq!(changed(&now, &now, &now), [""; 0]);
    }

    #[test]
    fn a_files_size_and_a_new_version_change_the_fingerprint_and_hidden_files_do_not() {
        let root = tempfile::tempdir().unwrap();
        let model = |versions: &[u64]| FoundModel {
            name: "m".to_owned(),
            dir: root.path().to_owned(),
            versions: versions.to_vec(),
        };
        std::fs::create_dir_all(root.path().join("1")).unwrap();
        let first = fingerprint(&model(&[1]));
        std::fs::write(root.path().join("1/.prepared"), "x").unwrap();
        assert_eq!(fingerprint(&model(&[1])), first);
        std::fs::write(root.path().join("1/config.json"), "{}").unwrap();
        let second = fingerprint(&model(&[1]));
        assert_ne!(second, first);
        std::fs::write(root.path().join("model.toml"), "").unwrap();
        assert_ne!(fingerprint(&model(&[1])), second);
        assert_ne!(fingerprint(&model(&[1, 2])), fingerprint(&model(&[1])));
    }
}
