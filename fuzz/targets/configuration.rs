//! The server's file, models' manifests and the file of keys. What is taken is printed, and read
//! again, as the same.

use ferry::config::{ModelManifest, ServerConfig, auth::KeysFile};

use super::fixtures::scratch;

/// The first byte says which of the three; the rest is the file.
pub fn run(input: &[u8]) {
    let Some((which, file)) = input.split_first() else {
        return;
    };
    let folder = scratch();
    let path = folder.path().join("file.toml");
    std::fs::write(&path, file).expect("a file");
    match which % 3 {
        0 => {
            if let Ok(config) = ServerConfig::read(&path) {
                let printed = toml::to_string(&config).expect("it can be printed");
                std::fs::write(&path, printed).expect("a file");
                let again = ServerConfig::read(&path).expect("what was printed is right");
                assert_eq!(again, config);
            }
        }
        1 => {
            if let Ok(manifest) = ModelManifest::read(&path) {
                manifest.validate().expect("what was read is right");
            }
        }
        _ => {
            let _ = KeysFile::read(&path);
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let server = toml::to_string(&ServerConfig::default()).expect("it can be printed");
    let seed = |which: &str, file: &str| format!("{which}{file}").into_bytes();
    vec![
        seed("0", &server),
        seed(
            "0",
            "[grpc]\nport = 8001\nhost = \"::1\"\n[models]\nserve = [\"a\"]\n",
        ),
        seed("1", MANIFEST),
        seed(
            "1",
            "task = \"generate\"\n[generate]\ncache_mib = 64\nmax_running = 4\n",
        ),
        seed("2", KEYS),
    ]
}

const MANIFEST: &str = r#"
task = "classify"
[input]
max_tokens = 64
truncation = "left"
[batching]
max_rows = 16
max_queue_delay_ms = 2.5
[cache]
max_mib = 4
[versions]
serve = "latest"
[warmup]
seconds = 1.0
"#;

const KEYS: &str = r#"
[[tenant]]
name = "search"
requests_per_second = 50.0
burst = 100
max_concurrent = 64
[[key]]
name = "search-2f1c9a04"
tenant = "search"
hash = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
scopes = ["infer", "jobs"]
"#;
