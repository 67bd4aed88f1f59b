//! The requests that faults happen to.

use std::path::Path;

use ferry::api::proto::ferry::v1::{
    EmbedRequest, GenerateRequest, GenerationOptions, ModelOptions, Sampling, TokenIds,
    generate_request::Prompt,
};
use tempfile::TempDir;

use super::support::{Running, add_version, fixture, models_of, write_manifest};

/// The model that embeds.
pub const EMBED: &str = "tiny-bert-embed";

/// Tokens of the longest row that it takes.
pub const LONGEST: usize = 64;

/// A server over it with these lines in its manifest, for requests of many rows.
pub async fn embedder(manifest: &str) -> Running {
    let models = models_of(&[EMBED]);
    write_manifest(
        models.path(),
        EMBED,
        &format!("task = \"embed\"\n{manifest}"),
    );
    Running::serving(models, |config| config.limits.max_rows = 65_536).await
}

/// Lines of a manifest that let all rows of a huge request leave in one batch, of whose cost nothing is
/// known: it runs for long, even where the code was optimised.
pub const ONE_HUGE_BATCH: &str = "[batching]\nmax_rows = 65536\nmax_tokens = 4194304\n\
                                  max_waiting_rows = 65536\n[warmup]\nrounds = 0\n";

/// Rows of a request that runs for a good while under it, and not for ever where code is not optimised.
pub const HUGE: usize = if cfg!(debug_assertions) { 2048 } else { 16_384 };

/// So many rows of so many tokens.
pub fn embed(rows: usize, tokens: usize) -> EmbedRequest {
    rows_of(&vec![vec![5; tokens]; rows])
}

/// These rows of token ids.
pub fn rows_of(rows: &[Vec<u32>]) -> EmbedRequest {
    EmbedRequest {
        options: Some(ModelOptions {
            model: EMBED.to_owned(),
            ..ModelOptions::default()
        }),
        token_ids: rows
            .iter()
            .map(|ids| TokenIds { ids: ids.clone() })
            .collect(),
        ..EmbedRequest::default()
    }
}

/// A server over the tiny Llama of these files, with these lines in its manifest.
pub async fn generator(files: &Path, manifest: &str) -> Running {
    let models = tempfile::tempdir().unwrap();
    add_version(models.path(), "llama", 1, files);
    let manifest = format!("task = \"generate\"\n{manifest}");
    write_manifest(models.path(), "llama", &manifest);
    Running::serving(models, |_| {}).await
}

/// So many tokens after these, always the same.
pub fn continuing(ids: &[u32], tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids: ids.to_vec() })),
        options: Some(GenerationOptions {
            max_tokens: Some(tokens),
            ignore_eos: true,
            sampling: Some(Sampling {
                temperature: Some(0.0),
                ..Sampling::default()
            }),
            ..GenerationOptions::default()
        }),
        ..GenerateRequest::default()
    }
}

/// A copy of a fixture's files.
pub fn copy_of(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(fixture(name)).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    copy
}

/// A copy of a fixture in which the values of a tensor are no numbers: those of one row, or all.
pub fn poisoned(name: &str, tensor: &str, row: Option<usize>) -> TempDir {
    let copy = copy_of(name);
    poison(&copy.path().join("model.safetensors"), tensor, row);
    copy
}

/// Makes the values of a tensor no numbers: those of one row, or all.
pub fn poison(weights: &Path, tensor: &str, row: Option<usize>) {
    let mut bytes = std::fs::read(weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let described: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let described = &described[tensor];
    let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
    let offsets = &described["data_offsets"];
    let (begin, end) = (number(&offsets[0]), number(&offsets[1]));
    let rows = number(&described["shape"][0]);
    let row_bytes = (end - begin) / rows;
    let range = match row {
        Some(row) => begin + row * row_bytes..begin + (row + 1) * row_bytes,
        None => begin..end,
    };
    let nan: &[u8] = match described["dtype"].as_str().unwrap() {
        "F32" => &[0, 0, 0xc0, 0x7f],
        "F16" => &[0, 0x7e],
        other => panic!("{tensor} is {other}"),
    };
    for value in bytes[8 + header..][range].chunks_exact_mut(nan.len()) {
        value.copy_from_slice(nan);
    }
    std::fs::write(weights, bytes).unwrap();
}
