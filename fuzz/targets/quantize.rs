//! Importance matrices, in GGUF and in llama.cpp's older form, as `ferry quantize` takes them.

use candle_core::quantized::GgmlDType;
use ferry::models::quantize::{QuantizeOptions, quantize_model};

use super::{
    fixtures::{fixture, scratch},
    gguf::quantized,
};

pub fn run(input: &[u8]) {
    let folder = scratch();
    let importance = folder.path().join("imatrix");
    std::fs::write(&importance, input).expect("a file");
    let output = folder.path().join("model.gguf");
    let options = QuantizeOptions {
        dtype: GgmlDType::Q4_0,
        keep: Vec::new(),
        importance: Some(importance),
    };
    let done = quantize_model(&fixture("tiny-bert-embed"), &output, &options, |_, _| {});
    assert_eq!(
        done.is_ok(),
        output.exists(),
        "a file is whole or not there"
    );
}

/// Entries, each with its name, its calls and its values.
fn legacy(entries: &[(&str, u32, &[f32])]) -> Vec<u8> {
    let mut file = (entries.len() as u32).to_le_bytes().to_vec();
    for (name, calls, values) in entries {
        file.extend((name.len() as u32).to_le_bytes());
        file.extend(name.bytes());
        file.extend(calls.to_le_bytes());
        file.extend((values.len() as u32).to_le_bytes());
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    file
}

pub fn seeds() -> Vec<Vec<u8>> {
    let values = [0.5; 32];
    vec![
        legacy(&[
            ("blk.0.attn_q.weight", 3, &values),
            ("blk.1.ffn_up.weight", 1, &values),
        ]),
        // A GGUF file, though of another kind.
        quantized("tiny-bert-embed"),
    ]
}
