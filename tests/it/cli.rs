//! The commands of the binary.

use std::process::{Command, Output};

use super::support::{models_of, root};

pub fn ferry(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry"))
        .args(arguments)
        .current_dir(root())
        .env_remove("FERRY_MODELS")
        .output()
        .unwrap()
}

pub fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", refused(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn refused(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_printed_configuration_is_a_configuration() {
    let output = ferry(&["serve", "--grpc-port", "7", "--print-config"]);
    let config: ferry::config::ServerConfig = toml::from_str(&printed(&output)).unwrap();
    assert_eq!(config.grpc.port, 7);
}

#[test]
fn the_printed_configuration_has_no_secrets() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "[admin]\ntoken = \"secret-0123456789\"\n[request_log]\nhash_key = \"secret-1\"\n\
                [traces]\nendpoint = \"http://me:secret-2@collector:4317\"\n\
                [traces.headers]\nauthorization = \"secret-3\"\n";
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap();
    let shown = printed(&ferry(&["serve", "--config", path, "--print-config"]));
    assert!(!shown.contains("secret-"), "{shown}");
    assert_eq!(shown.matches("(hidden)").count(), 4, "{shown}");
    // What is printed is not taken for the secrets themselves.
    std::fs::write(file.path(), shown).unwrap();
    let again = ferry(&["serve", "--config", path, "--print-config"]);
    assert!(!again.status.success());
}

#[test]
fn a_command_whose_output_nobody_reads_ends_quietly() {
    for arguments in [
        &["key", "--tenant", "a"][..],
        &["serve", "--print-config"],
        &["inspect", "tests/fixtures/tiny-bert-embed"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_ferry"))
            .args(arguments)
            .current_dir(root())
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let said = refused(&output);
        assert_eq!(output.status.code(), Some(141), "{arguments:?}: {said}");
        assert!(
            !said.contains("panicked") && !said.contains("pipe"),
            "{said}"
        );
    }
}

#[test]
fn a_wrong_configuration_stops_the_start_with_its_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[grpc]\nport = 8001\nhots = \"::\"\n").unwrap();
    let output = ferry(&["serve", "--config", file.path().to_str().unwrap()]);
    assert!(!output.status.success());
    let error = refused(&output);
    assert!(
        error.contains("line 3") && error.contains("hots"),
        "{error}"
    );
}

#[test]
fn inspect_tells_what_a_model_is_made_of() {
    let models = models_of(&["tiny-bert-embed"]);
    let folder = models.path().to_str().unwrap();
    let output = ferry(&[
        "inspect",
        "tiny-bert-embed",
        "--models",
        folder,
        "--tensors",
    ]);
    let text = printed(&output);
    for part in [
        "BertModel",
        "embed",
        "embeddings.word_embeddings.weight",
        "F32",
        "MiB",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
    let output = ferry(&["inspect", "tiny-bert-embed", "--models", folder, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&printed(&output)).unwrap();
    assert_eq!(json["task"], "embed");
    let llama = super::support::fixture("decoders/llama");
    let text = printed(&ferry(&["inspect", llama.to_str().unwrap()]));
    for part in ["llama, 2 layers", "128", "bytes a token", "F32"] {
        assert!(text.contains(part), "{part} not in {text}");
    }
    let output = ferry(&["inspect", "nobody", "--models", folder]);
    assert!(refused(&output).contains("tiny-bert-embed"));
}

#[test]
fn serving_an_empty_folder_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().to_str().unwrap();
    let arguments = [
        "serve",
        "--models",
        models,
        "--grpc-port",
        "0",
        "--http-port",
        "0",
        "--admin-port",
        "0",
    ];
    let output = ferry(&arguments);
    assert!(!output.status.success());
    assert!(
        refused(&output).contains("models/fetch.py"),
        "{}",
        refused(&output)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_says_by_its_exit_code_how_a_server_is() {
    let running = super::support::Running::with(&["tiny-bert-embed"]).await;
    let http = running.server.http_address.to_string();
    let grpc = running.server.grpc_address.to_string();
    let port = running.server.http_address.port().to_string();
    for well in [
        &["health", "--http", &http][..],
        &["health", "--http", &port, "--live"],
        &["health", "--grpc", &grpc],
        &["health", "--grpc", &grpc, "--live"],
        &["health", "--grpc", &grpc, "--model", "tiny-bert-embed"],
    ] {
        assert_eq!(printed(&ferry(well)), "", "{well:?}");
    }
    let unknown = ferry(&["health", "--grpc", &grpc, "--model", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));

    // A server that loads, or goes down, answers and is not ready.
    let repository = running.server.repository();
    repository.unload("tiny-bert-embed", None).unwrap();
    let gone = ferry(&["health", "--grpc", &grpc, "--model", "tiny-bert-embed"]);
    assert_eq!(gone.status.code(), Some(1));
    running.server.shut_down().await;
    for nobody in [
        &["health", "--http", &http][..],
        &["health", "--grpc", &grpc],
    ] {
        let output = ferry(nobody);
        assert_eq!(output.status.code(), Some(1));
        assert!(refused(&output).contains("refused"), "{}", refused(&output));
    }
    // One that takes connections and never answers is not waited for.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    for option in ["--http", "--grpc"] {
        let output = ferry(&["health", option, &silent, "--timeout", "0.2"]);
        assert_eq!(output.status.code(), Some(1), "{}", refused(&output));
    }
}
