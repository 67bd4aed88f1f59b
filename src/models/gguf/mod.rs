//! GGUF files (versions 2 and 3, little-endian): memory-mapped, and read as hostile input; and
//! written, in version 3.
//!
//! ```text
//! magic "GGUF", version u32, tensors u64, metadata values u64
//! metadata:  key string, type u32, value
//! tensors:   name string, dimensions u32, each u64 (innermost first), type u32, offset u64
//! padding to the alignment, then the tensors' data
//! ```
//! After the GGUF specification (`docs/gguf.md` of ggml). Every count and length is held against
//! what is left of the file before it is used, so that nothing is allocated on a file's word; every
//! tensor lies inside the file and no two overlap, so that what a model takes in memory is bounded
//! by its file. Arrays of metadata stay where they are until they are asked for.

mod contents;
mod cursor;
mod keys;
mod metadata;
mod tensors;
mod writer;

#[cfg(test)]
pub(super) mod testing;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::{QStorage, QTensor};
use memmap2::{Advice, Mmap};

use super::error::LoadError;
use super::mapping::map_file;
use contents::Contents;
pub(super) use keys::Keys;
pub use metadata::Metadata;
pub use tensors::{TensorInfo, TensorType};
pub use writer::{GgufWriter, MetadataValue, TensorHeader};

/// The whole of a `tokenizer.json`, by the key that the GGUF specification gives it.
pub const TOKENIZER_JSON: &str = "tokenizer.huggingface.json";

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Mmap,
    contents: Contents,
}

impl GgufFile {
    /// Maps a file and reads its header; no weights.
    ///
    /// # Errors
    /// If the file cannot be read, or is damaged.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let map = map_file(path)?;
        let contents = Contents::parse(&map).map_err(|reason| LoadError::Gguf {
            path: path.to_owned(),
            reason,
        })?;
        Ok(Self {
            path: path.to_owned(),
            map,
            contents,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that little more will be read, here and there: reading ahead would bring it all.
    pub(super) fn expect_few_reads(&self) {
        // A system that does not take the advice is merely slower.
        let _ = self.map.advise(Advice::Random);
    }

    /// Typed access to the metadata.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata::new(&self.map, &self.contents.metadata)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &HashMap<String, TensorInfo> {
        &self.contents.tensors
    }

    /// All tensors, in the order in which their data lie.
    pub fn tensors_in_order(&self) -> Vec<(&str, &TensorInfo)> {
        let mut tensors: Vec<_> = self
            .tensors()
            .iter()
            .map(|(name, info)| (name.as_str(), info))
            .collect();
        tensors.sort_by_key(|(name, info)| (info.bytes.start, *name));
        tensors
    }

    /// The metadata in its order, each value with its type's number before it, as
    /// [`MetadataValue::Copied`] takes it.
    pub fn copied_metadata(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let order = self.contents.order.iter();
        order.map(|(key, range)| (key.as_str(), &self.map[range.clone()]))
    }

    /// The bytes of a tensor; none if its type is not supported.
    pub fn tensor_bytes(&self, name: &str) -> Option<&[u8]> {
        let info = self.tensors().get(name)?;
        Some(&self.map[info.bytes.clone()])
    }

    /// A copy of a tensor on `device`, in the type that the file has it.
    ///
    /// # Errors
    /// If there is no such tensor, its type is not supported, or the device refuses.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<QTensor, LoadError> {
        let bytes = self.bytes(name)?;
        let info = &self.contents.tensors[name];
        let dtype = info.dtype.supported(name)?;
        let storage = QStorage::from_data(bytes.into(), device, dtype)?;
        Ok(QTensor::new(storage, info.shape.clone())?)
    }

