//! Spans on their way to a collector that is reached over TLS, by either protocol.

use std::{path::Path, sync::Arc};

use ferry::config::{ServerConfig, traces::TraceProtocol};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, trace_service_server::TraceServiceServer,
};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming};

use super::{
    security::Authority,
    support::{Running, models_of},
    traces::{Received, named, texts},
};

/// Takes spans over gRPC; clients must show a certificate of `authority`.
async fn over_grpc(authority: &Authority) -> (Received, String) {
    let received = Received::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (certificate, key) = authority.issue("localhost");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(&authority.pem));
    let server = Server::builder()
        .tls_config(tls)
        .unwrap()
        .add_service(TraceServiceServer::new(received.clone()))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    (received, format!("https://localhost:{port}"))
}

/// The same over HTTP.
async fn over_http(authority: &Authority) -> (Received, String) {
    let received = Received::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let taking = received.clone();
    let route = axum::routing::post(move |body: axum::body::Bytes| async move {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        taking.0.lock().unwrap().push(request);
        ExportTraceServiceResponse::default().encode_to_vec()
    });
    let routes = axum::Router::new().route("/v1/traces", route);
    let (certificate, key) = authority.issue("localhost");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, routes) = (acceptor.clone(), routes.clone());
            tokio::spawn(async move {
                let stream = acceptor.accept(tcp).await?;
                let service = TowerToHyperService::new(routes);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                std::io::Result::Ok(())
            });
        }
    });
    (received, format!("https://localhost:{port}"))
}

/// Has the server trust `trusted`, and show a certificate of `shown`.
fn configure(folder: &Path, config: &mut ServerConfig, trusted: &Authority, shown: &Authority) {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let (certificate, key) = shown.issue("ferry");
    config.traces.ca_file = write("ca.pem", &trusted.pem);
    config.traces.client_certificate = write("client.pem", &certificate);
    config.traces.client_key = write("client.key", &key);
    config.traces.timeout_seconds = 5.0;
}

#[tokio::test]
async fn spans_reach_a_collector_that_is_encrypted_and_wants_a_certificate() {
    for protocol in [TraceProtocol::Grpc, TraceProtocol::Http] {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let (received, endpoint) = match protocol {
            TraceProtocol::Grpc => over_grpc(&authority).await,
            TraceProtocol::Http => over_http(&authority).await,
        };
        let running = Running::serving(models_of(&["tiny-bert-embed"]), |config| {
            config.traces.endpoint = endpoint;
            config.traces.protocol = protocol;
            configure(folder.path(), config, &authority, &authority);
        })
        .await;
        running.typed().embed(texts(&["a text"])).await.unwrap();
        let spans = received.spans(running).await;
        named(&spans, "ferry.v1.Inference/Embed");
    }
}

#[tokio::test]
async fn a_collector_of_another_authority_gets_no_spans_and_requests_are_answered() {
    for protocol in [TraceProtocol::Grpc, TraceProtocol::Http] {
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let (received, endpoint) = match protocol {
            TraceProtocol::Grpc => over_grpc(&authority).await,
            TraceProtocol::Http => over_http(&authority).await,
        };
        let running = Running::serving(models_of(&["tiny-bert-embed"]), |config| {
            config.traces.endpoint = endpoint;
            config.traces.protocol = protocol;
            config.traces.interval_seconds = 0.01;
            configure(folder.path(), config, &Authority::new(), &authority);
        })
        .await;
        running.typed().embed(texts(&["a text"])).await.unwrap();
        let failed = running.server.metrics().traces().failed;
        while failed.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(received.spans(running).await.is_empty());
    }
}

#[tokio::test]
async fn files_that_are_no_certificates_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    for protocol in [TraceProtocol::Grpc, TraceProtocol::Http] {
        let mut config = ServerConfig::default();
        config.models.directory = folder.path().to_owned();
        (config.grpc.port, config.http.port, config.admin.port) = (0, 0, 0);
        config.traces.endpoint = "https://localhost:4317".to_owned();
        config.traces.protocol = protocol;
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "no certificate").unwrap();
        config.traces.ca_file = Some(path);
        let error = ferry::server::Server::start(config)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("ca.pem"), "{error}");
    }
}
