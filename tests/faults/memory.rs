//! Memory that is not there at a load, which is refused before it begins.

use std::{
    io::{Seek as _, Write as _},
    path::Path,
    process::Command,
};

use ferry::api::proto::{
    ferry::v1::inference_client::InferenceClient,
    inference::{
        RepositoryIndexRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
    },
};
use serde_json::{Value, json};

use super::{
    process::{FERRY, Served, start, start_by},
    requests::{EMBED, copy_of, embed},
    support::{add_version, models_of, write_manifest},
};

/// Bytes of address space that a process has taken.
fn address_space(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

/// Gives a copy of the tiny BERT a vocabulary of so many tokens, in a file that takes no room on disk.
fn grow(version: &Path, vocabulary: u64) {
    const TABLE: &str = "embeddings.word_embeddings.weight";
    let path = version.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let described: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let (mut grown, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in described.as_object().unwrap() {
        if name == TABLE || name == "__metadata__" {
            continue;
        }
        let offset = |at: usize| tensor["data_offsets"][at].as_u64().unwrap() as usize;
        let begin = data.len();
        data.extend_from_slice(&bytes[8 + header..][offset(0)..offset(1)]);
        let mut tensor = tensor.clone();
        tensor["data_offsets"] = json!([begin, data.len()]);
        grown.insert(name.clone(), tensor);
    }
    let hidden = described[TABLE]["shape"][1].as_u64().unwrap();
    let (begin, bytes) = (data.len() as u64, vocabulary * hidden * 4);
    let table = json!({
        "dtype": "F32", "shape": [vocabulary, hidden], "data_offsets": [begin, begin + bytes]
    });
    grown.insert(TABLE.to_owned(), table);
    let mut header = serde_json::to_vec(&grown).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(&header).unwrap();
    file.write_all(&data).unwrap();
    let end = file.stream_position().unwrap();
    file.set_len(end + bytes).unwrap();

    let path = version.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["vocab_size"] = json!(vocabulary);
    std::fs::write(&path, config.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_larger_than_the_address_space_is_refused_and_the_others_serve() {
    let models = models_of(&[EMBED]);
    let grown = copy_of(EMBED);
    // A GiB of weights.
    grow(grown.path(), 8 << 20);
    let (mut child, _, _log) = start(models.path().to_str().unwrap(), &[]);
    let taken = address_space(child.id());
    child.kill().unwrap();
    child.wait().unwrap();

    add_version(models.path(), "grown", 1, grown.path());
    write_manifest(models.path(), "grown", "task = \"embed\"\n");
    let mut command = Command::new("sh");
    let limit_kib = (taken + (384 << 20)) >> 10;
    command.args([
        "-c",
        &format!("ulimit -v {limit_kib}; exec \"$0\" \"$@\""),
        FERRY,
    ]);
    let Served {
        mut child, grpc, ..
    } = start_by(command, models.path().to_str().unwrap(), &[]);
    let url = format!("http://{grpc}");
    let mut open = GrpcInferenceServiceClient::connect(url.clone())
        .await
        .unwrap();
    let index = open
        .repository_index(RepositoryIndexRequest::default())
        .await;
    let index = index.unwrap().into_inner().models;
    let grown = index.iter().find(|model| model.name == "grown").unwrap();
    assert!(
        grown.reason.contains("takes about 1024 MiB")
            || grown.reason.contains("Cannot allocate memory"),
        "{}",
        grown.reason
    );
    let mut client = InferenceClient::connect(url).await.unwrap();
    assert_eq!(
        client
            .embed(embed(2, 8))
            .await
            .unwrap()
            .into_inner()
            .rows
            .len(),
        2
    );
    child.kill().unwrap();
    child.wait().unwrap();
}
