//! Quantization: of a matrix as it is loaded, and of whole models into GGUF files that llama.cpp
//! reads, too.
//!
//! A conversion (`encoder`, `decoder`, `gguf`) says what the file will hold; the rules say in which
//! types; then tensor by tensor is read, encoded and written, so that about one is in memory.

mod conversion;
mod decoder;
mod encode;
mod encoder;
mod error;
mod gguf;
mod imatrix;
mod pre_tokenizer;
mod rules;
mod types;
mod vocabulary;

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;

use super::config_json::{MAX_CONFIG_BYTES, read_json};
use super::gguf::{GgufWriter, MetadataValue, TensorHeader};
use super::source::Source;
use conversion::{Conversion, Converted, Origin, Unruled};
use encode::{heeds_importance, relative_error};
use imatrix::Importance;
use rules::{Rules, matches};
use types::file_type;

pub(super) use encode::encode;
pub use error::QuantizeError;
pub use rules::Keep;
pub use types::{fitting, type_name, type_named, type_names};

/// The version of ggml's quantized formats.
const QUANTIZATION_VERSION: u32 = 2;

/// How to quantize a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// The type that most matrices get.
    pub dtype: GgmlDType,
    /// Those that get another; the first that matches counts.
    pub keep: Vec<Keep>,
    /// An importance matrix of llama.cpp's.
    pub importance: Option<PathBuf>,
}

/// What became of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedTensor {
    /// Its name in the output.
    pub name: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The type it had.
    pub from: String,
    /// The type it has.
    pub to: GgmlDType,
    /// Bytes in the output.
    pub bytes: usize,
    /// Root mean square of the change, relative to that of the values.
    pub error: f64,
    /// Whether it was encoded by importance.
    pub by_importance: bool,
}

/// What became of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeReport {
    /// Its tensors, in the order of the output.
    pub tensors: Vec<QuantizedTensor>,
    /// Bytes of all tensors of the input.
    pub input_bytes: usize,
    /// Bytes of the output file.
    pub output_bytes: usize,
    /// What else there is to know.
    pub notes: Vec<String>,
}

impl QuantizeReport {
    /// Values of all tensors.
    pub fn parameters(&self) -> usize {
        let elements = self
            .tensors
            .iter()
            .map(|tensor| tensor.shape.iter().product::<usize>());
        elements.sum()
    }

    /// Bits that a value takes, on the average over all tensors.
    pub fn bits_per_weight(&self) -> f64 {
        let bytes: usize = self.tensors.iter().map(|tensor| tensor.bytes).sum();
        8.0 * bytes as f64 / self.parameters().max(1) as f64
    }
}

/// Writes the model of `input`, a folder with a safetensors checkpoint or a GGUF file, to the GGUF
/// file `output`. `progress` hears of each tensor that is written, and how many there are.
///
/// # Errors
/// [`QuantizeError`] says what is wrong with which file; `output` is then as it was before.
pub fn quantize_model(
    input: &Path,
    output: &Path,
    options: &QuantizeOptions,
    mut progress: impl FnMut(&QuantizedTensor, usize),
) -> Result<QuantizeReport, QuantizeError> {
    if let (Ok(input), Ok(output)) = (input.canonicalize(), output.canonicalize())
        && input == output
    {
        return Err(QuantizeError::Same(output));
    }
    let source = Source::open(input)?;
    let mut conversion = match &source {
        Source::Gguf(file) => gguf::convert(&source, file)?,
        Source::Safetensors(dir, _) => {
            let config = read_json(&dir.join("config.json"), MAX_CONFIG_BYTES)?;
            let model_type = config.get("model_type").and_then(|value| value.as_str());
            match model_type {
                Some("bert" | "roberta" | "xlm-roberta" | "camembert" | "distilbert") => {
                    encoder::convert(dir, &source, &config)?
                }
                _ => decoder::convert(dir, &source, &config)?,
            }
        }
    };
    let importance = options
        .importance
        .as_deref()
        .map(Importance::read)
        .transpose()?;
    add_general(&mut conversion, options, importance.as_ref());
    let types = choose_types(&conversion, options, importance.is_some())?;

    let headers: Vec<TensorHeader> = conversion
        .tensors
        .iter()
        .zip(&types)
        .map(|(tensor, &dtype)| TensorHeader {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype,
        })
        .collect();
    let write_error = |source| QuantizeError::Write {
        path: output.to_owned(),
        source,
    };
    let mut writer =
        GgufWriter::create(output, &conversion.metadata, &headers).map_err(write_error)?;
    let mut report = QuantizeReport {
        tensors: Vec::with_capacity(types.len()),
        input_bytes: source.bytes(),
        output_bytes: 0,
        notes: std::mem::take(&mut conversion.notes),
    };
    let importance = importance.as_ref();
    let mut unknown = 0;
    for (tensor, &dtype) in conversion.tensors.iter().zip(&types) {
        let weights = match (importance, options.importance.as_deref()) {
            (Some(importance), Some(path)) if heeds_importance(dtype) => {
                let weights = importance.of(&tensor.name, tensor.row());
                weights.map_err(|reason| QuantizeError::Importance {
                    path: path.to_owned(),
                    reason,
                })?
            }
            _ => None,
        };
        unknown +=
            usize::from(importance.is_some() && heeds_importance(dtype) && weights.is_none());
        let encoded = encode_tensor(tensor, &source, dtype, weights)?;
        writer.write(encoded.bytes(&source)).map_err(write_error)?;
        let written = QuantizedTensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            from: tensor.from.clone(),
            to: dtype,
            bytes: encoded.bytes(&source).len(),
            error: encoded.error(),
            by_importance: weights.is_some(),
        };
        progress(&written, types.len());
        report.tensors.push(written);
    }
    if unknown > 0 {
        let note = format!("the importance matrix says nothing of {unknown} tensors");
        report.notes.push(note);
    }
    report.output_bytes = writer.finish().map_err(write_error)?;
    Ok(report)
}

