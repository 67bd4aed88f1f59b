//! Weights that are no numbers: a version that answers none is not served; where one row of a batch
//! meets them, it fails alone.

use ferry::api::proto::ferry::v1::EmbedResponse;
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status};

use super::{
    requests::{EMBED, continuing, copy_of, generator, poison, poisoned, rows_of},
    support::{Running, add_version, metric, models_of, write_manifest},
};

/// The token whose vector is no number.
const POISON: u32 = 7;

fn failed_rows(answer: &EmbedResponse) -> Vec<bool> {
    answer.rows.iter().map(|row| row.error.is_some()).collect()
}

#[tokio::test]
async fn a_version_whose_weights_are_not_numbers_is_not_served_and_the_old_one_is() {
    let models = models_of(&[EMBED]);
    write_manifest(
        models.path(),
        EMBED,
        "task = \"embed\"\n[versions]\nserve = [1]\n",
    );
    let bad = poisoned(EMBED, "embeddings.LayerNorm.weight", None);
    add_version(models.path(), EMBED, 2, bad.path());
    let running = Running::serving(models, |_| {}).await;
    let models = running.server.repository().clone();
    let loaded = tokio::task::spawn_blocking(move || models.load(EMBED, Some(2))).await;
    let error = loaded.unwrap().unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
    let status = running.server.repository().status_of(EMBED).unwrap();
    let states: Vec<_> = status
        .versions
        .iter()
        .map(|version| version.state)
        .collect();
    assert_eq!(states, ["ready", "failed"]);
    let answer = running.typed().embed(rows_of(&[vec![1, 2]])).await.unwrap();
    assert_eq!(failed_rows(answer.get_ref()), [false]);
    assert_eq!(running.http("/health/ready").await.0, 200);
}

#[tokio::test]
async fn a_row_that_meets_a_weight_that_is_not_a_number_fails_alone_in_every_precision() {
    let bad = poisoned(
        EMBED,
        "embeddings.word_embeddings.weight",
        Some(POISON as usize),
    );
    let good: Vec<Vec<u32>> = (10..20).map(|token| vec![token; 9]).collect();
    let mut rows = good.clone();
    rows.insert(4, vec![11, POISON, 12]);
    for how in [
        "compute = \"f32\"",
        "compute = \"bf16\"",
        "compute = \"int8\"",
    ] {
        let models = tempfile::tempdir().unwrap();
        add_version(models.path(), EMBED, 1, bad.path());
        write_manifest(models.path(), EMBED, &format!("task = \"embed\"\n{how}\n"));
        let running = Running::serving(models, |_| {}).await;
        let alone = running.typed().embed(rows_of(&good)).await.unwrap();
        let among = running.typed().embed(rows_of(&rows)).await.unwrap();
        let (alone, mut among) = (alone.into_inner(), among.into_inner());
        let failed = among.rows.remove(4);
        let error = failed
            .error
            .unwrap_or_else(|| panic!("{how}: it was answered"));
        assert_eq!(error.code, Code::Internal as i32, "{how}");
        assert!(error.message.contains("not finite"), "{how}: {error:?}");
        assert_eq!(failed_rows(&among), [false; 10], "{how}");
        // What the neighbours get is what they get without it.
        for (row, same) in among.rows.iter().zip(&alone.rows) {
            assert_eq!(row.embedding, same.embedding, "{how}");
        }
        let again = running.typed().embed(rows_of(&good)).await.unwrap();
        assert_eq!(failed_rows(again.get_ref()), [false; 10], "{how}");
    }
}

async fn generate(running: &Running, ids: &[u32]) -> Result<Vec<u32>, Status> {
    let answer = running.typed().generate(continuing(ids, 12)).await?;
    let mut stream = answer.into_inner();
    let mut tokens = Vec::new();
    while let Some(message) = stream.message().await? {
        tokens.extend(message.tokens.iter().map(|token| token.id));
    }
    Ok(tokens)
}

/// A copy of the tiny Llama whose output layer has weights of its own: a token that is poisoned where it
/// comes in is none where it goes out.
fn untied() -> TempDir {
    let copy = copy_of("decoders/llama");
    let path = copy.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut described: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut data = bytes[8 + header..].to_vec();
    let mut output = described["model.embed_tokens.weight"].clone();
    let offset = |at: usize| output["data_offsets"][at].as_u64().unwrap() as usize;
    let table = data[offset(0)..offset(1)].to_vec();
    output["data_offsets"] = json!([data.len(), data.len() + table.len()]);
    data.extend(table);
    described["lm_head.weight"] = output;
    let mut header = serde_json::to_vec(&described).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(&path, [&length[..], &header, &data].concat()).unwrap();

    let path = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["tie_word_embeddings"] = json!(false);
    std::fs::write(&path, config.to_string()).unwrap();
    copy
}

#[tokio::test]
async fn a_sequence_that_meets_a_weight_that_is_not_a_number_ends_alone_and_leaves_no_trace() {
    let bad = untied();
    let weights = bad.path().join("model.safetensors");
    poison(&weights, "model.embed_tokens.weight", Some(POISON as usize));
    // Few blocks, so that they are soon used again.
    let manifest = "[generate]\nblock_size = 8\nmax_running = 2\n";
    let running = generator(bad.path(), manifest).await;
    let good: Vec<u32> = (20..45).collect();
    let before = generate(&running, &good).await.unwrap();
    assert_eq!(before.len(), 12);
    let poison = [20, 21, POISON, 22, 23, 24, 25, 26, 27, 28, 29, 30];
    for _ in 0..3 {
        let (failed, beside) = tokio::join!(generate(&running, &poison), generate(&running, &good));
        let error = failed.unwrap_err();
        assert_eq!(error.code(), Code::Internal, "{error}");
        assert_eq!(beside.unwrap(), before);
    }
    // What it wrote into the cache harms nobody who gets its blocks.
    for start in 10..40 {
        let prompt: Vec<u32> = (start..start + 30).collect();
        assert_eq!(generate(&running, &prompt).await.unwrap().len(), 12);
    }
    assert_eq!(generate(&running, &good).await.unwrap(), before);
    assert_eq!(metric(&running, "ferry_sequences").await, 0);
    assert_eq!(
        metric(&running, "ferry_cache_blocks{state=\"used\"}").await,
        0
    );
}

#[tokio::test]
async fn a_generating_version_whose_weights_are_not_numbers_is_not_served() {
    let bad = poisoned("decoders/llama", "model.norm.weight", None);
    let running = generator(bad.path(), "").await;
    let status = running.server.repository().status_of("llama").unwrap();
    let version = &status.versions[0];
    assert_eq!(version.state, "failed");
    assert!(version.reason.contains("not finite"), "{}", version.reason);
    let mut request = continuing(&[1], 1);
    request.model = "llama".to_owned();
    let error = running.typed().generate(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}
