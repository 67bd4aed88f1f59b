//! A version's calibration: `calibration.json` in its folder, written by `ferry calibrate`.
//!
//! It belongs to the weights it was fitted to, as they are served (their digest and how they are
//! quantized), and to their labels. A file that is damaged, or was made for another model, fails the
//! load: probabilities that are silently wrong are worse than none.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::{LoadError, Loading};
use crate::{
    config::{Activation, ModelManifest, Quantize, Task, manifest::find_gguf},
    models::prepared::SourceFiles,
    quality::calibration::{Calibration, Measured},
};

const FILE: &str = "calibration.json";
const FORMAT: u32 = 1;
const MAX_FILE_BYTES: u64 = 64 << 20;

/// A calibration with what it belongs to and how good it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecord {
    format: u32,
    /// The model's name when it was made, for people.
    pub model: String,
    /// Its version then, for people.
    pub version: String,
    /// The Ferry that made it.
    pub made_by: String,
    /// Digest of the version's weights, as [`digest_weights`] tells it.
    pub weights: String,
    /// What they were quantized to as they were loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// In the order of the logits.
    pub labels: Vec<String>,
    /// How logits become probabilities.
    pub activation: Activation,
    /// The calibration.
    pub calibration: Calibration,
    /// Rows it was fitted to.
    pub fitted_rows: usize,
    /// What was measured on other rows without it.
    pub before: Measured,
    /// The same with it.
    pub after: Measured,
}

/// The file: the record and a digest of it, so that damage shows.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    record: Box<RawValue>,
    /// Of the record as it stands in the file.
    blake3: String,
}

/// What a calibration of a loaded version belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Calibrated<'a> {
    /// The model's name.
    pub model: &'a str,
    /// Its version.
    pub version: &'a str,
    /// The version's folder.
    pub dir: &'a Path,
    /// Its manifest.
    pub manifest: &'a ModelManifest,
    /// Its labels.
    pub labels: &'a [String],
    /// How its logits become probabilities.
    pub activation: Activation,
}

impl CalibrationRecord {
    /// A calibration of a version, with what was measured.
    ///
    /// # Errors
    /// When the weights can't be read.
    pub fn new(
        of: &Calibrated<'_>,
        calibration: Calibration,
        fitted_rows: usize,
        before: Measured,
        after: Measured,
    ) -> io::Result<Self> {
        Ok(Self {
            format: FORMAT,
            model: of.model.to_owned(),
            version: of.version.to_owned(),
            made_by: format!("ferry {}", env!("CARGO_PKG_VERSION")),
            weights: digest_weights(of.dir)?,
            quantize: of.manifest.quantize,
            labels: of.labels.to_vec(),
            activation: of.activation,
            calibration,
            fitted_rows,
            before,
            after,
        })
    }

    /// Puts it into the version's folder, in one step, and returns where.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, dir: &Path) -> io::Result<PathBuf> {
        let record = to_raw_value(self)?;
        let blake3 = digest(&record);
        let path = dir.join(FILE);
        let file = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer(&file, &File { record, blake3 })?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        Ok(path)
    }

    /// Reads the one in a version's folder; `None` where there is none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(dir: &Path) -> Result<Option<Self>, LoadError> {
        let path = dir.join(FILE);
        let wrong = |reason: String| LoadError::Calibration {
            path: path.clone(),
            reason,
        };
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(wrong(format!("it has more than {MAX_FILE_BYTES} bytes")));
            }
            _ => {}
        }
        let text = fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        let damaged = |error: serde_json::Error| wrong(format!("it is damaged: {error}"));
        let file: File = serde_json::from_str(&text).map_err(damaged)?;
        if digest(&file.record) != file.blake3 {
            return Err(wrong(
                "it is damaged: its content is not what its digest says".to_owned(),
            ));
        }
        let record: Self = serde_json::from_str(file.record.get()).map_err(damaged)?;
        if record.format != FORMAT {
            let found = record.format;
            return Err(wrong(format!("its format is {found}, not {FORMAT}")));
        }
        Ok(Some(record))
    }

    /// Checks that it belongs to a version.
    ///
    /// # Errors
    /// What of it doesn't.
    pub fn check(&self, of: &Calibrated<'_>) -> Result<(), LoadError> {
        let made_for = || format!("it was made for {} version {}", self.model, self.version);
        let reason = if self.labels != of.labels {
            let (theirs, ours) = (self.labels.join(", "), of.labels.join(", "));
            format!("{}, whose labels are {theirs}, not {ours}", made_for())
        } else if self.activation != of.activation {
            let (theirs, ours) = (self.activation, of.activation);
            format!("{}, with {theirs:?}, not {ours:?}", made_for())
        } else if self.quantize != of.manifest.quantize {
            let name = |quantize: Option<Quantize>| {
                quantize.map_or_else(|| "nothing".to_owned(), |kind| format!("{kind:?}"))
            };
            let (theirs, ours) = (name(self.quantize), name(of.manifest.quantize));
            format!("{}, quantized to {theirs}, not {ours}", made_for())
        } else if let Err(wrong) = self.calibration.check(self.labels.len(), self.activation) {
            format!("it is damaged: {wrong}")
        } else {
            match digest_weights(of.dir) {
                Ok(weights) if weights == self.weights => return Ok(()),
                Ok(_) => format!("{}, whose weights are others", made_for()),
                Err(error) => format!("the weights can't be read: {error}"),
            }
        };
        Err(LoadError::Calibration {
            path: of.dir.join(FILE),
            reason: format!("{reason}; make it anew with `ferry calibrate`, or delete it"),
        })
    }
}

/// The calibration of the version that is being loaded, if it has one.
pub(super) fn read(
    loading: &Loading<'_>,
    labels: &[String],
    activation: Activation,
) -> Result<Option<Calibration>, LoadError> {
    if loading.settings.without_calibration {
        return Ok(None);
    }
    let Some(record) = CalibrationRecord::read(loading.dir)? else {
        return Ok(None);
    };
    if !matches!(loading.manifest.task, Task::Classify | Task::Rerank) {
        return Err(LoadError::Calibration {
            path: loading.dir.join(FILE),
            reason: format!("a model that does '{}' has none", loading.manifest.task),
        });
    }
    record.check(&Calibrated {
        model: &loading.model.name,
        version: loading.version,
        dir: loading.dir,
        manifest: loading.manifest,
        labels,
        activation,
    })?;
    Ok(Some(record.calibration))
}

fn digest(record: &RawValue) -> String {
    blake3::hash(record.get().as_bytes()).to_hex().to_string()
}

/// A digest of a version's weights: the GGUF file, or every file of the checkpoint by name.
///
/// # Errors
/// When they can't be read.
pub fn digest_weights(dir: &Path) -> io::Result<String> {
    let source = find_gguf(dir).unwrap_or_else(|| dir.to_owned());
    let mut hasher = blake3::Hasher::new();
    for path in SourceFiles::of(&source)?.paths() {
        let mut file = fs::File::open(path)?;
        hasher.update(&file.metadata()?.len().to_le_bytes());
        io::copy(&mut file, &mut hasher)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
