//! What is served, and what is said of what is not.

use std::fs;

use ferry::{
    api::proto::inference::{RepositoryIndexRequest, repository_index_response::ModelIndex},
    config::ServerConfig,
    server::{Server, StartError},
};

use super::support::{Running, add_version, fixture, models_of, write_manifest};

async fn index(running: &Running) -> Vec<ModelIndex> {
    let answer = running
        .open()
        .repository_index(RepositoryIndexRequest::default())
        .await;
    answer.unwrap().into_inner().models
}

#[tokio::test]
async fn the_newest_version_is_served() {
    let models = models_of(&["tiny-bert-embed"]);
    add_version(
        models.path(),
        "tiny-bert-embed",
        10,
        &fixture("tiny-bert-embed-f16"),
    );
    add_version(
        models.path(),
        "tiny-bert-embed",
        9,
        &fixture("tiny-bert-embed"),
    );
    let running = Running::serving(models, |_| {}).await;
    assert_eq!(index(&running).await[0].version, "10");
}

#[tokio::test]
async fn a_model_that_does_not_load_says_why_and_the_others_serve() {
    let models = models_of(&["tiny-bert-embed"]);
    for name in ["empty", "broken", "wrong", "typo", "cut"] {
        fs::create_dir_all(models.path().join(name).join("1")).unwrap();
    }
    let file = |path: &str| models.path().join(path);
    fs::write(file("broken/1/config.json"), "{").unwrap();
    write_manifest(models.path(), "broken", "task = \"embed\"");
    write_manifest(models.path(), "typo", "task = \"embed\"\nmax_row = 3\n");
    write_manifest(models.path(), "unfetched", "task = \"embed\"");
    write_manifest(models.path(), "wrong", "task = \"rerank\"");
    write_manifest(models.path(), "cut", "task = \"embed\"");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        for model in ["wrong", "cut"] {
            let target = file(&format!("{model}/1/{name}"));
            fs::copy(fixture("tiny-bert-classify").join(name), target).unwrap();
        }
    }
    let weights = file("cut/1/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();

    let running = Running::serving(models, |_| {}).await;
    let models = index(&running).await;
    let reason = |name: &str| {
        let model = models.iter().find(|model| model.name == name).unwrap();
        assert_eq!(model.state, "UNAVAILABLE", "{name}");
        model.reason.clone()
    };
    assert!(reason("empty").contains("config.json"));
    assert!(reason("broken").contains("config.json"));
    assert!(reason("typo").contains("line 2") && reason("typo").contains("max_row"));
    assert!(reason("unfetched").contains("fetch"));
    assert!(reason("wrong").contains("one label"));
    assert!(reason("cut").contains("model.safetensors"));
    let ready = models.iter().find(|model| model.name == "tiny-bert-embed");
    assert_eq!(ready.unwrap().state, "READY");
    assert_eq!(running.http("/health/ready").await.0, 200);
}

/// A normalizer of a library that takes it as it is and panics when it is used: its trie has one unit,
/// and the first letter leads out of it.
const PANICKING: &str = r#"{"type":"Precompiled","precompiled_charsmap":"BAAAAAAAAAA="}"#;

#[tokio::test]
async fn a_model_whose_files_make_a_library_panic_fails_alone() {
    let models = models_of(&["tiny-bert-embed"]);
    let folder = models.path().join("a-poisoned/1");
    fs::create_dir_all(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("tiny-bert-embed").join(name), folder.join(name)).unwrap();
    }
    let tokenizer = fs::read(fixture("tiny-bert-embed").join("tokenizer.json")).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&tokenizer).unwrap();
    tokenizer["normalizer"] = serde_json::from_str(PANICKING).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    write_manifest(models.path(), "a-poisoned", "task = \"embed\"\n");
    // Has a text tokenized while it loads.
    let canary = serde_json::json!({
        "format": 1, "task": "embed", "recorded_by": "a test",
        "tolerance": {"min_cosine": 0.5, "max_difference": 9.0, "min_equal_tokens": 0.5},
        "entries": [{"input": {"text": "a"}, "output": {"embedding": vec![0.5; 32]}}],
    });
    fs::write(folder.join("canary.json"), canary.to_string()).unwrap();

    let running = Running::serving(models, |_| {}).await;
    let models = index(&running).await;
    let poisoned = models.iter().find(|model| model.name == "a-poisoned");
    let poisoned = poisoned.unwrap();
    assert_eq!(poisoned.state, "UNAVAILABLE");
    assert!(poisoned.reason.contains("panic"), "{}", poisoned.reason);
    assert_eq!(running.http("/health/ready").await.0, 200);
    let sound = models.iter().find(|model| model.name == "tiny-bert-embed");
    assert_eq!(sound.unwrap().state, "READY");
}

#[tokio::test]
async fn a_broken_new_version_leaves_the_old_one_serving() {
    use ferry::api::proto::inference::{ModelReadyRequest, RepositoryModelLoadRequest};
    let running = Running::with(&["tiny-bert-embed"]).await;
    let broken = tempfile::tempdir().unwrap();
    fs::write(broken.path().join("config.json"), "{}").unwrap();
    add_version(running.models.path(), "tiny-bert-embed", 2, broken.path());
    let mut open = running.open();
    let load = RepositoryModelLoadRequest {
        model_name: "tiny-bert-embed".to_owned(),
        ..RepositoryModelLoadRequest::default()
    };
    let error = open.repository_model_load(load).await.unwrap_err();
    assert!(
        error.message().contains("config.json"),
        "{}",
        error.message()
    );
    let ready = ModelReadyRequest {
        name: "tiny-bert-embed".to_owned(),
        version: "1".to_owned(),
    };
    assert!(open.model_ready(ready).await.unwrap().into_inner().ready);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = ServerConfig::default();
    let models = models_of(&["tiny-bert-embed"]);
    config.models.directory = models.path().to_owned();
    config.http.port = 0;
    config.grpc.host = "127.0.0.1".parse().unwrap();
    config.grpc.port = taken.local_addr().unwrap().port();
    let error = Server::start(config).await.unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }));
    assert!(error.to_string().contains("grpc.port"), "{error}");
}

#[tokio::test]
async fn a_model_that_is_named_and_not_there_is_an_error_at_start() {
    let mut config = ServerConfig::default();
    let models = models_of(&["tiny-bert-embed"]);
    config.models.directory = models.path().to_owned();
    config.models.serve = vec!["nobody".to_owned()];
    let error = Server::start(config).await.unwrap_err().to_string();
    assert!(error.contains("'nobody'"), "{error}");
}
