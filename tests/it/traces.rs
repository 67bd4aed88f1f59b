//! Traces, as receivers see them that are built from OpenTelemetry's own protocol definitions, over
//! gRPC and over HTTP.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ferry::{
    api::proto::{
        ferry::v1::{
            EmbedRequest, GenerateRequest, GenerationOptions, StreamRequest, stream_request,
        },
        inference as pb,
    },
    config::{ServerConfig, traces::TraceProtocol},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use prost::Message as _;
use serde_json::json;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use super::{
    openai,
    support::{Running, fixture, models_of},
};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const CALLERS_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// What a receiver has got.
#[derive(Debug, Clone, Default)]
pub struct Received(pub Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Received {
    /// Takes spans over gRPC; returns where.
    async fn grpc() -> (Self, String) {
        let received = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(received.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
        (received, format!("http://{address}"))
    }

    /// Takes spans over HTTP; returns where.
    async fn http() -> (Self, String) {
        let received = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let taking = received.clone();
        let route = axum::routing::post(move |body: axum::body::Bytes| async move {
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            taking.0.lock().unwrap().push(request);
            ExportTraceServiceResponse::default().encode_to_vec()
        });
        let routes = axum::Router::new().route("/v1/traces", route);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (received, format!("http://{address}"))
    }

    /// All spans of a server, which goes down for it: that sends them.
    pub async fn spans(&self, running: Running) -> Vec<Span> {
        let Running { server, models, .. } = running;
        assert!(server.shut_down().await);
        drop(models);
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| scope.spans.clone())
            .collect()
    }
}

async fn serve(names: &[&str], endpoint: &str, change: impl FnOnce(&mut ServerConfig)) -> Running {
    Running::serving(models_of(names), |config| {
        endpoint.clone_into(&mut config.traces.endpoint);
        config.traces.attributes =
            [("deployment.environment".to_owned(), "test".to_owned())].into();
        change(config);
    })
    .await
}

fn hex(id: &[u8]) -> String {
    use std::fmt::Write as _;
    id.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name} in {:?}", names(spans));
    found[0]
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn length(span: &Span) -> u64 {
    span.end_time_unix_nano - span.start_time_unix_nano
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|pair| pair.key == key)?;
    found.value.clone()?.value
}

pub fn texts(texts: &[&str]) -> EmbedRequest {
    EmbedRequest {
        texts: texts.iter().map(|&text| text.to_owned()).collect(),
        ..EmbedRequest::default()
    }
}

fn from_caller<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", CALLER.parse().unwrap());
    metadata.insert("tracestate", "vendor=kept".parse().unwrap());
    request
}

#[tokio::test]
async fn a_request_is_seen_from_its_callers_span_to_its_reply() {
    let (received, endpoint) = Received::grpc().await;
    let running = serve(&["tiny-bert-embed"], &endpoint, |_| {}).await;
    let request = from_caller(texts(&["a text", "and another"]));
    let answer = running.typed().embed(request).await.unwrap();
    let told = answer.metadata().get("traceparent").unwrap();
    let told = told.to_str().unwrap().to_owned();
    let state = answer.metadata().get("tracestate").unwrap();
    assert_eq!(state, "vendor=kept");
    drop(answer);

    let spans = received.spans(running).await;
    let root = named(&spans, "ferry.v1.Inference/Embed");
    assert_eq!(hex(&root.trace_id), CALLERS_TRACE);
    assert_eq!(hex(&root.parent_span_id), "b7ad6b7169203331");
    let sent = format!("00-{CALLERS_TRACE}-{}-01", hex(&root.span_id));
    assert_eq!(told, sent);
    let model = Some(Value::StringValue("tiny-bert-embed".to_owned()));
    assert_eq!(attribute(root, "ferry.model"), model);
    assert_eq!(attribute(root, "ferry.rows"), Some(Value::IntValue(2)));

    let stages = [
        "admission",
        "tokenize",
        "queue",
        "execute",
        "postprocess",
        "reply",
    ];
    for stage in stages {
        let span = named(&spans, stage);
        assert_eq!(span.trace_id, root.trace_id, "{stage}");
        assert_eq!(span.parent_span_id, root.span_id, "{stage}");
    }
    // Each stage begins where the one before ends, to the pickup of its batch by the executor.
    let sum: u64 = stages.iter().map(|name| length(named(&spans, name))).sum();
    let whole = length(root);
    assert!(sum <= whole, "{sum} of {whole} ns");
    let gap =
        named(&spans, "queue").start_time_unix_nano - named(&spans, "tokenize").end_time_unix_nano;
    assert_eq!(sum + gap, whole);
}

