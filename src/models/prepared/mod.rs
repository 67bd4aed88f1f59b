//! Weights as the kernels read them, kept in a file, so that a later load maps them instead of
//! reading the model's files and laying every matrix out anew.
//!
//! [`PreparedWeights`] answers the loader's question for one matrix after the other: the panels of
//! the file, in place, or those that the loader makes, which are remembered and can be written.
//! The file (`header`) says which sources, settings and layouts it was made from and for, and has
//! a checksum for every section. All of that is checked before anything of it is used; a file that
//! is damaged, stale or foreign is as good as none. The bits of a model do not depend on it.

mod file;
mod header;
mod source;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use candle_core::quantized::GgmlDType;

use super::error::LoadError;
use crate::ops::{Compute, Linear, QuantizedWeight, Values};
use file::PreparedFile;

pub use source::SourceFiles;
pub use write::WriteError;

/// Why a file of prepared weights is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is none.
    #[error("there is none yet")]
    Missing,
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Unreadable(String),
    /// It is cut short, changed, or not such a file.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Another build laid its weights out, or for other settings.
    #[error("it is of another kind: {0}")]
    Foreign(String),
    /// The model's files are not those that it was made from.
    #[error("it is stale: {0}")]
    Stale(String),
}

/// What a file of prepared weights must have been made from and for.
#[derive(Debug, Clone)]
pub struct PreparedKey {
    /// The model's files.
    pub sources: SourceFiles,
    /// What else decides on the weights, such as what they are quantized to.
    pub settings: String,
}

/// The weights of one version, found prepared or remembered as they are made.
#[derive(Debug)]
pub struct PreparedWeights {
    place: Option<(PathBuf, PreparedKey)>,
    found: Result<PreparedFile, Unusable>,
    taken: Mutex<Taken>,
}

/// What the loader has asked for.
#[derive(Debug, Default)]
struct Taken {
    weights: Vec<NamedWeight>,
    /// Of these, how many were not in the file.
    made: usize,
}

/// A weight in the layout of its kernel.
#[derive(Debug, Clone)]
struct NamedWeight {
    name: String,
    shape: [usize; 2],
    panels: Panels,
}

#[derive(Debug, Clone)]
enum Panels {
    /// Not panels but rows, as they are.
    Table(Values<f32>),
    Linear(Linear),
    Quantized(GgmlDType, QuantizedWeight),
}

impl PreparedWeights {
    /// No file: every weight is made, and none is remembered.
    pub fn off() -> Arc<Self> {
        Arc::new(Self {
            place: None,
            found: Err(Unusable::Missing),
            taken: Mutex::default(),
        })
    }

    /// The file at `path` if it is sound and was made from and for `key`. Reads all of it, to
    /// compare its checksums.
    pub fn open(path: PathBuf, key: PreparedKey) -> Arc<Self> {
        Arc::new(Self {
            found: PreparedFile::open(&path, &key),
            place: Some((path, key)),
            taken: Mutex::default(),
        })
    }

    /// Where the file is or will be; nowhere where there is to be none.
    pub fn path(&self) -> Option<&Path> {
        self.place.as_ref().map(|(path, _)| path.as_path())
    }

    /// Why the file isn't used, if it isn't.
    pub fn unusable(&self) -> Option<&Unusable> {
        self.found.as_ref().err()
    }

    /// Whether weights had to be made, so that the file is to be written.
    pub fn is_outdated(&self) -> bool {
        self.place.is_some() && self.lock().made > 0
    }

    /// Bytes of the weights that were asked for so far.
    pub fn bytes(&self) -> usize {
        let taken = self.lock();
        let sections = taken.weights.iter().flat_map(NamedWeight::sections);
        sections.map(<[u8]>::len).sum()
    }

    /// A table `[rows, columns]` that is looked up row by row; `read` gives its values.
    pub(crate) fn table(
        &self,
        name: &str,
        shape: [usize; 2],
        read: impl FnOnce() -> Result<Vec<f32>, LoadError>,
    ) -> Result<Values<f32>, LoadError> {
        let found = self.found.as_ref().ok();
        let found = found.and_then(|file| file.table(name, shape));
        let made = found.is_none();
        let table = match found {
            Some(table) => table,
            None => read()?.into(),
        };
        self.remember(name, shape, Panels::Table(table.clone()), made);
        Ok(table)
    }

    /// A matrix `[outputs, inputs]` of f32 values without bias, laid out for `compute`; `read` gives
    /// its values.
    pub(crate) fn linear(
        &self,
        name: &str,
        shape: [usize; 2],
        compute: Compute,
        read: impl FnOnce() -> Result<Tensor, LoadError>,
    ) -> Result<Linear, LoadError> {
        let found = self.found.as_ref().ok();
        let found = found.and_then(|file| file.linear(name, shape, compute));
        let made = found.is_none();
        let linear = match found {
            Some(linear) => linear,
            None => Linear::with_compute(&read()?, None, compute)?,
        };
        self.remember(name, shape, Panels::Linear(linear.clone()), made);
        Ok(linear)
    }

    /// A matrix `[outputs, inputs]` in a type of GGML; `make` lays it out.
    pub(crate) fn quantized(
        &self,
        name: &str,
        dtype: GgmlDType,
        shape: [usize; 2],
        make: impl FnOnce() -> Result<QuantizedWeight, LoadError>,
    ) -> Result<QuantizedWeight, LoadError> {
        let found = self.found.as_ref().ok();
        let found = found.and_then(|file| file.quantized(name, dtype, shape));
        let made = found.is_none();
        let weight = match found {
            Some(weight) => weight,
            None => make()?,
        };
        let panels = Panels::Quantized(dtype, weight.clone());
        self.remember(name, shape, panels, made);
        Ok(weight)
    }

    /// Writes the weights that were asked for, and lets go of them. Readers of an older file keep
    /// what they have mapped; a new one finds the old file or the new, whole.
    ///
    /// # Errors
    /// [`WriteError`]; [`WriteError::Busy`] when another process is just writing and this one is
    /// not to `wait` for its turn.
    pub fn write(&self, wait: bool) -> Result<u64, WriteError> {
        let Some((path, key)) = &self.place else {
            return Ok(0);
        };
        let taken = std::mem::take(&mut *self.lock());
        write::write(path, key, &taken.weights, wait)
    }

    fn remember(&self, name: &str, shape: [usize; 2], panels: Panels, made: bool) {
        if self.place.is_none() {
            return;
        }
        let mut taken = self.lock();
        taken.made += usize::from(made);
        taken.weights.push(NamedWeight {
            name: name.to_owned(),
            shape,
            panels,
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NamedWeight {
    /// The parts of its layout; none of a weight that is on another device.
    fn sections(&self) -> Vec<&[u8]> {
        match &self.panels {
            Panels::Table(values) => vec![values.as_bytes()],
            Panels::Linear(linear) => linear.panels().into_iter().collect(),
            Panels::Quantized(_, weight) => weight.sections(),
        }
    }

    fn kind(&self) -> String {
        match &self.panels {
            Panels::Table(_) => header::TABLE.to_owned(),
            Panels::Linear(linear) => header::kind_of_linear(linear.compute()),
            Panels::Quantized(dtype, _) => header::kind_of(*dtype),
        }
    }
}
