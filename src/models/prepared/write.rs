//! Writes a file of prepared weights: whole or not at all, and by one process at a time.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::header::{Header, Section, WeightEntry, digest, layout};
use super::{NamedWeight, PreparedKey};
use crate::ops::values::ALIGNMENT;

/// How files are called that are not whole yet.
const PARTIAL: [&str; 2] = ["prepared-", ".partial"];
/// The file is no secret where the model is none: the server may run as another user than the
/// build that warmed it.
const MODE: u32 = 0o644;

/// Why prepared weights are not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Another process is writing them.
    #[error("another process is writing in {}", .0.display())]
    Busy(PathBuf),
    /// The folder can't be written to.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl WriteError {
    /// Whether the place is one where nothing may be written, as in an image that is read-only.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        ))
    }
}

/// Writes the file; returns its bytes.
pub(super) fn write(
    path: &Path,
    key: &PreparedKey,
    weights: &[NamedWeight],
    wait: bool,
) -> Result<u64, WriteError> {
    let failed = |source| WriteError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    // Held until the file is in its place; the system lets go of it when the process ends.
    let lock = File::open(folder).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) if wait => lock.lock().map_err(failed)?,
        Err(TryLockError::WouldBlock) => return Err(WriteError::Busy(folder.to_owned())),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    remove_partial(folder).map_err(failed)?;
    write_locked(path, folder, key, weights).map_err(failed)
}

/// Removes what a process left that was killed as it wrote.
fn remove_partial(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PARTIAL[0]) && name.ends_with(PARTIAL[1]) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write_locked(
    path: &Path,
    folder: &Path,
    key: &PreparedKey,
    weights: &[NamedWeight],
) -> io::Result<u64> {
    let mut end = 0;
    let mut entries = Vec::with_capacity(weights.len());
    for weight in weights {
        let mut sections = Vec::new();
        for bytes in weight.sections() {
            sections.push(Section {
                offset: end,
                bytes: bytes.len(),
                digest: digest(bytes),
            });
            end += bytes.len().next_multiple_of(ALIGNMENT);
        }
        entries.push(WeightEntry {
            name: weight.name.clone(),
            kind: weight.kind(),
            shape: weight.shape,
            sections,
        });
    }
    let header = Header {
        layout: layout(),
        settings: key.settings.clone(),
        sources: key.sources.describe()?,
        weights: entries,
    };
    let file = tempfile::Builder::new()
        .prefix(PARTIAL[0])
        .suffix(PARTIAL[1])
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(folder)?;
    let mut out = BufWriter::new(file.as_file());
    let header = header.bytes(end)?;
    out.write_all(&header)?;
    for bytes in weights.iter().flat_map(NamedWeight::sections) {
        out.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        out.write_all(&[0; ALIGNMENT][..padding])?;
    }
    out.flush()?;
    drop(out);
    file.persist(path)?;
    Ok((header.len() + end) as u64)
}