#[tokio::test]
async fn a_batch_has_a_span_of_its_own_that_is_linked_to_its_rows() {
    let (received, endpoint) = Received::grpc().await;
    let running = serve(&["tiny-bert-embed"], &endpoint, |_| {}).await;
    let request = texts(&["a text", "and another"]);
    running.typed().embed(request).await.unwrap();

    let spans = received.spans(running).await;
    let root = named(&spans, "ferry.v1.Inference/Embed");
    let batch = named(&spans, "batch");
    let execute = named(&spans, "execute");
    assert_ne!(batch.trace_id, root.trace_id);
    assert!(batch.parent_span_id.is_empty());
    assert_eq!(
        attribute(batch, "ferry.batch.rows"),
        Some(Value::IntValue(2))
    );
    assert_eq!(batch.links.len(), 2);
    for link in &batch.links {
        assert_eq!(
            (&link.trace_id, &link.span_id),
            (&root.trace_id, &root.span_id)
        );
    }
    let link = &execute.links[0];
    assert_eq!(
        (&link.trace_id, &link.span_id),
        (&batch.trace_id, &batch.span_id)
    );
    assert!(
        batch
            .start_time_unix_nano
            .abs_diff(execute.start_time_unix_nano)
            < 1_000_000
    );
}

#[tokio::test]
async fn a_generation_shows_prefill_and_decode_with_few_token_events() {
    let (received, endpoint) = Received::http().await;
    let models = tempfile::tempdir().unwrap();
    super::support::add_version(models.path(), "llama", 1, &fixture("decoders/llama"));
    super::support::write_manifest(models.path(), "llama", "task = \"generate\"\n");
    let running = Running::serving(models, |config| {
        config.traces.endpoint = endpoint;
        config.traces.protocol = TraceProtocol::Http;
        config.traces.max_token_events = 8;
    })
    .await;
    let request = GenerateRequest {
        prompt: Some(
            ferry::api::proto::ferry::v1::generate_request::Prompt::Text(
                "once upon a time".to_owned(),
            ),
        ),
        options: Some(GenerationOptions {
            max_tokens: Some(40),
            ignore_eos: true,
            ..GenerationOptions::default()
        }),
        ..GenerateRequest::default()
    };
    let answer = running
        .typed()
        .generate(from_caller(request))
        .await
        .unwrap();
    let mut pieces = answer.into_inner();
    while pieces.message().await.unwrap().is_some() {}
    drop(pieces);

    let spans = received.spans(running).await;
    let root = named(&spans, "ferry.v1.Inference/Generate");
    assert_eq!(hex(&root.trace_id), CALLERS_TRACE);
    let tokens = attribute(root, "gen_ai.usage.output_tokens");
    assert_eq!(tokens, Some(Value::IntValue(40)));
    for stage in [
        "admission",
        "tokenize",
        "queue",
        "prefill",
        "decode",
        "reply",
    ] {
        assert_eq!(named(&spans, stage).parent_span_id, root.span_id, "{stage}");
    }
    let (prefill, decode) = (named(&spans, "prefill"), named(&spans, "decode"));
    assert_eq!(prefill.end_time_unix_nano, decode.start_time_unix_nano);
    assert!(
        (4..=8).contains(&decode.events.len()),
        "{}",
        decode.events.len()
    );
    assert_eq!(decode.events.len() as u32 + decode.dropped_events_count, 40);
}

