//! Encrypted listeners, clients' certificates, API keys and tenants' limits, over real sockets.

use std::{path::Path, time::Duration};

use ferry::{
    api::proto::ferry::v1::{EmbedRequest, ModelOptions, inference_client::InferenceClient},
    config::auth::ApiKey,
    server::Server,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tonic::{
    Code, Request,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::support::{Running, http_get, models_of};

/// An authority of our own.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate and its key, PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn write(&self, folder: &Path, name: &str) {
        let (certificate, key) = self.issue(name);
        std::fs::write(folder.join("key.pem"), key).unwrap();
        std::fs::write(folder.join("server.pem"), certificate).unwrap();
    }

    fn trusted_as(&self, name: &str) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.pem))
            .domain_name(name)
    }
}

async fn encrypted(folder: &Path, client_ca: bool) -> (Server, tempfile::TempDir) {
    let models = models_of(&["tiny-bert-embed"]);
    let mut config = ferry::config::ServerConfig::default();
    config.models.directory = models.path().to_owned();
    config.grpc.host = "127.0.0.1".parse().unwrap();
    config.http.host = config.grpc.host;
    (config.grpc.port, config.http.port, config.admin.port) = (0, 0, 0);
    config.tls.certificate = Some(folder.join("server.pem"));
    config.tls.key = Some(folder.join("key.pem"));
    config.tls.client_ca = client_ca.then(|| folder.join("ca.pem"));
    config.tls.reload_seconds = 0.05;
    let mut server = Server::start(config).await.unwrap();
    server.loaded().await;
    (server, models)
}

async fn connect(server: &Server, tls: ClientTlsConfig) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("https://{}", server.grpc_address)).unwrap();
    let endpoint = endpoint.tls_config(tls).unwrap();
    endpoint
        .connect()
        .await
        .map_err(|error| format!("{error:?}"))
}

fn question() -> EmbedRequest {
    EmbedRequest {
        options: Some(ModelOptions {
            model: "tiny-bert-embed".to_owned(),
            ..ModelOptions::default()
        }),
        texts: vec!["a b".to_owned()],
        ..EmbedRequest::default()
    }
}

#[tokio::test]
async fn an_encrypted_listener_answers_who_trusts_its_authority() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.write(folder.path(), "ferry.test");
    let (server, _models) = encrypted(folder.path(), false).await;

    let channel = connect(&server, authority.trusted_as("ferry.test"))
        .await
        .unwrap();
    let answer = InferenceClient::new(channel).embed(question()).await;
    assert_eq!(answer.unwrap().into_inner().rows.len(), 1);
    assert!(
        connect(&server, authority.trusted_as("other.test"))
            .await
            .is_err()
    );
    assert!(
        connect(&server, Authority::new().trusted_as("ferry.test"))
            .await
            .is_err()
    );
    // Who speaks plainly is cut off, and hurts nobody.
    let plain = Endpoint::from_shared(format!("http://{}", server.grpc_address)).unwrap();
    let answer = match plain.connect().await {
        Ok(channel) => InferenceClient::new(channel)
            .embed(question())
            .await
            .is_err(),
        Err(_) => true,
    };
    assert!(answer, "an unencrypted call was answered");
    assert!(server.shut_down().await);
}

#[tokio::test]
async fn new_certificates_hold_for_new_connections_and_broken_ones_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    old.write(folder.path(), "ferry.test");
    let (server, _models) = encrypted(folder.path(), false).await;
    let before = connect(&server, old.trusted_as("ferry.test"))
        .await
        .unwrap();

    std::fs::write(folder.path().join("server.pem"), "no certificate").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(connect(&server, old.trusted_as("ferry.test")).await.is_ok());

    new.write(folder.path(), "ferry.test");
    let swapped = async {
        while connect(&server, new.trusted_as("ferry.test"))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), swapped)
        .await
        .expect("read again");
    let answer = InferenceClient::new(before).embed(question()).await;
    assert!(answer.is_ok(), "a connection from before is cut");
}

#[tokio::test]
async fn where_clients_show_certificates_only_those_of_the_authority_come_in() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.write(folder.path(), "ferry.test");
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    let (server, _models) = encrypted(folder.path(), true).await;

    let embed = async |identity: Option<(String, String)>| {
        let mut tls = authority.trusted_as("ferry.test");
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        // Under TLS 1.3 a client learns that it is not let in at its first read.
        let channel = connect(&server, tls).await.map_err(drop)?;
        InferenceClient::new(channel)
            .embed(question())
            .await
            .map_err(drop)
    };
    assert!(embed(Some(authority.issue("client"))).await.is_ok());
    assert!(embed(Some(Authority::new().issue("client"))).await.is_err());
    assert!(embed(None).await.is_err());
}

