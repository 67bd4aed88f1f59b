//! A server in this process, over tiny models, that lasts as long as the process.

use std::{net::SocketAddr, sync::OnceLock};

use ferry::{config::ServerConfig, server::Server};
use tokio::runtime::Runtime;

use super::fixtures::{fixture, scratch};

/// Name and fixture of what it serves, one a task.
const MODELS: [(&str, &str); 5] = [
    ("embed", "tiny-bert-embed"),
    ("classify", "tiny-bert-classify"),
    ("rerank", "tiny-bert-rerank"),
    ("tokens", "tiny-bert-tokens"),
    ("generate", "decoders/llama"),
];

/// Keeps generations short where the caller says nothing.
const GENERATE: &str = "task = \"generate\"\n[generate]\ndefault_max_tokens = 8\ncache_mib = 8\n";

pub struct Served {
    pub runtime: Runtime,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    _server: Server,
}

pub fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build();
        let runtime = runtime.expect("threads");
        let server = runtime.block_on(start());
        Served {
            grpc: server.grpc_address,
            http: server.http_address,
            _server: server,
            runtime,
        }
    })
}

async fn start() -> Server {
    // Once the models are loaded, their folder is not looked at any more.
    let models = scratch();
    for (name, model) in MODELS {
        let folder = models.path().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        std::os::unix::fs::symlink(fixture(model), folder.join("1")).expect("a link");
    }
    std::fs::write(models.path().join("generate/model.toml"), GENERATE).expect("a file");
    let mut config = ServerConfig::default();
    config.models.directory = models.path().to_owned();
    config.grpc.host = "127.0.0.1".parse().expect("an address");
    config.http.host = config.grpc.host;
    (config.grpc.port, config.http.port) = (0, 0);
    config.admin.enabled = false;
    config.limits.max_text_bytes = 4096;
    let mut server = Server::start(config).await.expect("free ports");
    assert_eq!(server.loaded().await, MODELS.len());
    server
}
