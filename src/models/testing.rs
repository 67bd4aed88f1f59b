//! Small random checkpoints for unit tests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// A directory that goes away with the value.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> std::io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ferry-test-{}-{unique}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Tensors by name: type, shape, little-endian bytes.
pub(crate) type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub(crate) fn write_safetensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a valid tensor");
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).expect("the file is written");
}

pub(crate) fn write_config(dir: &Path, config: &Value) {
    std::fs::write(dir.join("config.json"), config.to_string()).expect("the file is written");
}

/// Reproducible values in ±0.5, as f32 bytes.
pub(crate) fn random_f32(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes()
        })
        .collect()
}

pub(crate) const HIDDEN: usize = 24;

/// A two-layer BERT with three labels, heads of 12, a pooler and a classifier.
pub(crate) fn bert_config() -> Value {
    json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"],
        "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 40, "vocab_size": 50, "max_position_embeddings": 70,
        "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "id2label": {"0": "a", "1": "b", "2": "c"}
    })
}

/// The tensors of [`bert_config`], with `prefix` before those of the backbone.
pub(crate) fn bert_tensors(prefix: &str) -> Tensors {
    let h = HIDDEN;
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut linear = |name: String, out, inputs| {
        shapes.push((format!("{name}.weight"), vec![out, inputs]));
        shapes.push((format!("{name}.bias"), vec![out]));
    };
    linear("classifier".to_owned(), 3, h);
    linear(format!("{prefix}pooler.dense"), h, h);
    for i in 0..2 {
        let layer = format!("{prefix}encoder.layer.{i}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            linear(format!("{layer}.attention.{part}"), h, h);
        }
        linear(format!("{layer}.intermediate.dense"), 40, h);
        linear(format!("{layer}.output.dense"), h, 40);
    }
    for i in 0..2 {
        for part in ["attention.output", "output"] {
            for leaf in ["weight", "bias"] {
                let name = format!("{prefix}encoder.layer.{i}.{part}.LayerNorm.{leaf}");
                shapes.push((name, vec![h]));
            }
        }
    }
    for (name, shape) in [
        ("word_embeddings.weight", vec![50, h]),
        ("position_embeddings.weight", vec![70, h]),
        ("token_type_embeddings.weight", vec![2, h]),
        ("LayerNorm.weight", vec![h]),
        ("LayerNorm.bias", vec![h]),
    ] {
        shapes.push((format!("{prefix}embeddings.{name}"), shape));
    }
    let seeded = shapes.into_iter().zip(1..);
    seeded
        .map(|((name, shape), seed)| {
            let bytes = random_f32(shape.iter().product(), seed);
            (name, (Dtype::F32, shape, bytes))
        })
        .collect()
}
