//! A version's prepared weights: where they are, and who writes them when.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{LoadError, Loading, PreparedPlace, Upkeep, times::timed};
use crate::{
    device::Place,
    models::{
        PreparedWeights,
        prepared::{PreparedKey, SourceFiles, Unusable, WriteError},
    },
};

/// The folder beside the weights.
const FOLDER: &str = ".ferry";
/// The file in a version's folder of prepared weights.
const FILE: &str = "weights.prepared";
/// Weights that are laid out in a few milliseconds are not worth a file that nobody asked for.
const LEAST_BYTES: usize = 8 << 20;

/// Whether a load found its weights prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreparedUse {
    /// There is no place for them.
    Off,
    /// They were found, and are used in place.
    Mapped,
    /// They were laid out anew.
    Made {
        /// Why those that were there, if any, could not be used.
        why: Unusable,
    },
    /// They were laid out anew, and written.
    Written {
        /// Why those that were there, if any, could not be used.
        why: Unusable,
        /// Bytes of the file.
        bytes: u64,
        /// How long it took.
        took: Duration,
    },
}

/// The prepared weights of the version that is being loaded, if there are to be any. `settings` is
/// what decides on them besides the files in `source`.
pub(super) fn open(loading: &Loading<'_>, source: &Path, settings: String) -> Arc<PreparedWeights> {
    // They are in the layout of the CPU's products.
    let is_cpu = loading.places.iter().all(|place| *place == Place::Cpu);
    let Some(path) = path(loading).filter(|_| is_cpu) else {
        return PreparedWeights::off();
    };
    match SourceFiles::of(source) {
        Ok(sources) => PreparedWeights::open(path, PreparedKey { sources, settings }),
        // The loader will meet the same error, and say it.
        Err(_) => PreparedWeights::off(),
    }
}

/// Sees to it that the next load finds them.
pub(super) fn keep(
    loading: &Loading<'_>,
    prepared: Arc<PreparedWeights>,
) -> Result<PreparedUse, LoadError> {
    let Some(path) = prepared.path().map(Path::to_owned) else {
        return Ok(PreparedUse::Off);
    };
    if !prepared.is_outdated() {
        return Ok(PreparedUse::Mapped);
    }
    let why = prepared.unusable().cloned();
    let why = why.unwrap_or_else(|| Unusable::Stale("it lacks some weights".to_owned()));
    let model = loading.model.name.as_str();
    if why != Unusable::Missing {
        tracing::warn!(model, path = %path.display(), %why, "prepared weights not used; laid out anew");
    }
    match loading.settings.upkeep {
        Upkeep::AtOnce => {
            let (written, took) = timed(|| prepared.write(true));
            let bytes = written?;
            Ok(PreparedUse::Written { why, bytes, took })
        }
        Upkeep::Behind if prepared.bytes() >= LEAST_BYTES => {
            write_behind(model.to_owned(), path, prepared);
            Ok(PreparedUse::Made { why })
        }
        Upkeep::Behind | Upkeep::Never => Ok(PreparedUse::Made { why }),
    }
}

fn write_behind(model: String, path: PathBuf, prepared: Arc<PreparedWeights>) {
    let write = move || {
        let path = path.display();
        match timed(|| prepared.write(false)) {
            (Ok(bytes), took) => {
                let (mib, ms) = (bytes >> 20, took.as_millis() as u64);
                tracing::info!(model, %path, mib, ms, "wrote prepared weights for the next start");
            }
            (Err(WriteError::Busy(_)), _) => {}
            (Err(error), _) if error.is_read_only() => tracing::info!(
                model,
                %error,
                "prepared weights can't be kept here; set models.prepared_directory, or models.prepared = \"off\""
            ),
            (Err(error), _) => tracing::warn!(model, %error, "prepared weights were not written"),
        }
    };
    let thread = std::thread::Builder::new().name("prepare".to_owned());
    if let Err(error) = thread.spawn(write) {
        tracing::warn!(%error, "no thread to write prepared weights");
    }
}

fn path(loading: &Loading<'_>) -> Option<PathBuf> {
    let folder = match &loading.settings.prepared {
        PreparedPlace::Off => return None,
        PreparedPlace::BesideVersion => loading.dir.join(FOLDER),
        PreparedPlace::In(folder) => folder.join(&loading.model.name).join(loading.version),
    };
    Some(folder.join(FILE))
}
