//! Where a model's description and weights come from: a GGUF file, or a folder with `config.json`
//! and a safetensors checkpoint.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::Device;
use safetensors::Dtype;

use super::error::LoadError;
use super::gguf::{GgufFile, TensorInfo};
use super::tensor_plan::TensorPlan;
use super::weights::{Checkpoint, TensorEntry};

/// A folder's GGUF file, if it has no safetensors.
const GGUF: &str = "model.gguf";

/// The files of a model, their headers read.
#[derive(Debug)]
pub(super) enum Source {
    Gguf(GgufFile),
    Safetensors(PathBuf, Checkpoint),
}

impl Source {
    /// Opens a `*.gguf` file, or a folder with `config.json` and a safetensors checkpoint, or a
    /// folder with a `model.gguf`.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        if path.is_file() {
            return Ok(Self::Gguf(GgufFile::open(path)?));
        }
        if !path.join("config.json").is_file() && path.join(GGUF).is_file() {
            return Ok(Self::Gguf(GgufFile::open(&path.join(GGUF))?));
        }
        let checkpoint = Checkpoint::open(path)?;
        Ok(Self::Safetensors(path.to_owned(), checkpoint))
    }

    /// Tells the system that most weights will not be read, since they were prepared.
    pub fn expect_few_reads(&self) {
        match self {
            Self::Gguf(file) => file.expect_few_reads(),
            Self::Safetensors(_, checkpoint) => checkpoint.expect_few_reads(),
        }
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Gguf(file) => file.tensors().contains_key(name),
            Self::Safetensors(_, checkpoint) => checkpoint.entries().contains_key(name),
        }
    }

    /// Checks that every tensor of a plan is there, with its shape and a type that can be read.
    /// Returns the number of their values.
    pub fn check<'a>(
        &self,
        plan: impl Iterator<Item = &'a TensorPlan>,
    ) -> Result<usize, LoadError> {
        let mut values = 0;
        for tensor in plan {
            self.check_tensor(tensor)?;
            values += tensor.elements();
        }
        Ok(values)
    }

    fn check_tensor(&self, tensor: &TensorPlan) -> Result<(), LoadError> {
        let name = &tensor.name;
        let found = match self {
            Self::Gguf(file) => file.tensors().get(name).map(|info| &info.shape),
            Self::Safetensors(_, checkpoint) => {
                checkpoint.entries().get(name).map(|entry| &entry.shape)
            }
        };
        let Some(found) = found else {
            return Err(LoadError::MissingTensor {
                name: name.clone(),
                expected: tensor.shape.clone(),
                why: format!("the file has {} tensors", self.tensor_count()),
            });
        };
        if *found != tensor.shape {
            return Err(LoadError::Shape {
                name: name.clone(),
                found: found.clone(),
                expected: tensor.shape.clone(),
            });
        }
        match self {
            Self::Gguf(file) => {
                file.tensors()[name].dtype.supported(name)?;
            }
            Self::Safetensors(_, checkpoint) => {
                let dtype = checkpoint.entries()[name].dtype;
                if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                    return Err(LoadError::Dtype {
                        name: name.clone(),
                        found: format!("{dtype:?}"),
                    });
                }
            }
        }
        Ok(())
    }

    /// The names of the tensors that a plan does not use, sorted.
    pub fn unused<'a>(&self, plan: impl Iterator<Item = &'a TensorPlan>) -> Vec<String> {
        let mut unused: BTreeSet<&str> = match self {
            Self::Gguf(file) => file.tensors().keys().map(String::as_str).collect(),
            Self::Safetensors(_, checkpoint) => {
                checkpoint.entries().keys().map(String::as_str).collect()
            }
        };
        for tensor in plan {
            unused.remove(tensor.name.as_str());
        }
        unused.into_iter().map(str::to_owned).collect()
    }

    /// A tensor's values in f32; none is NaN or infinite.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        match self {
            Self::Safetensors(_, checkpoint) => checkpoint.values(name),
            Self::Gguf(file) => {
                let tensor = file.tensor(name, &Device::Cpu)?;
                let tensor = tensor.dequantize(&Device::Cpu)?;
                let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
                match values.iter().position(|value| !value.is_finite()) {
                    None => Ok(values),
                    Some(index) => Err(LoadError::NonFinite {
                        name: name.to_owned(),
                        index,
                    }),
                }
            }
        }
    }

    /// Bytes of all tensors; those of types that are not supported count as none.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Gguf(file) => file.tensors().values().map(TensorInfo::bytes).sum(),
            Self::Safetensors(_, checkpoint) => {
                checkpoint.entries().values().map(TensorEntry::bytes).sum()
            }
        }
    }

    fn tensor_count(&self) -> usize {
        match self {
            Self::Gguf(file) => file.tensors().len(),
            Self::Safetensors(_, checkpoint) => checkpoint.entries().len(),
        }
    }
}