#[tokio::test]
async fn each_request_of_a_stream_has_its_own_span_within_the_streams() {
    let (received, endpoint) = Received::grpc().await;
    let running = serve(&["tiny-bert-embed"], &endpoint, |_| {}).await;
    let requests = ["1", "2"].map(|id| StreamRequest {
        id: id.to_owned(),
        task: Some(stream_request::Task::Embed(texts(&["a text"]))),
    });
    let request = from_caller(tokio_stream::iter(requests));
    let mut answers = running.typed().stream(request).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    drop(answers);

    let spans = received.spans(running).await;
    let stream = named(&spans, "ferry.v1.Inference/Stream");
    let parts = spans.iter().filter(|span| span.name.ends_with("request"));
    let parents: Vec<_> = parts.map(|span| &span.parent_span_id).collect();
    assert_eq!(parents, [&stream.span_id, &stream.span_id]);
    assert_eq!(
        names(&spans)
            .iter()
            .filter(|&&name| name == "execute")
            .count(),
        2
    );
}

#[tokio::test]
async fn a_failed_request_says_why_in_its_span() {
    let (received, endpoint) = Received::grpc().await;
    let running = serve(&["tiny-bert-embed"], &endpoint, |_| {}).await;
    let body = json!({"input": "text", "dimensions": 100_000});
    let answer = openai::send(
        &running,
        "POST",
        "/v1/embeddings",
        &format!("traceparent: {CALLER}\r\n"),
        &body.to_string(),
    )
    .await;
    assert_eq!(answer.status, 400);
    assert!(
        answer
            .head
            .contains(&format!("traceparent: 00-{CALLERS_TRACE}-"))
    );

    let spans = received.spans(running).await;
    let root = named(&spans, "POST /v1/embeddings");
    assert_eq!(root.status.as_ref().unwrap().code, 2);
    let code = Some(Value::StringValue("INVALID_ARGUMENT".to_owned()));
    assert_eq!(attribute(root, "error.type"), code);
}

