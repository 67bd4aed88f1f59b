//! The files that weights were prepared from, and how to tell that they are still the same.
//!
//! A file of the same name, size and time of change is taken for the same. If only the time
//! differs (an image's layers and copies change it), its content decides; and also if it had been
//! changed so shortly before that another change might bear the same time.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Unusable;
use super::header::digest;
use crate::models::mapping::map_file;

/// The coarsest step in which file systems in use keep times, with room to spare.
const SETTLED: Duration = Duration::from_secs(2);

/// A model's files with weights.
#[derive(Debug, Clone)]
pub struct SourceFiles(Vec<PathBuf>);

/// A file as it was when weights were prepared from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceFile {
    name: String,
    bytes: u64,
    modified: Modified,
    /// Whether that was long enough ago.
    settled: bool,
    digest: u64,
}

/// A time of change, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Modified {
    seconds: u64,
    nanoseconds: u32,
}

impl SourceFiles {
    /// The weights of a `*.gguf` file, or all that a folder holds in safetensors.
    ///
    /// # Errors
    /// If the folder can't be read.
    pub fn of(source: &Path) -> io::Result<Self> {
        if source.is_file() {
            return Ok(Self(vec![source.to_owned()]));
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(source)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy());
            let holds_weights = name.is_some_and(|name| {
                name.ends_with(".safetensors")
                    || name.ends_with(".safetensors.index.json")
                    || name.ends_with(".gguf")
            });
            if holds_weights {
                files.push(path);
            }
        }
        files.sort();
        Ok(Self(files))
    }

    /// Where they are, by name.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(PathBuf::as_path)
    }

    /// The files as they are, with a digest of their content.
    pub(super) fn describe(&self) -> io::Result<Vec<SourceFile>> {
        let describe = |path: &PathBuf| {
            let metadata = fs::metadata(path)?;
            let age = metadata.modified().ok();
            let age = age.and_then(|time| SystemTime::now().duration_since(time).ok());
            Ok(SourceFile {
                name: name_of(path),
                bytes: metadata.len(),
                modified: Modified::of(&metadata),
                settled: age.is_some_and(|age| age > SETTLED),
                digest: digest_of(path)?,
            })
        };
        self.0.iter().map(describe).collect()
    }

    /// Whether they are those that were described.
    pub(super) fn check(&self, described: &[SourceFile]) -> Result<(), Unusable> {
        let stale = |reason: String| Err(Unusable::Stale(reason));
        let names: Vec<String> = self.0.iter().map(|path| name_of(path)).collect();
        if !names.iter().eq(described.iter().map(|file| &file.name)) {
            return stale(format!("the model's files are {}", names.join(", ")));
        }
        for (path, was) in self.0.iter().zip(described) {
            let unreadable = |error: io::Error| Unusable::Unreadable(error.to_string());
            let is = fs::metadata(path).map_err(unreadable)?;
            let name = &was.name;
            if is.len() != was.bytes {
                return stale(format!("{name} has {} bytes, had {}", is.len(), was.bytes));
            }
            let same_time = was.settled && Modified::of(&is).may_be(was.modified);
            if !same_time && digest_of(path).map_err(unreadable)? != was.digest {
                return stale(format!("{name} has another content"));
            }
        }
        Ok(())
    }
}

impl Modified {
    fn of(metadata: &Metadata) -> Self {
        let time = metadata.modified().ok();
        let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let since = since.unwrap_or_default();
        Self {
            seconds: since.as_secs(),
            nanoseconds: since.subsec_nanos(),
        }
    }

    /// Whether it is that time, as far as archives keep it: in whole seconds.
    fn may_be(self, was: Self) -> bool {
        self == was || (self.nanoseconds == 0 && self.seconds == was.seconds)
    }
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn digest_of(path: &Path) -> io::Result<u64> {
    let map = map_file(path).map_err(io::Error::other)?;
    Ok(digest(&map))
}
