//! `ferry bench`: every protocol against a real server, what is wrong is named, and nothing of it is
//! judged by its time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Json, Router, http::StatusCode, response::IntoResponse, routing::post};
use ferry::config::ServerConfig;
use serde_json::Value;

use super::{
    cli::{ferry, printed, refused},
    support::{Running, add_version, fixture, models_of},
};

const EMBEDDER: &str = "tiny-bert-embed";

/// Runs the command beside the runtime that serves.
async fn bench(arguments: &[&str]) -> std::process::Output {
    let short = [
        "bench",
        "--seconds",
        "0.3",
        "--warm-up",
        "0",
        "--rounds",
        "1",
    ];
    let all: Vec<String> = short
        .iter()
        .chain(arguments)
        .map(ToString::to_string)
        .collect();
    tokio::task::spawn_blocking(move || ferry(&all.iter().map(String::as_str).collect::<Vec<_>>()))
        .await
        .unwrap()
}

async fn report(arguments: &[&str]) -> Value {
    let output = bench(&[arguments, &["--json"]].concat()).await;
    serde_json::from_str(&printed(&output)).unwrap()
}

/// A server over an embedding model and one that writes.
async fn running() -> Running {
    let models = models_of(&[EMBEDDER]);
    add_version(models.path(), "writer", 1, &fixture("decoders/llama"));
    Running::serving(models, |_: &mut ServerConfig| {}).await
}

