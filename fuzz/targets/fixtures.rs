//! Where the tiny models lie, and folders that last for one input.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A file or folder of the repository, whichever of its two packages this is compiled in.
pub fn repository(path: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut roots = [Some(here), here.parent()].into_iter().flatten();
    let root = roots.find(|root| root.join("tests/fixtures").is_dir());
    root.expect("the repository's fixtures").join(path)
}

/// The folder of a tiny model.
pub fn fixture(name: &str) -> PathBuf {
    repository("tests/fixtures").join(name)
}

pub fn read(path: &str) -> Vec<u8> {
    std::fs::read(repository(path)).expect(path)
}

/// A folder in memory, where the system has such.
pub fn scratch() -> TempDir {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    folder.expect("a folder")
}

/// A folder with the files of a tiny model but for one, which is `input`.
pub fn with_file(model: &str, name: &str, input: &[u8]) -> TempDir {
    let folder = scratch();
    for entry in std::fs::read_dir(fixture(model)).expect(model) {
        let entry = entry.expect(model);
        if entry.file_name() != name {
            let link = folder.path().join(entry.file_name());
            std::os::unix::fs::symlink(entry.path(), link).expect("a link");
        }
    }
    std::fs::write(folder.path().join(name), input).expect("a file");
    folder
}
