//! Headers of GGUF files, and what is read of them without any weight.

use std::path::Path;

use candle_core::{Device, quantized::GgmlDType};
use ferry::{
    models::{
        DecoderSummary, ModelSummary,
        gguf::GgufFile,
        quantize::{QuantizeOptions, quantize_model},
    },
    repository::{infer_manifest, read_gguf_text},
};

use super::fixtures::{fixture, scratch};

pub fn run(input: &[u8]) {
    let folder = scratch();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, input).expect("a file");
    let _ = infer_manifest(folder.path());
    let _ = ModelSummary::read(&path);
    let _ = DecoderSummary::read(&path);
    let _ = read_gguf_text(&path);
    let Ok(file) = GgufFile::open(&path) else {
        return;
    };
    let data: usize = file
        .tensors_in_order()
        .iter()
        .map(|(name, info)| {
            let bytes = file.tensor_bytes(name).map_or(0, <[u8]>::len);
            assert_eq!(bytes, info.bytes(), "{name}");
            if let Ok(tensor) = file.tensor(name, &Device::Cpu) {
                assert_eq!(tensor.shape().dims(), info.shape, "{name}");
            }
            bytes
        })
        .sum();
    assert!(data <= input.len(), "tensors overlap");
    let metadata = file.metadata();
    for key in metadata.keys() {
        let _ = (metadata.u64(key), metadata.f32(key), metadata.bool(key));
        let _ = (metadata.text(key), metadata.texts(key));
        let _ = (metadata.i32s(key), metadata.f32s(key), metadata.bools(key));
    }
    let copied: usize = file.copied_metadata().map(|(_, value)| value.len()).sum();
    assert!(copied <= input.len());
}

/// Half of these small files at the most; metadata with the tokenizer is most of that.
pub fn header_len(input: &[u8]) -> usize {
    input.len() / 2
}

/// A model of the fixtures as a GGUF file with quantized weights.
pub fn quantized(model: &str) -> Vec<u8> {
    let folder = scratch();
    let output = folder.path().join("model.gguf");
    write_quantized(&fixture(model), &output);
    std::fs::read(output).expect("a file")
}

fn write_quantized(input: &Path, output: &Path) {
    let options = QuantizeOptions {
        dtype: GgmlDType::Q8_0,
        keep: Vec::new(),
        importance: None,
    };
    quantize_model(input, output, &options, |_, _| {}).expect("a sound model");
}

pub fn seeds() -> Vec<Vec<u8>> {
    vec![quantized("tiny-bert-classify"), quantized("decoders/llama")]
}
