//! Weight files as read-only memory maps. Those of a model's own files live only while it loads;
//! that of its prepared weights as long as it does.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use super::error::LoadError;

/// Maps the whole of a file.
pub(super) fn map_file(path: &Path) -> Result<Mmap, LoadError> {
    let io = |source| LoadError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is read-only and a version's files do not change while it loads (the
    // repository swaps directories, it does not write into them); prepared weights are replaced
    // by another file, never written in place. A file that is cut short meanwhile would end the
    // process with SIGBUS, it could not corrupt it.
    unsafe { Mmap::map(&file) }.map_err(io)
}