#[tokio::test]
async fn files_that_are_no_certificates_stop_the_start_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = ferry::config::ServerConfig::default();
    config.models.directory = folder.path().to_owned();
    (config.grpc.port, config.http.port, config.admin.port) = (0, 0, 0);
    config.tls.certificate = Some(folder.path().join("server.pem"));
    config.tls.key = Some(folder.path().join("key.pem"));
    let error = Server::start(config.clone()).await.unwrap_err().to_string();
    assert!(
        error.contains("tls.certificate") && error.contains("server.pem"),
        "{error}"
    );
    let (one, other) = (Authority::new().issue("a"), Authority::new().issue("b"));
    std::fs::write(folder.path().join("server.pem"), one.0).unwrap();
    std::fs::write(folder.path().join("key.pem"), other.1).unwrap();
    let error = Server::start(config).await.unwrap_err().to_string();
    assert!(error.contains("tls.key"), "{error}");
}

/// A keys file with tenants `a` (which may have one request in the server and two at once) and `b`.
fn keys_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let key = |name: &str, tenant: &str, scopes: &str| {
        let hash = ApiKey::write_hash(&format!("secret-{name}"));
        format!(
            "[[key]]\nname = \"{name}\"\ntenant = \"{tenant}\"\nhash = \"{hash}\"\nscopes = [{scopes}]\n"
        )
    };
    let text = [
        "[[tenant]]\nname = \"a\"\nrequests_per_second = 0.01\nburst = 2\n".to_owned(),
        "[[tenant]]\nname = \"b\"\nmax_concurrent = 1\n".to_owned(),
        key("a", "a", "\"infer\""),
        key("b", "b", "\"infer\", \"jobs\""),
        key("watcher", "b", "\"metrics\""),
    ];
    std::fs::write(file.path(), text.concat()).unwrap();
    file
}

async fn with_keys() -> (Running, tempfile::NamedTempFile) {
    let file = keys_file();
    let path = file.path().to_owned();
    let running = Running::serving(models_of(&["tiny-bert-embed"]), |config| {
        config.auth.keys_file = Some(path);
        config.auth.reload_seconds = 0.05;
    });
    (running.await, file)
}

fn with_key<T>(message: T, key: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer secret-{key}")).unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test]
async fn a_call_needs_a_key_that_opens_it() {
    let (running, file) = with_keys().await;
    let code = async |request: Request<EmbedRequest>| match running.typed().embed(request).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    };
    assert_eq!(code(Request::new(question())).await, Code::Unauthenticated);
    assert_eq!(
        code(with_key(question(), "nobody")).await,
        Code::Unauthenticated
    );
    assert_eq!(
        code(with_key(question(), "watcher")).await,
        Code::PermissionDenied
    );
    assert_eq!(code(with_key(question(), "b")).await, Code::Ok);

    let status = async |path: &str| running.http(path).await.0;
    assert_eq!(status("/health/ready").await, 200);
    assert_eq!(status("/metrics").await, 401);
    assert_eq!(status("/v1/models").await, 401);
    let health = tonic_health::pb::health_client::HealthClient::new(running.channel())
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await;
    assert!(health.is_ok());

    // A key taken away is refused from the next reading on.
    let without = std::fs::read_to_string(file.path())
        .unwrap()
        .replace("name = \"b\"\ntenant", "name = \"c\"\ntenant");
    let other = ApiKey::write_hash("secret-c");
    let taken = without.replace(&ApiKey::write_hash("secret-b"), &other);
    std::fs::write(file.path(), taken).unwrap();
    let refused = async {
        while code(with_key(question(), "b")).await != Code::Unauthenticated {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), refused)
        .await
        .expect("read again");
    assert_eq!(code(with_key(question(), "c")).await, Code::Ok);
}

