//! The thread that makes spans of records and sends them: no request ever waits for it.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use opentelemetry::KeyValue;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{
    Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use tokio::runtime::Runtime;
use tonic::metadata::MetadataMap;

use super::{
    spans::spans_of,
    tls::{self, EncryptedConnector},
    tracer::Record,
};
use crate::{
    config::{TracesConfig, traces::TraceProtocol},
    telemetry::TraceMetrics,
};

/// Starts the thread. It ends when nobody can send records any more.
pub(super) fn start(
    config: &TracesConfig,
    records: Receiver<Record>,
    metrics: TraceMetrics,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let built = {
        // The exporters' connections live in the runtime that they are built in.
        let _inside = runtime.enter();
        build(config)
    };
    let exporter = match built {
        Ok(exporter) => exporter,
        Err(error) => {
            // Dropped, it would wait, which the runtime that starts the server does not allow.
            runtime.shutdown_background();
            return Err(error);
        }
    };
    let export = Export {
        runtime,
        exporter,
        records,
        metrics,
        max_batch: config.max_batch,
        interval: config.interval(),
        timeout: config.timeout(),
        failing: false,
    };
    std::thread::Builder::new()
        .name("traces".to_owned())
        .spawn(move || export.run())?;
    Ok(())
}

/// Builds the exporter; what the configuration leaves open is what `OTEL_EXPORTER_OTLP_…` says.
fn build(config: &TracesConfig) -> io::Result<SpanExporter> {
    let wrong = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("traces: {error}"))
    };
    let endpoint = (!config.endpoint.is_empty()).then(|| config.endpoint.clone());
    let is_encrypted = config.endpoint().starts_with("https://");
    let authority = config.authority().filter(|_| is_encrypted);
    if is_encrypted && authority.is_none() {
        return Err(wrong(
            &"an https:// endpoint, and no traces.ca_file that says whom to trust",
        ));
    }
    let mut exporter = match config.protocol {
        TraceProtocol::Grpc => {
            let mut headers = HeaderMap::new();
            for (key, value) in &config.headers {
                let key = HeaderName::try_from(key).map_err(|error| wrong(&error))?;
                let mut value =
                    HeaderValue::try_from(value.reveal()).map_err(|error| wrong(&error))?;
                value.set_sensitive(true);
                headers.insert(key, value);
            }
            let mut builder = SpanExporter::builder()
                .with_tonic()
                .with_timeout(config.timeout())
                .with_metadata(MetadataMap::from_headers(headers));
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            if is_encrypted && let Some(tls) = tls::of_grpc(config)? {
                builder = builder.with_tls_config(tls);
            }
            builder.build().map_err(|error| wrong(&error))?
        }
        TraceProtocol::Http => {
            let headers: HashMap<_, _> = config
                .headers
                .iter()
                .map(|(key, value)| (key.clone(), value.reveal().to_owned()))
                .collect();
            let mut builder = SpanExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_timeout(config.timeout())
                .with_headers(headers);
            if let Some(endpoint) = endpoint {
                builder = builder.with_endpoint(traces_url(&endpoint));
            }
            if let Some(authority) = &authority {
                let connector = EncryptedConnector::new(config, authority)?;
                let client = HyperClient::new(connector, config.timeout(), None);
                builder = builder.with_http_client(client);
            }
            builder.build().map_err(|error| wrong(&error))?
        }
    };
    exporter.set_resource(&resource(config));
    Ok(exporter)
}

/// Where a collector takes traces over HTTP: at `/v1/traces`, unless a path is given.
fn traces_url(endpoint: &str) -> String {
    let host = endpoint.trim_end_matches('/');
    let has_path = host
        .split_once("://")
        .is_some_and(|(_, rest)| rest.contains('/'));
    if has_path {
        endpoint.to_owned()
    } else {
        format!("{host}/v1/traces")
    }
}

/// Who sends: what the file says, and above it what `OTEL_RESOURCE_ATTRIBUTES` and
/// `OTEL_SERVICE_NAME` say.
fn resource(config: &TracesConfig) -> Resource {
    let mut builder = Resource::builder()
        .with_attributes(
            config
                .attributes
                .iter()
                .map(|(key, value)| KeyValue::new(key.clone(), value.clone())),
        )
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        builder = builder.with_service_name(config.service_name.clone());
    }
    builder.build()
}

struct Export {
    runtime: Runtime,
    exporter: SpanExporter,
    records: Receiver<Record>,
    metrics: TraceMetrics,
    max_batch: usize,
    interval: Duration,
    timeout: Duration,
    /// Whether the last export failed: that it does is logged once, not each time.
    failing: bool,
}

impl Export {
    fn run(mut self) {
        loop {
            let mut batch = Batch::default();
            let Ok(first) = self.records.recv() else {
                return;
            };
            batch.add(first);
            let due = Instant::now() + self.interval;
            let mut open = true;
            while batch.spans.len() < self.max_batch && batch.flushes.is_empty() {
                match self.records.recv_deadline(due) {
                    Ok(record) => batch.add(record),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        open = false;
                        break;
                    }
                }
            }
            self.send(batch);
            if !open {
                return;
            }
        }
    }

    fn send(&mut self, batch: Batch) {
        let count = batch.records;
        if !batch.spans.is_empty() {
            let exporting = self.exporter.export(batch.spans);
            let exported = self
                .runtime
                .block_on(async { tokio::time::timeout(self.timeout, exporting).await });
            let failure = match exported {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {:?}", self.timeout)),
            };
            self.note(failure, count);
        }
        for done in batch.flushes {
            let _ = done.send(());
        }
    }

    fn note(&mut self, failure: Option<String>, count: u64) {
        match failure {
            None => {
                if self.failing {
                    tracing::info!("spans are sent again");
                }
                self.failing = false;
                self.metrics.exported.inc_by(count);
            }
            Some(reason) => {
                if !self.failing {
                    tracing::warn!(reason, "spans can't be sent; they are dropped and counted");
                }
                self.failing = true;
                self.metrics.failed.inc_by(count);
            }
        }
    }
}

#[derive(Default)]
struct Batch {
    spans: Vec<SpanData>,
    records: u64,
    flushes: Vec<Sender<()>>,
}

impl Batch {
    fn add(&mut self, record: Record) {
        if let Record::Flush(done) = record {
            self.flushes.push(done);
            return;
        }
        self.records += 1;
        self.spans.extend(spans_of(record));
    }
}
