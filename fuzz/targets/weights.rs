//! Whole models whose files lie: what serving them would do, up to a forward pass. It gives an error
//! or a model, and takes no more memory than a small multiple of the file.

use std::path::Path;

use candle_core::Device;
use ferry::{
    config::Truncation,
    models::{
        DecoderBatch, DecoderModel, DecoderOptions, DecoderRow, DecoderSummary, EncoderModel,
        LoadOptions, ModelSummary, PackedBatch,
    },
    ops::{CacheType, Compute},
    repository::{encoder_text, head_of, infer_manifest, read_gguf_text},
};

use super::{
    bytes::Bytes,
    fixtures::{read, scratch, with_file},
    gguf::quantized,
};

/// What the tokenizer, the thread pool's buffers and the like may take whatever the file is; and for
/// every byte of it: a weight is read, laid out anew, and, if it was in 16 bits, twice as long.
pub const MEMORY: (usize, usize) = (16 << 20, 8);

const ENCODER: &str = "tiny-bert-classify";
const DECODER: &str = "decoders/llama";

/// A GGUF file.
pub fn run_gguf(input: &[u8]) {
    let folder = scratch();
    std::fs::write(folder.path().join("model.gguf"), input).expect("a file");
    let _ = serve(folder.path());
}

/// A safetensors file, beside the configuration that its names fit: an encoder's or a decoder's.
pub fn run_safetensors(input: &[u8]) {
    let decoder = b"model.layers.0";
    let is_decoder = input.windows(decoder.len()).any(|name| name == decoder);
    let model = if is_decoder { DECODER } else { ENCODER };
    let folder = with_file(model, "model.safetensors", input);
    let _ = serve(folder.path());
}

/// Which model's `config.json` this is to be, and the file.
pub fn run_config(input: &[u8]) {
    let mut input = Bytes::new(input);
    let model = CONFIGURED[input.below(CONFIGURED.len())];
    let folder = with_file(model, "config.json", input.rest());
    let _ = serve(folder.path());
}

/// One of each family.
const CONFIGURED: [&str; 10] = [
    "tiny-bert-classify",
    "tiny-distilbert-tokens",
    "tiny-roberta-embed",
    "tiny-xlm-roberta-rerank",
    "decoders/llama",
    "decoders/llama-scaled",
    "decoders/gemma2",
    "decoders/gemma3-text-scaled",
    "decoders/phi3-longrope",
    "decoders/qwen3",
];

/// Does with a folder what serving it would: says whether it loaded, or why not.
pub fn serve(folder: &Path) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let manifest = infer_manifest(folder).map_err(|error| text(&error))?;
    let manifest = manifest.ok_or("nothing says what it is")?;
    let gguf = folder.join("model.gguf");
    let source = if gguf.is_file() {
        gguf.as_path()
    } else {
        folder
    };
    let _ = ModelSummary::read(source);
    if let Ok(head) = head_of(&manifest) {
        let options = LoadOptions {
            head,
            quantize: None,
            compute: Compute::F32,
        };
        let model =
            EncoderModel::load(source, &options, &Device::Cpu).map_err(|error| text(&error))?;
        let max_tokens = model.spec().max_tokens();
        let encoder = encoder_text(folder, model.spec(), max_tokens, Truncation::Right);
        encoder.map_err(|error| text(&error))?;
        let mut batch = PackedBatch::new();
        batch.push_row(&[0], None);
        model.forward(&batch).map_err(|error| text(&error))?;
        return Ok(());
    }
    let _ = DecoderSummary::read(source);
    if gguf.is_file() {
        read_gguf_text(&gguf).map_err(|error| text(&error))?;
    }
    let options = DecoderOptions::default();
    let model = DecoderModel::load(source, &options, &Device::Cpu).map_err(|error| text(&error))?;
    let cache = model
        .new_cache(1, 8, CacheType::F16)
        .map_err(|error| text(&error))?;
    let batch = DecoderBatch {
        tokens: vec![0],
        rows: vec![DecoderRow {
            first_position: 0,
            tokens: 1,
            blocks: vec![0],
        }],
        logit_tokens: vec![0],
    };
    model
        .forward(&batch, &cache)
        .map_err(|error| text(&error))?;
    Ok(())
}

/// The bytes before a safetensors file's data.
pub fn safetensors_header_len(input: &[u8]) -> usize {
    let length = input
        .first_chunk()
        .map_or(0, |&bytes| u64::from_le_bytes(bytes));
    usize::try_from(length.saturating_add(8)).map_or(input.len(), |length| length.min(input.len()))
}

pub fn gguf_seeds() -> Vec<Vec<u8>> {
    vec![quantized(ENCODER), quantized(DECODER)]
}

pub fn safetensors_seeds() -> Vec<Vec<u8>> {
    [ENCODER, DECODER]
        .map(|model| read(&format!("tests/fixtures/{model}/model.safetensors")))
        .to_vec()
}

pub fn config_seeds() -> Vec<Vec<u8>> {
    let seed = |(at, model): (usize, &&str)| {
        let mut seed = (at as u16).to_be_bytes().to_vec();
        seed.extend(read(&format!("tests/fixtures/{model}/config.json")));
        seed
    };
    CONFIGURED.iter().enumerate().map(seed).collect()
}