#[tokio::test]
async fn a_tenant_beyond_its_rate_is_told_when_to_come_again_and_others_are_served() {
    let (running, _file) = with_keys().await;
    let mut client = running.typed();
    for _ in 0..2 {
        client.embed(with_key(question(), "a")).await.unwrap();
    }
    let status = client.embed(with_key(question(), "a")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_some());
    assert!(
        status.message().contains("tenant 'a'"),
        "{}",
        status.message()
    );
    client.embed(with_key(question(), "b")).await.unwrap();
    let metrics = String::from_utf8(running.server.metrics().render()).unwrap();
    assert!(
        metrics.contains("ferry_callers_refused_total{reason=\"rate\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_stream_keeps_its_tenants_place_until_it_ends() {
    use ferry::api::proto::ferry::v1::StreamRequest;
    let (running, _file) = with_keys().await;
    let mut client = running.typed();
    let (requests, receiver) = tokio::sync::mpsc::channel::<StreamRequest>(1);
    let outbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let stream = client.stream(with_key(outbound, "b")).await.unwrap();
    let status = running
        .typed()
        .embed(with_key(question(), "b"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(
        status.message().contains("1 requests"),
        "{}",
        status.message()
    );
    drop((stream, requests));
    let free = async {
        while running
            .typed()
            .embed(with_key(question(), "b"))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), free)
        .await
        .expect("the place is given back");
}

#[tokio::test]
async fn what_a_caller_says_of_its_tenant_counts_for_nothing_beside_its_key() {
    let (running, _file) = with_keys().await;
    let mut request = with_key(question(), "a");
    request
        .metadata_mut()
        .insert("x-ferry-tenant", "b".parse().unwrap());
    running.typed().embed(request).await.unwrap();
    let mut request = with_key(question(), "a");
    request
        .metadata_mut()
        .insert("x-ferry-tenant", "b".parse().unwrap());
    running.typed().embed(request).await.unwrap();
    // Both were counted to `a`.
    assert!(
        running
            .typed()
            .embed(with_key(question(), "a"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_encrypted_http_listener_does_not_answer_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new().write(folder.path(), "ferry.test");
    let (server, _models) = encrypted(folder.path(), false).await;
    let asked = tokio::spawn(http_get(server.http_address, "/health/live"));
    assert!(asked.await.is_err(), "an unencrypted request was answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_run_again_with_the_key_that_the_server_wants() {
    let (keys, folder) = (keys_file(), tempfile::tempdir().unwrap());
    let (path, log) = (keys.path().to_owned(), folder.path().join("requests.jsonl"));
    let file = log.clone();
    let running = Running::serving(models_of(&["tiny-bert-embed"]), |config| {
        config.auth.keys_file = Some(path);
        config.request_log.file = file;
    })
    .await;
    running
        .typed()
        .embed(with_key(question(), "b"))
        .await
        .unwrap();
    while std::fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 1 {
        tokio::task::yield_now().await;
    }
    let url = format!("http://{}", running.server.grpc_address);
    let replay = |key: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_ferry"))
            .args(["replay", log.to_str().unwrap(), "--url", &url])
            .args(["--against", "tiny-bert-embed", "--closed", "1"])
            .env("FERRY_API_KEY", key)
            .output()
            .unwrap()
    };
    let (with, without) = tokio::task::block_in_place(|| (replay("secret-b"), replay("")));
    assert!(with.status.success(), "{with:?}");
    let said = String::from_utf8(without.stderr).unwrap();
    assert!(
        !without.status.success() && said.contains("no API key"),
        "{said}"
    );
}

#[test]
fn a_key_that_the_command_makes_is_the_one_that_its_line_lets_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    std::fs::write(
        &file,
        "# ours\n[[tenant]]\nname = \"a\"\nmax_concurrent = 3",
    )
    .unwrap();
    let make = |tenant: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ferry"))
            .args([
                "key",
                "--tenant",
                tenant,
                "--scopes",
                "infer,jobs",
                "--models",
                "bge,minilm-*",
                "--file",
            ])
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let keys = [make("a"), make("b")];
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("# ours\n"), "{text}");
    let read = ferry::config::auth::KeysFile::read(&file).unwrap();
    for (key, line) in keys.iter().zip(&read.keys) {
        assert!(!text.contains(key), "the key itself is in the file");
        assert_eq!(line.hash, ApiKey::write_hash(key));
        let models = ["bge", "minilm-*"].map(str::to_owned);
        assert_eq!(line.models.as_deref(), Some(&models[..]));
    }
    assert_eq!(read.tenants[0].max_concurrent, Some(3));
    assert_eq!(read.tenants[1].name, "b");
}
