//! What a model directory holds, from its config and headers alone: for `ferry inspect`.

use std::path::Path;

use candle_core::Device;
use safetensors::Dtype;

use super::config_json::{MAX_CONFIG_BYTES, read_json};
use super::error::LoadError;
use super::spec::EncoderSpec;
use super::weights::Checkpoint;

/// A directory's contents; no weight is read.
#[derive(Debug)]
pub struct ModelSummary {
    /// `model_type` of the config, or "unknown".
    pub model_type: String,
    /// `architectures` of the config.
    pub architectures: Vec<String>,
    /// The encoder that it describes, or why it is none that Ferry runs.
    pub spec: Result<EncoderSpec, LoadError>,
    /// All tensors, by name.
    pub tensors: Vec<TensorSummary>,
    /// Floating-point values in all tensors.
    pub parameters: usize,
    /// Bytes of all tensors in the files.
    pub file_bytes: usize,
    /// Bytes that the weights would take when loaded, as f32. Activations come on top.
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
    /// Reads `config.json` and the checkpoint's headers in `dir`.
    ///
    /// # Errors
    /// If a file is missing or damaged. A model that is merely not supported is no error; see
    /// [`ModelSummary::spec`].
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let config = read_json(&dir.join("config.json"), MAX_CONFIG_BYTES)?;
        let checkpoint = Checkpoint::open(dir, &Device::Cpu)?;
        let mut tensors: Vec<TensorSummary> = checkpoint
            .entries()
            .iter()
            .map(|(name, entry)| TensorSummary {
                name: name.clone(),
                dtype: format!("{:?}", entry.dtype),
                shape: entry.shape.clone(),
                bytes: entry.bytes(),
            })
            .collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let parameters = checkpoint
            .entries()
            .values()
            .filter(|entry| is_float(entry.dtype))
            .map(super::weights::TensorEntry::elements)
            .sum();
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
            file_bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
            tensors,
            parameters,
            memory_bytes: parameters * size_of::<f32>(),
        })
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
        assert_eq!(summary.tensors.len(), tensors.len());
        assert_eq!(summary.tensors[0].name, "classifier.bias");
        assert_eq!(summary.tensors[1].shape, [3, HIDDEN]);
        assert_eq!(summary.file_bytes, 4 * summary.parameters + 560);
        assert!(summary.spec.is_ok_and(|spec| spec.layers == 2));

        let mut config = bert_config();
        config["model_type"] = "llama".into();
        write_config(dir.path(), &config);
        let error = ModelSummary::read(dir.path())?.spec.expect_err("llama");
        assert!(error.to_string().contains("llama"), "{error}");
        Ok(())
    }
}
