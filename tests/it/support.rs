//! A server over the tiny fixture models, on free ports.

use std::path::{Path, PathBuf};

use ferry::{
    api::proto::{
        ferry::v1::inference_client::InferenceClient,
        inference::grpc_inference_service_client::GrpcInferenceServiceClient,
    },
    config::ServerConfig,
    server::Server,
};
use tempfile::TempDir;
use tonic::transport::Channel;

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of a fixture model.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// A models folder that holds the named fixtures, each as version 1.
pub fn models_of(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        add_version(folder.path(), name, 1, &fixture(name));
    }
    folder
}

/// Puts a version of a model into a models folder.
pub fn add_version(models: &Path, name: &str, version: u64, files: &Path) {
    std::fs::create_dir_all(models.join(name)).unwrap();
    std::os::unix::fs::symlink(files, models.join(name).join(version.to_string())).unwrap();
}

/// Writes a model's manifest.
pub fn write_manifest(models: &Path, name: &str, manifest: &str) {
    std::fs::create_dir_all(models.join(name)).unwrap();
    std::fs::write(models.join(name).join("model.toml"), manifest).unwrap();
}

/// A running server and the folder it serves.
pub struct Running {
    pub server: Server,
    pub models: TempDir,
    channel: Channel,
}

impl Running {
    /// Serves the named fixtures.
    pub async fn with(names: &[&str]) -> Self {
        Self::serving(models_of(names), |_| {}).await
    }

    /// Serves `models` with a changed configuration.
    pub async fn serving(models: TempDir, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut config = ServerConfig::default();
        config.models.directory = models.path().to_owned();
        config.grpc.host = "127.0.0.1".parse().unwrap();
        config.http.host = config.grpc.host;
        (config.grpc.port, config.http.port, config.admin.port) = (0, 0, 0);
        change(&mut config);
        let mut server = Server::start(config).await.unwrap();
        server.loaded().await;
        let url = format!("http://{}", server.grpc_address);
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        Self {
            server,
            models,
            channel,
        }
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A client of Ferry's typed service.
    pub fn typed(&self) -> InferenceClient<Channel> {
        InferenceClient::new(self.channel())
    }

    /// A client of the Open Inference Protocol.
    pub fn open(&self) -> GrpcInferenceServiceClient<Channel> {
        GrpcInferenceServiceClient::new(self.channel())
    }

    /// A page of the HTTP side: status and body.
    pub async fn http(&self, path: &str) -> (u16, String) {
        http_get(self.server.http_address, path).await
    }
}

/// One HTTP/1.0 request by hand.
pub async fn http_get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}

pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    assert_eq!(a.len(), b.len());
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
}

/// The sum of a counter's or gauge's samples; labels may be given as the page writes them.
pub async fn metric(running: &Running, name: &str) -> u64 {
    metric_at(running.server.http_address, name).await
}

/// As [`metric`], of a server at an address.
pub async fn metric_at(http: std::net::SocketAddr, name: &str) -> u64 {
    let (base, label) = match name.split_once('{') {
        Some((base, label)) => (base, label.trim_end_matches('}')),
        None => (name, ""),
    };
    let (_, page) = http_get(http, "/metrics").await;
    page.lines()
        .filter(|line| {
            (line.starts_with(&format!("{base}{{")) || line.starts_with(&format!("{base} ")))
                && line.contains(label)
        })
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// Waits until a metric has this value; fails after 20 s.
pub async fn settle(running: &Running, name: &str, value: u64) {
    for _ in 0..2000 {
        if metric(running, name).await == value {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!(
        "{name} never became {value}: {}",
        metric(running, name).await
    );
}
