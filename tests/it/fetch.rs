//! `ferry fetch` against a stand-in for the Hugging Face Hub on this machine.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Output},
    sync::Arc,
};

use super::support::{fixture, write_manifest};

const REPO: &str = "someone/tiny";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Answers `GET /{repo}/resolve/{revision}/{file}` as the hub does: ranges, etag, commit.
fn stand_in(files: HashMap<String, Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let files = Arc::new(files);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (socket, files) = (socket.unwrap(), Arc::clone(&files));
            std::thread::spawn(move || answer(socket, &files));
        }
    });
    format!("http://{address}")
}

fn answer(mut socket: TcpStream, files: &HashMap<String, Vec<u8>>) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line);
        }
        let path = head[0].split(' ').nth(1).unwrap().to_owned();
        let prefix = format!("/{REPO}/resolve/main/");
        let Some(content) = path.strip_prefix(&prefix).and_then(|file| files.get(file)) else {
            let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            let _ = socket.write_all(missing.as_bytes());
            continue;
        };
        let range = head.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("range")
                .then(|| value.trim().to_owned())
        });
        let (start, end) = range.map_or((0, content.len()), |range| {
            let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap();
            let start: usize = start.parse().unwrap();
            let last = end.parse().unwrap_or(content.len() - 1);
            (start, (last + 1).min(content.len()))
        });
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\netag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\n\
             content-range: bytes {start}-{}/{}\r\ncontent-length: {}\r\n\r\n",
            content.len(),
            end.saturating_sub(1),
            content.len(),
            end - start
        );
        let _ = socket.write_all(head.as_bytes());
        let _ = socket.write_all(&content[start..end]);
    }
}

fn ferry_fetch(models: &std::path::Path, endpoint: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry"))
        .args(["fetch", "tiny", "--endpoint", endpoint, "--models"])
        .arg(models)
        .env_remove("HF_TOKEN")
        .env_remove("HF_ENDPOINT")
        .output()
        .unwrap()
}

#[test]
fn the_files_of_a_manifest_are_brought_and_the_model_serves() {
    let mut files = HashMap::new();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let mut content = Vec::new();
        let mut file = fs::File::open(fixture("tiny-bert-embed").join(name)).unwrap();
        file.read_to_end(&mut content).unwrap();
        files.insert(name.to_owned(), content);
    }
    let expected = files.clone();
    let endpoint = stand_in(files);
    let models = tempfile::tempdir().unwrap();
    let manifest = format!(
        "task = \"embed\"\n[source]\nhuggingface = \"{REPO}\"\n\
         files = [\"config.json\", \"tokenizer.json\", \"model.safetensors\"]\n"
    );
    write_manifest(models.path(), "tiny", &manifest);
    let output = ferry_fetch(models.path(), &endpoint);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (name, content) in expected {
        let fetched = fs::read(models.path().join("tiny/1").join(&name)).unwrap();
        assert!(fetched == content, "{name} differs");
    }
    // A second time nothing is fetched, so no hub is needed.
    let output = ferry_fetch(models.path(), "http://127.0.0.1:9");
    assert!(output.status.success());
    let left: Vec<_> = fs::read_dir(models.path().join("tiny"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_file_that_is_not_there_is_an_error_and_leaves_nothing_half_done() {
    let endpoint = stand_in(HashMap::new());
    let models = tempfile::tempdir().unwrap();
    let manifest = format!(
        "task = \"embed\"\n[source]\nhuggingface = \"{REPO}\"\nfiles = [\"config.json\"]\n"
    );
    write_manifest(models.path(), "tiny", &manifest);
    let output = ferry_fetch(models.path(), &endpoint);
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("tiny") && error.contains("404"), "{error}");
    assert!(!models.path().join("tiny/1/config.json").exists());
}