/// What the file says of itself.
fn add_general(
    conversion: &mut Conversion,
    options: &QuantizeOptions,
    importance: Option<&Importance>,
) {
    let mut values = Vec::new();
    if let Some(kind) = file_type(options.dtype) {
        values.push(("general.file_type".to_owned(), MetadataValue::U32(kind)));
    }
    values.push((
        "general.quantization_version".to_owned(),
        MetadataValue::U32(QUANTIZATION_VERSION),
    ));
    if let (Some(importance), Some(path)) = (importance, &options.importance) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        values.push((
            "quantize.imatrix.file".to_owned(),
            MetadataValue::Text(name.into_owned()),
        ));
        let entries = MetadataValue::U32(importance.len() as u32);
        values.push(("quantize.imatrix.entries_count".to_owned(), entries));
    }
    // Behind the other general keys, which come first.
    let is_general = |(key, _): &(String, _)| key.starts_with("general.");
    let at = conversion
        .metadata
        .iter()
        .position(|value| !is_general(value));
    let at = at.unwrap_or(conversion.metadata.len());
    conversion.metadata.splice(at..at, values);
}

/// The type that each tensor will have.
fn choose_types(
    conversion: &Conversion,
    options: &QuantizeOptions,
    has_importance: bool,
) -> Result<Vec<GgmlDType>, QuantizeError> {
    let tensors = &conversion.tensors;
    let rules = Rules {
        target: options.dtype,
        keep: &options.keep,
        layers: conversion.layers,
        heads_per_kv: conversion.heads_per_kv,
        tied: !tensors.iter().any(|tensor| tensor.name == "output.weight"),
        has_importance,
    };
    for keep in &options.keep {
        let kept =
            |tensor: &Converted| tensor.shape.len() == 2 && matches(&keep.pattern, &tensor.name);
        if !tensors.iter().any(kept) {
            return Err(QuantizeError::NothingKept(keep.pattern.clone()));
        }
    }
    let types = tensors.iter().map(|tensor| {
        let chosen = rules.choose(&tensor.name, &tensor.shape)?;
        Ok(chosen.unwrap_or(match tensor.unruled {
            Unruled::F32 => GgmlDType::F32,
            Unruled::Copied(dtype) => dtype,
        }))
    });
    types.collect()
}

/// A tensor as it will be written.
enum Encoded {
    /// As it is in the input, by its name there.
    Copied(String),
    New {
        bytes: Vec<u8>,
        error: f64,
    },
}

impl Encoded {
    fn bytes<'a>(&'a self, source: &'a Source) -> &'a [u8] {
        match (self, source) {
            (Self::New { bytes, .. }, _) => bytes,
            (Self::Copied(name), Source::Gguf(file)) => file.tensor_bytes(name).unwrap_or_default(),
            (Self::Copied(_), Source::Safetensors(..)) => &[],
        }
    }

    fn error(&self) -> f64 {
        match self {
            Self::Copied(_) => 0.0,
            Self::New { error, .. } => *error,
        }
    }
}

fn encode_tensor(
    tensor: &Converted,
    source: &Source,
    dtype: GgmlDType,
    importance: Option<&[f32]>,
) -> Result<Encoded, QuantizeError> {
    // Encoded anew, it would not become better.
    if let (Unruled::Copied(from), Origin::File { name, .. }) = (tensor.unruled, &tensor.origin)
        && from == dtype
    {
        return Ok(Encoded::Copied(name.clone()));
    }
    let values = tensor.values(source)?;
    let row = tensor.row();
    let bytes = encode(&values, row, dtype, importance)?;
    let error = relative_error(&values, row, dtype, &bytes)?;
    Ok(Encoded::New { bytes, error })
}

impl Converted {
    /// Values of a row.
    fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}