#[tokio::test]
async fn the_callers_decision_counts_and_the_ratio_for_the_rest() {
    let (received, endpoint) = Received::grpc().await;
    let running = serve(&["tiny-bert-embed"], &endpoint, |config| {
        config.traces.ratio = 0.0;
    })
    .await;
    let unasked = running.typed().embed(texts(&["a"])).await.unwrap();
    assert!(unasked.metadata().get("traceparent").is_none());
    let mut unsampled = from_caller(texts(&["b"]));
    let not = CALLER.strip_suffix("01").unwrap().to_owned() + "00";
    unsampled
        .metadata_mut()
        .insert("traceparent", not.parse().unwrap());
    running.typed().embed(unsampled).await.unwrap();
    let mut odd = from_caller(texts(&["c"]));
    odd.metadata_mut()
        .insert("traceparent", "00-zz-1".parse().unwrap());
    running.typed().embed(odd).await.unwrap();
    running
        .typed()
        .embed(from_caller(texts(&["d"])))
        .await
        .unwrap();
    let spans = received.spans(running).await;
    named(&spans, "ferry.v1.Inference/Embed");
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_no_request_and_is_counted() {
    let running = serve(&["tiny-bert-embed"], "http://127.0.0.1:9", |config| {
        config.traces.max_waiting = 1;
        config.traces.interval_seconds = 0.01;
        config.traces.timeout_seconds = 0.5;
    })
    .await;
    for _ in 0..50 {
        running.typed().embed(texts(&["a text"])).await.unwrap();
    }
    let count = |page: &str, result: &str| -> u64 {
        let name = format!("ferry_trace_records_total{{result=\"{result}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap().parse().unwrap()
    };
    loop {
        let page = running.http("/metrics").await.1;
        if count(&page, "failed") + count(&page, "dropped") > 0 {
            assert_eq!(count(&page, "exported"), 0);
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_triton_asks_about_traces_is_told_as_it_is() {
    let (_received, endpoint) = Received::grpc().await;
    let traced = serve(&["tiny-bert-embed"], &endpoint, |config| {
        config.traces.ratio = 0.01;
    })
    .await;
    let plain = Running::with(&["tiny-bert-embed"]).await;
    let ask = |settings: &[(&str, &str)]| pb::TraceSettingRequest {
        settings: settings
            .iter()
            .map(|&(name, value)| {
                let value = pb::trace_setting_request::SettingValue {
                    value: vec![value.to_owned()],
                };
                (name.to_owned(), value)
            })
            .collect(),
        model_name: String::new(),
    };
    let told = traced
        .open()
        .trace_setting(ask(&[]))
        .await
        .unwrap()
        .into_inner();
    let value = |name: &str| told.settings[name].value[0].clone();
    assert_eq!(
        ["trace_level", "trace_rate", "trace_mode"].map(value),
        ["TIMESTAMPS", "100", "opentelemetry"]
    );
    let told = plain
        .open()
        .trace_setting(ask(&[("trace_level", "OFF")]))
        .await;
    assert_eq!(
        told.unwrap().into_inner().settings["trace_level"].value,
        ["OFF"]
    );
    let refused = plain
        .open()
        .trace_setting(ask(&[("trace_level", "TIMESTAMPS")]))
        .await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::Unimplemented);
    let unknown = plain.open().trace_setting(ask(&[("colour", "red")])).await;
    assert_eq!(unknown.unwrap_err().code(), tonic::Code::InvalidArgument);
}

/// Log lines, gathered.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Set in the process that runs one test alone.
const ALONE: &str = "FERRY_TEST_ALONE";

#[test]
fn the_trace_id_is_in_the_log_lines_of_a_request() {
    // In a process of its own: whether an event is let through is decided once for all threads, and the
    // servers of other tests have nobody who listens.
    if std::env::var_os(ALONE).is_none() {
        let name = "traces::the_trace_id_is_in_the_log_lines_of_a_request";
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        assert!(alone.status.success(), "{alone:?}");
        return;
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(log_a_traced_request());
}

async fn log_a_traced_request() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    // The test's runtime has one thread, so that this catches what the server says.
    let _guard = tracing::subscriber::set_default(subscriber);
    let (_received, endpoint) = Received::grpc().await;
    let running = serve(&["tiny-bert-embed"], &endpoint, |_| {}).await;
    running
        .typed()
        .embed(from_caller(texts(&["a"])))
        .await
        .unwrap();
    let mut refused = texts(&["a"]);
    refused.dimensions = 100_000;
    running
        .typed()
        .embed(from_caller(refused))
        .await
        .unwrap_err();
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for event in ["answered", "request refused"] {
        let line = log.lines().find(|line| line.contains(event)).unwrap();
        assert!(
            line.contains(&format!("trace_id=\"{CALLERS_TRACE}\"")),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_row_of_a_job_has_a_trace_of_its_own_that_is_linked_to_its_submission() {
    use ferry::api::proto::ferry::v1::{
        JobRow, JobRows, SubmitRequest, WatchJobRequest, job_row, jobs_client::JobsClient,
        submit_request::Part,
    };
    let (received, endpoint) = Received::grpc().await;
    let kept = tempfile::tempdir().unwrap();
    let directory = kept.path().to_owned();
    let running = serve(&["tiny-bert-embed"], &endpoint, |config| {
        config.jobs.directory = directory;
    })
    .await;
    let rows = ["one", "two"].map(|text| JobRow {
        id: text.to_owned(),
        request: Some(job_row::Request::Embed(texts(&[text]))),
    });
    let part = Part::Rows(JobRows {
        rows: rows.to_vec(),
    });
    let mut client = JobsClient::new(running.channel());
    let parts = tokio_stream::iter([SubmitRequest { part: Some(part) }]);
    let job = client
        .submit(from_caller(parts))
        .await
        .unwrap()
        .into_inner();
    let watch = WatchJobRequest { id: job.id.clone() };
    let mut states = client.watch(watch).await.unwrap().into_inner();
    while states.message().await.unwrap().is_some() {}

    let spans = received.spans(running).await;
    let rows: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "ferry.v1.Jobs row")
        .collect();
    assert_eq!(rows.len(), 2);
    assert_ne!(rows[0].trace_id, rows[1].trace_id);
    for row in rows {
        let [link] = &row.links[..] else {
            panic!("{} links", row.links.len());
        };
        assert_eq!(hex(&link.trace_id), CALLERS_TRACE);
        assert_eq!(hex(&link.span_id), "b7ad6b7169203331");
        assert!(row.parent_span_id.is_empty());
        let of_job = Some(Value::StringValue(job.id.clone()));
        assert_eq!(attribute(row, "ferry.job"), of_job);
        let stages = spans
            .iter()
            .filter(|span| span.parent_span_id == row.span_id);
        let stages: Vec<_> = stages.map(|span| span.name.as_str()).collect();
        assert!(
            stages.contains(&"queue") && stages.contains(&"execute"),
            "{stages:?}"
        );
    }
}
