//! A GGUF file once more, with other types.

use super::super::decoder::DecoderSpec;
use super::super::error::LoadError;
use super::super::gguf::{GgufFile, Keys, MetadataValue};
use super::super::source::Source;
use super::super::spec::EncoderSpec;
use super::super::tensor_plan::TensorPlan;
use super::conversion::{Change, Conversion, Converted, Unruled};
use super::error::QuantizeError;

pub(super) fn convert(source: &Source, file: &GgufFile) -> Result<Conversion, QuantizeError> {
    let (layers, heads_per_kv) = if EncoderSpec::is_in(file) {
        (EncoderSpec::from_gguf(file)?.layers, 1)
    } else {
        shape(file)?
    };
    let mut tensors = Vec::new();
    for (name, info) in file.tensors_in_order() {
        let dtype = info.dtype.supported(name)?;
        let plan = TensorPlan::new(name.to_owned(), &info.shape);
        tensors.push(Converted {
            unruled: Unruled::Copied(dtype),
            ..Converted::of(source, &plan, &plan, Change::None)
        });
    }
    let mut metadata = Vec::new();
    for (key, value) in file.copied_metadata() {
        // The writer has an alignment of its own, and says what is new itself.
        let replaced = [
            "general.alignment",
            "general.file_type",
            "general.quantization_version",
        ];
        if !replaced.contains(&key) && !key.starts_with("quantize.imatrix.") {
            metadata.push((key.to_owned(), MetadataValue::Copied(value.to_vec())));
        }
    }
    let quantized = |tensor: &&Converted| !matches!(&*tensor.from, "f32" | "f16" | "bf16");
    let count = tensors.iter().filter(quantized).count();
    let notes = if count > 0 {
        vec![format!(
            "{count} tensors are quantized already: what that lost stays lost, and the error is \
             what comes on top"
        )]
    } else {
        Vec::new()
    };
    Ok(Conversion {
        metadata,
        tensors,
        layers,
        heads_per_kv,
        notes,
    })
}

/// Layers, and query heads that share a head of keys and values. A decoder that Ferry does not run
/// is quantized all the same.
fn shape(file: &GgufFile) -> Result<(usize, usize), LoadError> {
    if let Ok(spec) = DecoderSpec::from_gguf(file, None) {
        return Ok((spec.layers, spec.heads / spec.kv_heads));
    }
    let metadata = file.metadata();
    let Some(architecture) = metadata.text("general.architecture")? else {
        return Err(metadata.unsupported("general.architecture", "a model's"));
    };
    let keys = Keys::new(metadata, architecture);
    Ok((keys.required("block_count", 1..=1 << 16)?, 1))
}
