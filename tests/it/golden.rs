//! Our models against `transformers` and `sentence-transformers`: equal token ids, outputs within
//! the stated tolerance, alone and packed. The expectations are in tests/golden, made by its
//! `make_golden.py`.

use std::path::{Path, PathBuf};

use candle_core::Device;
use ferry::{
    config::{ModelManifest, Task, Truncation},
    models::{EncoderModel, LoadOptions, PackedBatch, RowOutput},
    ops::Compute,
    repository::{encoder_text, head_of},
    text::{EncodeOptions, EncodedRow, RowInput, TextEncoder},
};
use serde_json::Value;

use super::support::{cosine, fixture, root};

/// Largest difference of a logit. The golden outputs themselves move by 1.1e-5 in f64.
const LOGIT_TOLERANCE: f32 = 1e-4;
/// Least cosine of an embedding.
const LEAST_COSINE: f64 = 0.9999;
/// Largest difference of a value between a packed batch and one row at a time. On the CPU no sum
/// depends on the batch, so there is none.
const PACKED_TOLERANCE: f32 = 0.0;

/// Golden files of other tests.
const OTHERS: [&str; 7] = [
    "texts",
    "chat_templates",
    "calibration",
    "comparison",
    "drift",
    "explain",
    "gradients",
];

struct Golden {
    name: String,
    file: Value,
    dir: PathBuf,
    manifest: ModelManifest,
}

fn read(path: &Path) -> Golden {
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (dir, manifest) = if name.starts_with("tiny-") {
        let dir = fixture(&name);
        (dir.clone(), ModelManifest::infer(&dir).unwrap())
    } else {
        let folder = root().join("models").join(&name);
        let dir = folder.join("1");
        assert!(
            dir.join("model.safetensors").is_file(),
            "{name} is not there; `make test` or `python3 models/fetch.py encoders` brings it"
        );
        (
            dir,
            ModelManifest::read(&folder.join("model.toml")).unwrap(),
        )
    };
    Golden {
        name,
        file,
        dir,
        manifest,
    }
}

fn all() -> Vec<Golden> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(root().join("tests/golden"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .filter(|path| {
            path.file_stem()
                .is_some_and(|stem| !OTHERS.contains(&stem.to_str().unwrap()))
        })
        .collect();
    paths.sort();
    assert!(paths.len() >= 14, "the golden files are missing");
    paths.iter().map(|path| read(path)).collect()
}

impl Golden {
    fn load(&self) -> (EncoderModel, TextEncoder) {
        let head = head_of(&self.manifest).unwrap();
        let model = EncoderModel::load(
            &self.dir,
            &LoadOptions {
                head,
                quantize: None,
                compute: Compute::F32,
            },
            &Device::Cpu,
        )
        .unwrap();
        let spec = model.spec();
        let limit = self.file["max_tokens"].as_u64().unwrap() as usize;
        let text = encoder_text(&self.dir, spec, limit, Truncation::Right);
        (model, text.unwrap())
    }

    fn cases(&self) -> &[Value] {
        self.file["cases"].as_array().unwrap()
    }

    fn encode(&self, text: &TextEncoder) -> Vec<EncodedRow> {
        let encode = |case: &Value| {
            let first = case["text"].as_str().unwrap().to_owned();
            let input = match case["text_pair"].as_str() {
                Some(second) => RowInput::Pair(first, second.to_owned()),
                None => RowInput::Text(first),
            };
            text.encode(&input, EncodeOptions::default()).unwrap()
        };
        self.cases().iter().map(encode).collect()
    }
}

fn run(model: &EncoderModel, rows: &[EncodedRow]) -> Vec<RowOutput> {
    let mut batch = PackedBatch::new();
    for row in rows {
        batch.push_row(&row.ids, Some(&row.type_ids));
    }
    model.forward(&batch).unwrap()
}

fn values(output: &RowOutput) -> &[f32] {
    let (RowOutput::Embedding(values)
    | RowOutput::Logits(values)
    | RowOutput::TokenLogits { values, .. }) = output;
    values
}

fn numbers(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap() as f32],
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, f32::max)
}

#[test]
fn token_ids_equal_those_of_transformers() {
    for golden in all() {
        let (_, text) = golden.load();
        for (case, row) in golden.cases().iter().zip(golden.encode(&text)) {
            let expected: Vec<u32> = case["ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap() as u32)
                .collect();
            assert_eq!(row.ids, expected, "{} on {}", golden.name, case["text"]);
        }
    }
}

#[test]
fn outputs_agree_with_transformers() {
    for golden in all() {
        let (model, text) = golden.load();
        let rows = golden.encode(&text);
        let (mut worst, mut least) = (0.0_f32, 1.0_f64);
        for (case, row) in golden.cases().iter().zip(&rows) {
            let output = &run(&model, std::slice::from_ref(row))[0];
            if golden.manifest.task == Task::Embed {
                let expected = numbers(&case["embedding"]);
                least = least.min(cosine(values(output), &expected));
            } else {
                let key = if golden.manifest.task == Task::Tokens {
                    "token_logits"
                } else {
                    "logits"
                };
                let expected = numbers(&case[key]);
                worst = worst.max(largest_difference(values(output), &expected));
            }
        }
        println!("{}: cosine ≥ {least:.7}, logits ± {worst:.1e}", golden.name);
        assert!(least >= LEAST_COSINE, "{}: cosine {least}", golden.name);
        assert!(worst <= LOGIT_TOLERANCE, "{}: logits {worst}", golden.name);
    }
}

#[test]
fn a_row_gets_the_same_output_alone_and_packed_among_others() {
    for golden in all() {
        let (model, text) = golden.load();
        let rows = golden.encode(&text);
        let packed = run(&model, &rows);
        assert_eq!(packed.len(), rows.len());
        for (row, together) in rows.iter().zip(&packed) {
            let alone = &run(&model, std::slice::from_ref(row))[0];
            let difference = largest_difference(values(alone), values(together));
            assert!(
                difference <= PACKED_TOLERANCE,
                "{}: {difference} on a row of {} tokens",
                golden.name,
                row.ids.len()
            );
        }
    }
}
