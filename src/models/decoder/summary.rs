//! What a decoder's files hold, from their headers alone: for `ferry inspect`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use safetensors::Dtype;

use super::super::error::LoadError;
use super::super::gguf::TensorType;
use super::super::inspect::TensorSummary;
use super::spec::DecoderSpec;
use super::weights::Source;

/// A decoder's files; no weight is read.
#[derive(Debug)]
pub struct DecoderSummary {
    /// The decoder that they describe, or why it is none that Ferry runs.
    pub spec: Result<DecoderSpec, LoadError>,
    /// All tensors, by name.
    pub tensors: Vec<TensorSummary>,
    /// Floating-point values in all tensors.
    pub parameters: usize,
    /// Bytes of all tensors in the files; those of types that are not supported count as none.
    pub file_bytes: usize,
    /// Bytes that the weights would take when loaded as they are: quantized ones as in the file,
    /// others as f32. The cache and activations come on top.
    pub memory_bytes: usize,
}

impl DecoderSummary {
    /// Reads the headers of what [`DecoderModel::load`](super::DecoderModel::load) takes.
    ///
    /// # Errors
    /// If a file is missing or damaged. A model that is merely not supported is no error; see
    /// [`DecoderSummary::spec`].
    pub fn read(source: &Path) -> Result<Self, LoadError> {
        let source = Source::open(source, &Device::Cpu)?;
        let spec = source.spec(None).and_then(|spec| {
            source.check(&source.plan(&spec))?;
            Ok(spec)
        });
        let mut summary = Self {
            spec,
            tensors: Vec::new(),
            parameters: 0,
            file_bytes: 0,
            memory_bytes: 0,
        };
        match &source {
            Source::Gguf(file) => {
                for (name, info) in file.tensors() {
                    let quantized = match info.dtype {
                        TensorType::Supported(dtype) => dtype.block_size() > 1,
                        TensorType::Other(_) => true,
                    };
                    let dtype = info.dtype.to_string();
                    summary.add(name, dtype, &info.shape, info.bytes(), quantized);
                }
            }
            Source::Safetensors(_, checkpoint) => {
                for (name, entry) in checkpoint.entries() {
                    let float = matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
                    let dtype = format!("{:?}", entry.dtype);
                    summary.add(name, dtype, &entry.shape, entry.bytes(), !float);
                }
            }
        }
        summary.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(summary)
    }

    /// How many tensors there are of each type.
    pub fn types(&self) -> BTreeMap<&str, usize> {
        let mut types = BTreeMap::new();
        for tensor in &self.tensors {
            *types.entry(tensor.dtype.as_str()).or_default() += 1;
        }
        types
    }

    fn add(&mut self, name: &str, dtype: String, shape: &[usize], bytes: usize, as_it_is: bool) {
        let elements: usize = shape.iter().product();
        self.parameters += elements;
        self.file_bytes += bytes;
        self.memory_bytes += if as_it_is { bytes } else { 4 * elements };
        self.tensors.push(TensorSummary {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        });
    }
}
