//! What a model's files hold, from their headers alone: for `ferry inspect`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use safetensors::Dtype;

use super::config_json::{MAX_CONFIG_BYTES, read_json};
use super::error::LoadError;
use super::gguf::TensorType;
use super::quantize::fitting;
use super::source::Source;
use super::spec::EncoderSpec;

/// An encoder's files; no weight is read.
#[derive(Debug)]
pub struct ModelSummary {
    /// `model_type` of the config, or "unknown".
    pub model_type: String,
    /// `architectures` of the config.
    pub architectures: Vec<String>,
    /// The encoder that it describes, or why it is none that Ferry runs.
    pub spec: Result<EncoderSpec, LoadError>,
    /// What the files hold.
    pub contents: FileContents,
}

/// The tensors of a model's files.
#[derive(Debug, Default)]
pub struct FileContents {
    /// All tensors, by name.
    pub tensors: Vec<TensorSummary>,
    /// Values in all tensors, integers such as position ids left out.
    pub parameters: usize,
    /// Bytes of all tensors in the files; those of types that are not supported count as none.
    pub file_bytes: usize,
    /// Bytes that the weights would take when loaded as they are: quantized ones as in the file,
    /// others as f32. What runs takes memory beside.
    pub memory_bytes: usize,
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSummary {
    /// Name in the file.
    pub name: String,
    /// Element type, as the header spells it.
    pub dtype: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: usize,
}

impl ModelSummary {
    /// Reads the headers of what [`EncoderModel::load`](super::EncoderModel::load) takes.
    ///
    /// # Errors
    /// If a file is missing or damaged. A model that is merely not supported is no error; see
    /// [`ModelSummary::spec`].
    pub fn read(source: &Path) -> Result<Self, LoadError> {
        let source = Source::open(source)?;
        let contents = FileContents::of(&source);
        let dir = match &source {
            Source::Safetensors(dir, _) => dir,
            Source::Gguf(file) => {
                let spec = EncoderSpec::from_gguf(file);
                let known = spec.as_ref().ok();
                return Ok(Self {
                    model_type: known.map_or("unknown", |spec| &spec.model_type).to_owned(),
                    architectures: known.map_or_else(Vec::new, |spec| spec.architectures.clone()),
                    spec,
                    contents,
                });
            }
        };
        let config = read_json(&dir.join("config.json"), MAX_CONFIG_BYTES)?;
        let architectures = config.get("architectures").and_then(|list| list.as_array());
        Ok(Self {
            model_type: config
                .get("model_type")
                .and_then(|value| value.as_str())
                .unwrap_or("unknown")
                .to_owned(),
            architectures: architectures
                .into_iter()
                .flatten()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect(),
            spec: EncoderSpec::from_json(&config),
            contents,
        })
    }
}

impl FileContents {
    /// How many tensors there are of each type.
    pub fn types(&self) -> BTreeMap<&str, usize> {
        let mut types = BTreeMap::new();
        for tensor in &self.tensors {
            *types.entry(tensor.dtype.as_str()).or_default() += 1;
        }
        types
    }

    /// About how many bytes the weights would take if matrices in f32, f16 and bf16 were quantized
    /// as they are loaded; [`FileContents::memory_bytes`] if they are not.
    pub fn memory_bytes_as(&self, quantize: Option<GgmlDType>) -> usize {
        let saved = self.tensors.iter().map(|tensor| {
            let &[rows, row] = tensor.shape.as_slice() else {
                return 0;
            };
            let dense = matches!(&*tensor.dtype, "F64" | "F32" | "F16" | "BF16");
            match quantize.and_then(|dtype| fitting(dtype, row)) {
                Some(dtype) if dense => {
                    rows * (4 * row - row / dtype.block_size() * dtype.type_size())
                }
                _ => 0,
            }
        });
        self.memory_bytes - saved.sum::<usize>()
    }

    pub(super) fn of(source: &Source) -> Self {
        let mut contents = Self::default();
        match source {
            Source::Gguf(file) => {
                for (name, info) in file.tensors() {
                    let kept = match info.dtype {
                        TensorType::Supported(dtype) => dtype.block_size() > 1,
                        TensorType::Other(_) => true,
                    };
                    let dtype = info.dtype.to_string();
                    contents.add(name, dtype, &info.shape, info.bytes(), true, kept);
                }
            }
            Source::Safetensors(_, checkpoint) => {
                for (name, entry) in checkpoint.entries() {
                    let float = is_float(entry.dtype);
                    let dtype = format!("{:?}", entry.dtype);
                    contents.add(name, dtype, &entry.shape, entry.bytes(), float, !float);
                }
            }
        }
        contents.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        contents
    }

    /// `counted`: it is a weight. `kept`: it is as in the file when loaded, not f32.
    fn add(
        &mut self,
        name: &str,
        dtype: String,
        shape: &[usize],
        bytes: usize,
        counted: bool,
        kept: bool,
    ) {
        let elements: usize = shape.iter().product();
        self.file_bytes += bytes;
        if counted {
            self.parameters += elements;
            self.memory_bytes += if kept { bytes } else { 4 * elements };
        }
        self.tensors.push(TensorSummary {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        });
    }
}

/// Position ids and other integers are not weights.
fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        HIDDEN, TempDir, bert_config, bert_tensors, write_config, write_safetensors,
    };
    use super::*;

    #[test]
    fn a_summary_lists_tensors_and_says_what_is_not_supported()
    -> Result<(), Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        let mut tensors = bert_tensors("");
        let ids = (Dtype::I64, vec![1, 70], vec![0; 560]);
        tensors.insert("embeddings.position_ids".to_owned(), ids);
        write_safetensors(&dir.path().join("model.safetensors"), &tensors);
        write_config(dir.path(), &bert_config());
        let summary = ModelSummary::read(dir.path())?;
        assert_eq!(summary.contents.tensors.len(), tensors.len());
        assert_eq!(summary.contents.tensors[0].name, "classifier.bias");
        assert_eq!(summary.contents.tensors[1].shape, [3, HIDDEN]);
        assert_eq!(
            summary.contents.file_bytes,
            4 * summary.contents.parameters + 560
        );
        assert!(summary.spec.is_ok_and(|spec| spec.layers == 2));
        let contents = &summary.contents;
        assert_eq!(contents.memory_bytes_as(None), contents.memory_bytes);
        // Rows of 24 and 40 fit no block but f16's.
        let quantized = contents.memory_bytes_as(Some(GgmlDType::Q8_0));
        assert_eq!(quantized, contents.memory_bytes);
        let half = contents.memory_bytes_as(Some(GgmlDType::F16));
        assert!(2 * half < contents.memory_bytes + contents.memory_bytes / 10);

        let mut config = bert_config();
        config["model_type"] = "llama".into();
        write_config(dir.path(), &config);
        let error = ModelSummary::read(dir.path())?.spec.expect_err("llama");
        assert!(error.to_string().contains("llama"), "{error}");
        Ok(())
    }
}