fn no_errors(measured: &Value) {
    assert_eq!(measured["errors"], 0, "{measured}");
    assert!(measured["served_rows_per_second"].as_f64().unwrap() > 0.0);
    assert!(measured["latency_ms"]["p99"].as_f64().unwrap() > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_protocol_of_ferry_is_measured_in_a_closed_and_an_open_loop() {
    let running = running().await;
    let grpc = format!("http://{}", running.server.grpc_address);
    let http = format!("http://{}", running.server.http_address);
    for (endpoint, url, model) in [
        ("embed", &grpc, EMBEDDER),
        ("open-inference", &grpc, EMBEDDER),
        ("openai-embeddings", &http, EMBEDDER),
        ("generate", &grpc, "writer"),
        ("completions", &http, "writer"),
    ] {
        let writes = model == "writer";
        let mut asked = vec!["--endpoint", endpoint, "--url", url, "--model", model];
        if writes {
            asked.extend(["--max-tokens", "4", "--words", "3"]);
        }
        for load in [["--clients", "1,3"], ["--rate", "40,80"]] {
            let report = report(&[&asked[..], &load].concat()).await;
            let measured = report["measured"].as_array().unwrap();
            assert_eq!(measured.len(), 2);
            for one in measured {
                no_errors(one);
                assert_eq!(one["ttft_ms"].is_object(), writes, "{endpoint}: {one}");
                let written = one["written_tokens_per_second"].as_f64();
                assert_eq!(written.is_some_and(|rate| rate > 0.0), writes, "{one}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_measured_alone_and_served_and_the_report_is_a_page() {
    let models = models_of(&[EMBEDDER]);
    let folder = models.path().to_str().unwrap();
    let page = models.path().join("report.html");
    let output = bench(&[
        "--model",
        EMBEDDER,
        "--models",
        folder,
        "--clients",
        "1,4",
        "--rows",
        "1,2",
        "--words",
        "3,9",
        "--html",
        page.to_str().unwrap(),
    ])
    .await;
    let text = printed(&output);
    for part in [
        "in process rows/s",
        "served rows/s",
        "share",
        "4 clients",
        "p99 ms",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains("Throughput against length"));
    for outside in ["http://", "https://", "<script", "<link", "NaN"] {
        let rest = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!rest.contains(outside), "{outside}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_search_tells_what_it_tried_and_what_broke() {
    let running = running().await;
    let grpc = format!("http://{}", running.server.grpc_address);
    let asked = [
        "--url",
        &grpc,
        "--model",
        EMBEDDER,
        "--find-rate",
        "--slo-p99",
    ];
    // Nobody answers within a microsecond, so every trial breaks the promise.
    let report = report(&[&asked[..], &["0.001"]].concat()).await;
    let search = &report["searches"][0];
    assert!(search["rate"].is_null(), "{search}");
    let trials = search["trials"].as_array().unwrap();
    assert!(
        trials
            .iter()
            .all(|trial| !trial["broken"].as_array().unwrap().is_empty())
    );
}

/// A server of text-embeddings-inference's route that refuses every second call.
async fn stand_in() -> String {
    let calls = Arc::new(AtomicUsize::new(0));
    let embed = move |Json(body): Json<Value>| async move {
        if calls.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
            return (StatusCode::TOO_MANY_REQUESTS, "Model is overloaded").into_response();
        }
        let rows = body["inputs"].as_array().unwrap().len();
        Json(vec![[0.25_f32; 4]; rows]).into_response()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/embed", post(embed));
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_counted_by_their_status_and_said() {
    let url = stand_in().await;
    let asked = [
        "--endpoint",
        "tei",
        "--url",
        &url,
        "--clients",
        "2",
        "--rows",
        "3",
    ];
    let output = bench(&[&asked[..], &["--json"]].concat()).await;
    let said = refused(&output);
    assert!(said.contains("HTTP 429: Model is overloaded"), "{said}");
    let report: Value = serde_json::from_str(&printed(&output)).unwrap();
    let one = &report["measured"][0];
    assert!(
        one["errors_by_code"]["HTTP 429"]["count"].as_u64().unwrap() > 0,
        "{one}"
    );
    assert_eq!(one["errors"], one["errors_by_code"]["HTTP 429"]["count"]);
    assert!(one["served_rows_per_second"].as_f64().unwrap() > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_all_calls_is_said_before_anything_is_measured() {
    let running = running().await;
    let grpc = format!("http://{}", running.server.grpc_address);
    let http = format!("http://{}", running.server.http_address);
    for (arguments, part) in [
        (vec!["--url", &grpc, "--model", "nobody"], "NOT_FOUND"),
        (
            vec![
                "--url",
                &http,
                "--model",
                "nobody",
                "--endpoint",
                "completions",
            ],
            "HTTP 404",
        ),
        (
            vec![
                "--url",
                &grpc,
                "--model",
                "nobody",
                "--endpoint",
                "open-inference",
            ],
            "NOT_FOUND",
        ),
        (
            vec![
                "--url",
                &grpc,
                "--model",
                EMBEDDER,
                "--endpoint",
                "open-inference",
                "--input",
                "PICTURE",
            ],
            "no input 'PICTURE'",
        ),
        (vec!["--url", "http://127.0.0.1:1"], "127.0.0.1:1"),
        (vec!["--url", "https://127.0.0.1:1"], "--ca FILE"),
        (
            vec!["--url", "https://127.0.0.1:1", "--endpoint", "tei"],
            "plain listeners only",
        ),
        (
            vec!["--url", "127.0.0.1:1", "--endpoint", "tei"],
            "CONNECT: 127.0.0.1:1",
        ),
    ] {
        let output = bench(&arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = refused(&output);
        assert!(said.contains(part), "{part} not in {said}");
    }
}

#[test]
fn wrong_arguments_are_refused_with_what_is_allowed() {
    for (arguments, part) in [
        (&["--clients", "0"][..], "at least 1"),
        (&["--clients", "1", "--rate", "5"], "cannot be used with"),
        (&["--rate", "0"], "above 0"),
        (&["--rate", "NaN"], "above 0"),
        (&["--seconds", "0"], "0.01"),
        (&["--seconds", "inf"], "0.01"),
        (&["--rows", "x"], "invalid digit"),
        (&["--header", "nothing"], "NAME: VALUE"),
        (&["--header", "a b: c"], "header name"),
        (&["--find-rate"], "--slo-p99"),
        (&["--slo-ttft", "5"], "does not stream"),
        (&["--endpoint", "chat", "--rows", "2"], "one text a call"),
        (&["--endpoint", "tei"], "give the --url"),
        (&["--endpoint", "soap"], "possible values"),
        (&["--texts", "/nowhere"], "/nowhere"),
    ] {
        let output = ferry(&[&["bench"], arguments].concat());
        assert!(!output.status.success(), "{arguments:?}");
        let said = refused(&output);
        assert!(said.contains(part), "{part} not in {said}");
    }
}