    /// The blocks of a tensor as they lie in the file.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn bytes(&self, name: &str) -> Result<&[u8], LoadError> {
        let Some(info) = self.contents.tensors.get(name) else {
            return Err(LoadError::MissingTensor {
                name: name.to_owned(),
                expected: Vec::new(),
                why: format!("the file has {} tensors", self.contents.tensors.len()),
            });
        };
        // In bounds, a whole number of blocks, and aligned for the blocks: checked at open.
        Ok(&self.map[info.bytes.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempDir;
    use super::testing::GgufWriter;
    use super::*;
    use candle_core::quantized::GgmlDType;

    #[test]
    fn a_file_gives_back_what_was_written() -> Result<(), Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        let path = dir.path().join("model.gguf");
        let values: Vec<f32> = (0..64).map(|i| i as f32 - 32.0).collect();
        let blocks = [0x00, 0x3c, 0x21]; // scale 1, first codes 1 and 2 (less 8)
        let mut q4 = vec![0; 18];
        q4[..3].copy_from_slice(&blocks);
        GgufWriter::new()
            .string("general.architecture", "llama")
            .u32("llama.block_count", 7)
            .f32("llama.epsilon", 1e-5)
            .bool("flag", true)
            .strings("tokens", &["a", "", "ü"])
            .f32s("scores", &[0.5, -1.0])
            .i32s("types", &[1, -3])
            .f32_tensor("dense", &[4, 16], &values)
            .tensor("quantized", &[1, 32], 2, &q4)
            .write(&path)?;
        let file = GgufFile::open(&path)?;
        let metadata = file.metadata();
        assert_eq!(metadata.text("general.architecture")?, Some("llama"));
        assert_eq!(metadata.u32("llama.block_count")?, Some(7));
        assert_eq!(metadata.u64("llama.block_count")?, Some(7));
        assert_eq!(metadata.f32("llama.epsilon")?, Some(1e-5));
        assert_eq!(metadata.bool("flag")?, Some(true));
        assert_eq!(metadata.bool("no such key")?, None);
        assert_eq!(metadata.texts("tokens")?, Some(vec!["a", "", "ü"]));
        assert_eq!(metadata.f32s("scores")?, Some(vec![0.5, -1.0]));
        assert_eq!(metadata.i32s("types")?, Some(vec![1, -3]));
        let error = metadata.u32s("types").expect_err("a negative value");
        assert!(error.to_string().contains("types"), "{error}");
        let error = metadata.u32("flag").expect_err("not a number");
        assert!(error.to_string().contains("flag"), "{error}");

        let dense = file.tensor("dense", &Device::Cpu)?;
        assert_eq!(dense.shape().dims(), [4, 16]);
        let found = dense.dequantize(&Device::Cpu)?.flatten_all()?;
        assert_eq!(found.to_vec1::<f32>()?, values);
        let quantized = file.tensor("quantized", &Device::Cpu)?;
        assert_eq!(quantized.dtype(), GgmlDType::Q4_0);
        let found = quantized.dequantize(&Device::Cpu)?.to_vec2::<f32>()?;
        assert_eq!((found[0][0], found[0][16], found[0][1]), (-7.0, -6.0, -8.0));
        assert!(file.tensor("none", &Device::Cpu).is_err());
        Ok(())
    }

    #[test]
    fn a_type_that_is_not_supported_is_named_when_it_is_needed()
    -> Result<(), Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        let path = dir.path().join("model.gguf");
        GgufWriter::new()
            .tensor("iq", &[1, 256], 23, &[0; 136])
            .tensor("future", &[1, 256], 999, &[0; 8])
            .write(&path)?;
        let file = GgufFile::open(&path)?;
        assert_eq!(file.tensors()["iq"].dtype.to_string(), "IQ4_XS");
        for (tensor, named) in [("iq", "IQ4_XS"), ("future", "999")] {
            let error = file.tensor(tensor, &Device::Cpu).expect_err(tensor);
            let error = error.to_string();
            assert!(error.contains(tensor) && error.contains(named), "{error}");
        }
        Ok(())
    }
}
