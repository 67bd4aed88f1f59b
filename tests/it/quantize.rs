//! `ferry quantize`: what is written is read again, says nearly what it said before, and says in
//! Ferry what it says in llama.cpp. What llama.cpp says is in `tests/golden/quantized`, made by
//! `make_quantized.py`, with the hash of the file that it read.

use std::path::{Path, PathBuf};

use candle_core::{Device, quantized::GgmlDType};
use ferry::{
    api::proto::ferry::v1::{EmbedRequest, ModelOptions},
    config::{ModelManifest, Quantize, Truncation},
    models::{
        DecoderModel, DecoderOptions, EncoderModel, LoadOptions, PackedBatch, RowOutput,
        gguf::GgufFile,
        quantize::{Keep, QuantizeOptions, QuantizeReport, quantize_model, type_named},
    },
    ops::{CacheType, Compute},
    repository::{encoder_text, head_of, infer_manifest, load_encoder, read_gguf_text},
    text::{EncodeOptions, RowInput, SpecialTokens},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{
    decoders::{Decoder, argmax},
    support::{Running, add_version, cosine, fixture, root, write_manifest},
};

/// A lead of the first over the second choice, in logits, that two roundings of the activations
/// don't turn around; see `llama_cpp.rs`.
const CLEAR: f64 = 1.0;

/// Tokens of each golden text that are generated again.
const TOKENS: usize = 16;

/// A folder with a quantized model.
struct Written {
    folder: TempDir,
    report: QuantizeReport,
}

impl Written {
    fn of(input: &Path, dtype: GgmlDType) -> Self {
        Self::with(
            input,
            &QuantizeOptions {
                dtype,
                keep: Vec::new(),
                importance: None,
            },
        )
    }

    fn with(input: &Path, options: &QuantizeOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("model.gguf");
        let report = quantize_model(input, &output, options, |_, _| {}).unwrap();
        Self { folder, report }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    fn encoder(&self) -> EncoderModel {
        let manifest = infer_manifest(self.folder.path()).unwrap().unwrap();
        load_encoder(self.folder.path(), &manifest).unwrap()
    }
}

fn golden(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(root().join("tests/golden").join(path)).unwrap()).unwrap()
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn values(output: &RowOutput) -> &[f32] {
    let (RowOutput::Embedding(values)
    | RowOutput::Logits(values)
    | RowOutput::TokenLogits { values, .. }) = output;
    values
}

fn run(model: &EncoderModel, rows: &[(Vec<u32>, Vec<u32>)]) -> Vec<Vec<f32>> {
    let mut batch = PackedBatch::new();
    for (ids, types) in rows {
        batch.push_row(ids, Some(types));
    }
    let outputs = model.forward(&batch).unwrap();
    outputs
        .iter()
        .map(|output| values(output).to_vec())
        .collect()
}

/// The rows of a golden file of an encoder.
fn rows(golden: &Value) -> Vec<(Vec<u32>, Vec<u32>)> {
    let cases = golden["cases"].as_array().unwrap();
    let row = |case: &Value| {
        let ids: Vec<u32> = read(&case["ids"]);
        let types: Option<Vec<u32>> = read(&case["type_ids"]);
        let types = types.unwrap_or_else(|| vec![0; ids.len()]);
        (ids, types)
    };
    cases.iter().map(row).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max)
}

const ENCODERS: [&str; 14] = [
    "tiny-bert-classify",
    "tiny-bert-embed",
    "tiny-bert-embed-f16",
    "tiny-bert-multilabel",
    "tiny-bert-rerank",
    "tiny-bert-tokens",
    "tiny-distilbert-classify",
    "tiny-distilbert-embed",
    "tiny-distilbert-tokens",
    "tiny-roberta-classify",
    "tiny-roberta-classify-bf16",
    "tiny-roberta-embed",
    "tiny-xlm-roberta-embed",
    "tiny-xlm-roberta-rerank",
];

const DECODERS: [&str; 10] = [
    "gemma2",
    "gemma3-text",
    "gemma3-text-scaled",
    "llama",
    "llama-scaled",
    "mistral",
    "phi3",
    "phi3-longrope",
    "qwen2",
    "qwen3",
];

#[test]
fn an_encoder_written_in_f32_answers_as_its_checkpoint_does() {
    for name in ENCODERS {
        let dir = fixture(name);
        let written = Written::of(&dir, GgmlDType::F32);
        let before = ModelManifest::infer(&dir).unwrap();
        let after = infer_manifest(written.folder.path()).unwrap().unwrap();
        assert_eq!(after, before, "{name}");
        let original = load_encoder(&dir, &before).unwrap();
        let encoder = written.encoder();
        assert_eq!(encoder.labels(), original.labels(), "{name}");
        assert!(encoder.memory_bytes() <= original.memory_bytes(), "{name}");
        assert_eq!(
            encoder.spec().max_tokens(),
            original.spec().max_tokens(),
            "{name}"
        );

        let golden = golden(&format!("{name}.json"));
        let rows = rows(&golden);
        assert_eq!(run(&encoder, &rows), run(&original, &rows), "{name}");
        let limit = golden["max_tokens"].as_u64().unwrap() as usize;
        let folder = written.folder.path();
        let text = encoder_text(folder, encoder.spec(), limit, Truncation::Right).unwrap();
        for (case, (ids, _)) in golden["cases"].as_array().unwrap().iter().zip(&rows) {
            let first = case["text"].as_str().unwrap().to_owned();
            let input = match case["text_pair"].as_str() {
                Some(second) => RowInput::Pair(first, second.to_owned()),
                None => RowInput::Text(first),
            };
            let row = text.encode(&input, EncodeOptions::default()).unwrap();
            assert_eq!(row.ids, *ids, "{name}");
        }
    }
}

#[test]
fn a_decoder_written_in_f32_has_the_logits_of_its_checkpoint() {
    for name in DECODERS {
        let dir = fixture("decoders").join(name);
        let written = Written::of(&dir, GgmlDType::F32);
        let original = Decoder::load(&dir, 16, CacheType::F32);
        let decoder = Decoder::load(&written.file(), 16, CacheType::F32);
        for case in golden(&format!("decoders/{name}.json"))["cases"]
            .as_array()
            .unwrap()
        {
            // LongRoPE's cases with short factors are of another context.
            if case["logits"].is_null() || case["rope_factors"] == "short" {
                continue;
            }
            let ids: Vec<u32> = read(&case["ids"]);
            let expected = original.row(&ids, 0, 0).concat();
            let error = largest_difference(&decoder.row(&ids, 0, 0).concat(), &expected);
            // Rows of q and k lie in another order, and frequencies are divided by factors.
            assert!(error < 2e-5, "{name}: {error:e}");
        }
    }
}

#[test]
fn what_is_written_is_what_was_encoded() {
    let keep = Keep {
        pattern: "blk.1.ffn_up.weight".to_owned(),
        dtype: GgmlDType::F16,
    };
    let options = QuantizeOptions {
        dtype: GgmlDType::Q4_0,
        keep: vec![keep],
        importance: None,
    };
    let dir = fixture("tiny-bert-classify");
    let whole = Written::of(&dir, GgmlDType::F32);
    let written = Written::with(&dir, &options);
    let (before, after) = (
        GgufFile::open(&whole.file()).unwrap(),
        GgufFile::open(&written.file()).unwrap(),
    );
    let dequantized = |file: &GgufFile, name: &str| -> Vec<f32> {
        let tensor = file.tensor(name, &Device::Cpu).unwrap();
        let tensor = tensor.dequantize(&Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(after.tensors().len(), written.report.tensors.len());
    for tensor in &written.report.tensors {
        let (was, is) = (
            dequantized(&before, &tensor.name),
            dequantized(&after, &tensor.name),
        );
        let square = |values: &mut dyn Iterator<Item = f32>| -> f64 {
            values.map(|value| f64::from(value).powi(2)).sum()
        };
        let changed = square(&mut was.iter().zip(&is).map(|(a, b)| a - b));
        let all = square(&mut was.iter().copied());
        let error = if all == 0.0 {
            0.0
        } else {
            (changed / all).sqrt()
        };
        assert!((error - tensor.error).abs() < 1e-9, "{tensor:?}");
        let expected = match tensor.name.as_str() {
            "blk.1.ffn_up.weight" => GgmlDType::F16,
            "token_embd.weight" => GgmlDType::Q8_0,
            name if name.contains("norm") || name.ends_with("bias") => GgmlDType::F32,
            "position_embd.weight" | "token_types.weight" | "cls.output.weight" => GgmlDType::F32,
            _ => GgmlDType::Q4_0,
        };
        assert_eq!(tensor.to, expected, "{}", tensor.name);
    }
    // The same once more, bit for bit: what it has in the type already is copied.
    let again = Written::with(&written.file(), &options);
    assert_eq!(
        std::fs::read(again.file()).unwrap(),
        std::fs::read(written.file()).unwrap()
    );
}

#[test]
fn a_row_of_a_quantized_encoder_gets_the_same_bits_alone_and_among_others() {
    for name in ENCODERS {
        let dir = fixture(name);
        let mut manifest = ModelManifest::infer(&dir).unwrap();
        manifest.quantize = Some(Quantize::Q8_0);
        let golden = golden(&format!("{name}.json"));
        let rows = rows(&golden);
        for encoder in [
            load_encoder(&dir, &manifest).unwrap(),
            Written::of(&dir, GgmlDType::Q4_0).encoder(),
        ] {
            let packed = run(&encoder, &rows);
            for (row, together) in rows.iter().zip(&packed) {
                let alone = run(&encoder, std::slice::from_ref(row));
                assert_eq!(alone[0], *together, "{name}");
            }
        }
    }
}

#[test]
fn encoders_in_8_bits_stay_close_to_f32() {
    for name in ENCODERS {
        let dir = fixture(name);
        let mut manifest = ModelManifest::infer(&dir).unwrap();
        let golden = golden(&format!("{name}.json"));
        let rows = rows(&golden);
        let exact_model = load_encoder(&dir, &manifest).unwrap();
        let exact = run(&exact_model, &rows);
        manifest.quantize = Some(Quantize::Q8_0);
        let on_load = load_encoder(&dir, &manifest).unwrap();
        assert!(
            on_load.memory_bytes() < exact_model.memory_bytes(),
            "{name}"
        );
        let written = Written::of(&dir, GgmlDType::Q8_0);
        for encoder in [&on_load, &written.encoder()] {
            let (mut least, mut worst, mut largest) = (1.0_f64, 0.0_f32, 0.0_f32);
            for (found, expected) in run(encoder, &rows).iter().zip(&exact) {
                least = least.min(cosine(found, expected));
                worst = worst.max(largest_difference(found, expected));
                largest = expected
                    .iter()
                    .fold(largest, |most, value| most.max(value.abs()));
            }
            println!("{name}: cosine ≥ {least:.5}, values ± {worst:.3} of {largest:.2}");
            // Random weights of 32 dimensions, where errors don't average out as in trained ones.
            // The cosine of a few logits says little, so those are held to their range.
            assert!(
                least > 0.98 || !name.ends_with("embed"),
                "{name}: cosine {least}"
            );
            assert!(worst < 0.3 * largest, "{name}: {worst} of {largest}");
        }
    }
}

#[test]
fn minilm_in_fewer_bits_keeps_its_vectors() {
    let dir = root().join("models/minilm/1");
    let golden = golden("minilm.json");
    let mut rows = rows(&golden);
    // Short ones: this is about weights, not lengths.
    let short: Vec<bool> = rows.iter().map(|(ids, _)| ids.len() <= 32).collect();
    let mut kept = short.iter();
    rows.retain(|_| *kept.next().unwrap());
    let expected: Vec<Vec<f32>> = golden["cases"]
        .as_array()
        .unwrap()
        .iter()
        .zip(&short)
        .filter(|(_, short)| **short)
        .map(|(case, _)| read(&case["embedding"]))
        .collect();
    // llama.cpp with q8_0: 0.9985 at the least, 0.9995 on the average; it rounds activations, too.
    for (quantize, name, least_allowed, mean_allowed) in [
        (Quantize::Q8_0, "q8_0", 0.997, 0.999),
        (Quantize::Q6K, "q6_k", 0.996, 0.998),
        (Quantize::Q4K, "q4_k", 0.94, 0.97),
    ] {
        let mut manifest = ModelManifest::infer(&dir).unwrap();
        manifest.quantize = Some(quantize);
        let on_load = load_encoder(&dir, &manifest).unwrap();
        let written = Written::of(&dir, type_named(name).unwrap());
        let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        for (how, encoder) in [("on load", &on_load), ("written", &written.encoder())] {
            let cosines: Vec<f64> = run(encoder, &rows)
                .iter()
                .zip(&expected)
                .map(|(found, expected)| cosine(found, expected))
                .collect();
            let least = cosines.iter().copied().fold(1.0, f64::min);
            let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
            println!(
                "{name} {how}: cosine ≥ {least:.5}, mean {mean:.5}, {:.1} MiB in memory",
                mebibytes(encoder.memory_bytes())
            );
            assert!(least >= least_allowed, "{name} {how}: {least}");
            assert!(mean >= mean_allowed, "{name} {how}: {mean}");
        }
        println!(
            "{name}: a file of {:.1} MiB",
            mebibytes(written.report.output_bytes)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quantized_gguf_is_served_alone_and_a_checkpoint_quantized_on_load_beside_it() {
    let written = Written::of(&fixture("tiny-bert-embed"), GgmlDType::Q8_0);
    let models = tempfile::tempdir().unwrap();
    add_version(models.path(), "exact", 1, &fixture("tiny-bert-embed"));
    add_version(models.path(), "written", 1, written.folder.path());
    add_version(models.path(), "on-load", 1, &fixture("tiny-bert-embed"));
    let manifest = "task = \"embed\"\nquantize = \"q8_0\"\n";
    write_manifest(models.path(), "on-load", manifest);
    let running = Running::serving(models, |_| {}).await;
    let mut vectors = Vec::new();
    for model in ["exact", "written", "on-load"] {
        let request = EmbedRequest {
            options: Some(ModelOptions {
                model: model.to_owned(),
                ..ModelOptions::default()
            }),
            texts: vec!["The ferry leaves when it is full.".to_owned()],
            ..EmbedRequest::default()
        };
        let answer = running.typed().embed(request).await.unwrap().into_inner();
        vectors.push(answer.rows[0].embedding.clone());
    }
    assert!(cosine(&vectors[0], &vectors[1]) > 0.995);
    assert_eq!(vectors[1], vectors[2]);
}

/// The golden files, and the GGUF file that each is of, written anew and proven to be the same.
fn with_llama_cpp(prefix: &[&str]) -> Vec<(Value, Written)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join("tests/golden/quantized")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !prefix.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let golden: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let input = root().join(golden["input"].as_str().unwrap());
        assert!(
            input.exists(),
            "{} is not there; `make test` or `python3 models/fetch.py` brings it",
            input.display()
        );
        let dtype = type_named(golden["type"].as_str().unwrap()).unwrap();
        let written = Written::of(&input, dtype);
        let hash = Sha256::digest(std::fs::read(written.file()).unwrap());
        let hash = format!("{hash:x}");
        assert_eq!(
            hash,
            golden["sha256"].as_str().unwrap(),
            "{name} is another file than llama.cpp read; run tests/golden/make_quantized.py"
        );
        found.push((golden, written));
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn tiny_decoders_have_the_greedy_tokens_that_they_have_in_llama_cpp() {
    for (golden, written) in with_llama_cpp(&["decoders-"]) {
        let name = golden["name"].as_str().unwrap();
        // Of llama.cpp's logits from transformers'; its cache is in f16.
        let error = golden["error"].as_f64().unwrap();
        assert!(error < 0.02, "{name}: {error}");
        let decoder = Decoder::load(&written.file(), 16, CacheType::F32);
        for case in golden["logits"].as_array().unwrap() {
            let (ids, expected): (Vec<u32>, Vec<u32>) = (read(&case["ids"]), read(&case["greedy"]));
            let mut next = decoder.row(&ids, 0, 0).pop().unwrap();
            let mut found = Vec::new();
            for position in ids.len()..ids.len() + expected.len() {
                found.push(argmax(&next));
                next = decoder.row(&[argmax(&next)], position, 0).remove(0);
            }
            assert_eq!(found, expected, "{name}");
        }
    }
}

#[test]
fn greedy_text_of_quantized_files_is_that_of_llama_cpp_but_for_near_ties() {
    for (golden, written) in with_llama_cpp(&["smollm2-", "gemma3-"]) {
        let name = golden["name"].as_str().unwrap();
        let decoder = Decoder::load(&written.file(), 64, CacheType::F16);
        let text = read_gguf_text(&written.file()).unwrap();
        // `FERRY_EVERY_PROMPT=1` for all of them, which takes minutes without optimization.
        let every = std::env::var_os("FERRY_EVERY_PROMPT").is_some();
        let cases = golden["prompts"].as_array().unwrap().iter();
        let cases: Vec<&Value> = cases.step_by(if every { 1 } else { 3 }).collect();
        let mut whole = 0;
        for &case in &cases {
            let ids: Vec<u32> = read(&case["ids"]);
            let mut expected: Vec<u32> = read(&case["greedy"]);
            expected.truncate(TOKENS);
            let margins: Vec<f64> = read(&case["margins"]);
            assert_eq!(
                text.encode(case["text"].as_str().unwrap(), true).unwrap(),
                ids
            );
            let mut next = decoder.row(&ids, 0, 0).pop().unwrap();
            let mut found: Vec<u32> = Vec::new();
            while found.len() < expected.len() {
                let token = argmax(&next);
                found.push(token);
                if expected[found.len() - 1] != token {
                    break;
                }
                next = decoder
                    .row(&[token], ids.len() + found.len() - 1, 0)
                    .remove(0);
            }
            if found == expected {
                whole += 1;
                let output = case["output"].as_str().unwrap().trim_start();
                let found = text.decode(&found, SpecialTokens::Skip);
                assert!(output.starts_with(found.trim_start()), "{name}: {found}");
                continue;
            }
            let lead = margins[found.len() - 1];
            println!(
                "{name}: {:?} differs at {}, lead {lead}",
                case["text"],
                found.len() - 1
            );
            assert!(lead < CLEAR, "{name}: {:?}, lead {lead}", case["text"]);
        }
        println!(
            "{name}: {whole} of {} texts are equal to the last token",
            cases.len()
        );
        assert!(2 * whole > cases.len(), "{name}: {whole}");
    }
}

#[test]
fn outputs_of_written_encoders_are_those_of_llama_cpp() {
    for (golden, written) in with_llama_cpp(&["minilm-", "tiny-"]) {
        let name = golden["name"].as_str().unwrap();
        let encoder = written.encoder();
        for row in golden["rows"].as_array().unwrap() {
            let Some(expected) = row["output"].as_array() else {
                continue;
            };
            let expected: Vec<f32> = expected.iter().map(read::<f32>).collect();
            let ids: Vec<u32> = read(&row["ids"]);
            let types = vec![0; ids.len()];
            let found = run(&encoder, &[(ids, types)]).remove(0);
            // llama.cpp's GELU is the approximation by tanh, through a table in f16; and in fewer
            // bits, two ways of rounding activations part.
            let cosine = cosine(&found, &expected);
            let allowed = if name.ends_with("f32") { 0.999 } else { 0.99 };
            assert!(cosine > allowed, "{name}: {cosine}");
        }
        if let Some(least) = golden["least_cosine"].as_f64() {
            let allowed = if name.contains("q4_k") { 0.97 } else { 0.999 };
            assert!(least >= allowed, "{name}: {least}");
        }
    }
}

#[test]
fn importance_changes_k_quants_and_a_wrong_matrix_is_refused() {
    let dir = root().join("models/paraphrase-l3/1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imatrix.dat");
    let write = |inputs: usize| {
        let name = "blk.0.ffn_down.weight";
        let mut bytes = Vec::from(1_i32.to_le_bytes());
        bytes.extend((name.len() as i32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(1_i32.to_le_bytes());
        bytes.extend((inputs as i32).to_le_bytes());
        bytes.extend((0..inputs).flat_map(|i| (1.0 + (i % 7) as f32).to_le_bytes()));
        std::fs::write(&path, bytes).unwrap();
    };
    let options = |importance| QuantizeOptions {
        dtype: GgmlDType::Q4K,
        keep: vec![Keep {
            pattern: "*ffn_down.weight".to_owned(),
            dtype: GgmlDType::Q4K,
        }],
        importance,
    };
    write(1536);
    let plain = Written::with(&dir, &options(None));
    let weighted = Written::with(&dir, &options(Some(path.clone())));
    let by_importance: Vec<_> = weighted
        .report
        .tensors
        .iter()
        .filter(|tensor| tensor.by_importance)
        .map(|tensor| tensor.name.as_str())
        .collect();
    assert_eq!(by_importance, ["blk.0.ffn_down.weight"]);
    let bytes = |written: &Written| {
        let file = GgufFile::open(&written.file()).unwrap();
        file.tensor_bytes("blk.0.ffn_down.weight").unwrap().to_vec()
    };
    assert_ne!(bytes(&plain), bytes(&weighted));

    write(1535);
    let output = folder.path().join("never.gguf");
    let error = quantize_model(&dir, &output, &options(Some(path)), |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("1535"), "{error}");
    assert!(!output.exists());
}

#[test]
fn what_can_not_be_done_is_refused_and_leaves_the_output_alone() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("model.gguf");
    std::fs::write(&output, b"before").unwrap();
    let refused = |input: &Path, keep: &[(&str, GgmlDType)], named: &str| {
        let keep = keep.iter().map(|(pattern, dtype)| Keep {
            pattern: (*pattern).to_owned(),
            dtype: *dtype,
        });
        let options = QuantizeOptions {
            dtype: GgmlDType::Q8_0,
            keep: keep.collect(),
            importance: None,
        };
        let error = quantize_model(input, &output, &options, |_, _| {}).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(std::fs::read(&output).unwrap(), b"before");
    };
    let bert = fixture("tiny-bert-embed");
    refused(&bert, &[("no.such.*", GgmlDType::F16)], "no.such.*");
    refused(&bert, &[("blk.*", GgmlDType::Q4K)], "256");
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), &[], "safetensors");
    refused(&output, &[], "overwrite");
    refused(Path::new("/nowhere"), &[], "nowhere");
}

#[test]
fn a_decoder_quantized_on_load_and_one_from_its_file_have_the_same_logits() {
    let dir = fixture("decoders/qwen2");
    let options = DecoderOptions {
        quantize: Some(GgmlDType::Q8_0),
        ..DecoderOptions::default()
    };
    let on_load = DecoderModel::load(&dir, &options, &Device::Cpu).unwrap();
    let written = Written::of(&dir, GgmlDType::Q8_0);
    let from_file =
        DecoderModel::load(&written.file(), &DecoderOptions::default(), &Device::Cpu).unwrap();
    assert_eq!(on_load.memory_bytes(), from_file.memory_bytes());
    let ids = [5, 17, 3, 40, 9];
    let logits = |model: DecoderModel| {
        let cache = model.new_cache(4, 16, CacheType::F32).unwrap();
        Decoder { model, cache }.row(&ids, 0, 0)
    };
    assert_eq!(logits(on_load), logits(from_file));
}

#[test]
fn a_wrong_head_of_a_gguf_file_is_refused_by_name() {
    let written = Written::of(&fixture("tiny-bert-embed"), GgmlDType::Q8_0);
    let mut manifest = infer_manifest(written.folder.path()).unwrap().unwrap();
    manifest.task = ferry::config::Task::Classify;
    let options = LoadOptions {
        head: head_of(&manifest).unwrap(),
        quantize: None,
        compute: Compute::F32,
    };
    let error = EncoderModel::load(&written.file(), &options, &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("cls"), "{error}");
}
