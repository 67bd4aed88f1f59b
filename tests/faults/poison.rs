//! Weights that are no numbers: a version that has any is not served.

use ferry::api::proto::ferry::v1::EmbedResponse;
use tonic::Code;

use super::{
    requests::{EMBED, continuing, generator, poisoned, rows_of},
    support::{Running, add_version, models_of, write_manifest},
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
async fn a_single_weight_that_is_not_a_number_is_found_at_the_load_in_every_precision() {
    let word_embeddings = "embeddings.word_embeddings.weight";
    let bad = poisoned(EMBED, word_embeddings, Some(POISON as usize));
    for how in [
        "compute = \"f32\"",
        "compute = \"bf16\"",
        "compute = \"int8\"",
        "quantize = \"q8_0\"",
    ] {
        let models = tempfile::tempdir().unwrap();
        add_version(models.path(), EMBED, 1, bad.path());
        write_manifest(models.path(), EMBED, &format!("task = \"embed\"\n{how}\n"));
        let running = Running::serving(models, |_| {}).await;
        let status = running.server.repository().status_of(EMBED).unwrap();
        let version = &status.versions[0];
        assert_eq!(version.state, "failed", "{how}");
        for part in [word_embeddings, "not finite"] {
            assert!(version.reason.contains(part), "{how}: {}", version.reason);
        }
    }
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
