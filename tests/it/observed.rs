//! What an operator sees of a running server: the metrics page with the names that others scrape, the
//! log of requests and its replay, drift.

use std::{path::Path, time::Duration};

use ferry::{
    api::proto::ferry::v1::{
        ClassifyRequest, EmbedRequest, GenerateRequest, GenerationOptions, RecordBaselineRequest,
        Sampling, admin_client::AdminClient, generate_request::Prompt,
    },
    config::request_log::Keep,
};
use serde_json::{Value, json};

use super::{
    cli::{ferry, printed, refused},
    openai,
    support::{Running, add_version, fixture, models_of, write_manifest},
};

fn embed(texts: &[&str]) -> EmbedRequest {
    EmbedRequest {
        texts: texts.iter().map(|&text| text.to_owned()).collect(),
        ..EmbedRequest::default()
    }
}

fn classify(texts: Vec<String>) -> ClassifyRequest {
    ClassifyRequest {
        texts,
        ..ClassifyRequest::default()
    }
}

fn lines(file: &Path) -> Vec<Value> {
    std::fs::read_to_string(file)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Takes a server down, which writes what waits to be.
async fn end(running: Running) {
    let Running { server, models, .. } = running;
    assert!(server.shut_down().await);
    drop(models);
}

#[tokio::test]
async fn the_metrics_page_has_ferrys_names_tritons_and_the_gateways() {
    let models = models_of(&["tiny-bert-embed"]);
    add_version(models.path(), "llama", 1, &fixture("decoders/llama"));
    write_manifest(models.path(), "llama", "task = \"generate\"\n");
    let running = Running::serving(models, |config| {
        config.metrics.region = "north".to_owned();
    })
    .await;
    let mut request = tonic::Request::new(embed(&["a", "a rather longer text"]));
    let tenant = "team \"a\"".parse().unwrap();
    request.metadata_mut().insert("x-ferry-tenant", tenant);
    running.typed().embed(request).await.unwrap();
    let mut wrong = embed(&["a"]);
    wrong.dimensions = 100_000;
    running.typed().embed(wrong).await.unwrap_err();
    let body = json!({"model": "llama", "prompt": "once", "max_tokens": 4});
    assert_eq!(
        openai::post(&running, "/v1/completions", &body)
            .await
            .status,
        200
    );

    let page = running.http("/metrics").await.1;
    let model = "model=\"tiny-bert-embed\",version=\"1\"";
    for line in [
        format!("nv_inference_request_success{{{model}}} 1"),
        format!("nv_inference_count{{{model}}} 2"),
        format!("nv_inference_exec_count{{{model}}} 1"),
        format!("nv_inference_request_failure{{{model},reason=\"OTHER\"}} 1"),
        format!("nv_inference_pending_request_count{{{model}}} 0"),
        "vllm:num_requests_waiting{model_name=\"llama\"} 0".to_owned(),
        "vllm:num_requests_running{model_name=\"llama\"} 0".to_owned(),
        "vllm:kv_cache_usage_perc{model_name=\"llama\"} 0".to_owned(),
        "ferry_errors_total{code=\"INVALID_ARGUMENT\",model=\"tiny-bert-embed\",version=\"1\"} 1"
            .to_owned(),
        format!("ferry_postprocess_seconds_count{{{model}}} 1"),
        format!("ferry_batch_fill_ratio_count{{{model}}} 1"),
        "ferry_usage_rows_total{endpoint=\"grpc\",model=\"tiny-bert-embed\",region=\"north\",\
         tenant=\"team \\\"a\\\"\",version=\"1\"} 2"
            .to_owned(),
        "ferry_usage_output_tokens_total{endpoint=\"openai\",model=\"llama\",region=\"north\",\
         tenant=\"\",version=\"1\"} 4"
            .to_owned(),
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line} not in\n{page}");
    }
    let info = page
        .lines()
        .find(|line| line.starts_with("vllm:cache_config_info{"))
        .unwrap();
    assert!(
        info.contains("block_size=\"16\",num_gpu_blocks=\""),
        "{info}"
    );
    let padding = page
        .lines()
        .find(|line| line.starts_with("ferry_padding_avoided_tokens_total{model=\"tiny"));
    assert!(!padding.unwrap().ends_with(" 0"), "{padding:?}");
    // A family's name is told once, whoever tells it.
    let mut types: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    let all = types.len();
    types.sort_unstable();
    types.dedup();
    assert_eq!(types.len(), all);
}

#[tokio::test]
async fn a_version_that_has_gone_has_no_gauges() {
    let running = Running::with(&["tiny-bert-embed", "tiny-bert-classify"]).await;
    running.typed().embed(embed(&["a"])).await.unwrap();
    let page = || String::from_utf8(running.server.metrics().render()).unwrap();
    let told = |page: &str, family: &str, model: &str| {
        let mut lines = page.lines();
        lines.any(|line| line.starts_with(family) && line.contains(&format!("model=\"{model}\"")))
    };
    let gauges = [
        "ferry_instances{",
        "ferry_model_memory_bytes{",
        "ferry_waiting_rows{",
    ];
    for gauge in gauges {
        assert!(told(&page(), gauge, "tiny-bert-embed"), "{gauge}");
    }
    running
        .server
        .repository()
        .unload("tiny-bert-embed", None)
        .unwrap();
    while gauges
        .iter()
        .any(|gauge| told(&page(), gauge, "tiny-bert-embed"))
    {
        tokio::task::yield_now().await;
    }
    let page = page();
    assert!(told(&page, "ferry_rows_total{", "tiny-bert-embed"));
    for gauge in gauges {
        assert!(told(&page, gauge, "tiny-bert-classify"), "{gauge}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_log_is_run_again_and_its_answers_agree() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requests.jsonl");
    let models = models_of(&["tiny-bert-classify", "tiny-bert-embed"]);
    let log = file.clone();
    let running = Running::serving(models, |config| config.request_log.file = log).await;
    for number in 0..20 {
        let texts = vec![format!("text number {number}"), "another".to_owned()];
        running.typed().classify(classify(texts)).await.unwrap();
    }
    let body = json!({"model": "tiny-bert-embed", "input": "one more"});
    openai::post(&running, "/v1/embeddings", &body).await;
    let mut wrong = embed(&["a"]);
    wrong.dimensions = 100_000;
    running.typed().embed(wrong).await.unwrap_err();

    let url = format!("http://{}", running.server.grpc_address);
    let path = file.to_str().unwrap().to_owned();
    let (at, log) = (url.clone(), path.clone());
    let replay = move |more: &[&str]| {
        let mut arguments = vec!["replay", &log, "--url", &at, "--json"];
        arguments.extend(more);
        ferry(&arguments)
    };
    while lines(&file).len() < 22 {
        tokio::task::yield_now().await;
    }
    let written = lines(&file);
    let first = &written[0];
    assert_eq!(first["input"]["texts"][0], "text number 0");
    assert_eq!(
        (&first["code"], &first["endpoint"]),
        (&json!("OK"), &json!("grpc"))
    );
    let best = &first["output"]["classes"][0][0];
    assert!(best[1].as_f64().unwrap() > 0.0 && first["times_us"]["total"].as_u64() > Some(0));
    assert!(first["confidence"].as_f64().unwrap() <= best[1].as_f64().unwrap() + 1e-6);
    assert_eq!(written[20]["endpoint"], "openai");
    assert_eq!(written[21]["code"], "INVALID_ARGUMENT");
    assert!(
        written[21]["error"]
            .as_str()
            .unwrap()
            .contains("dimensions")
    );

    let done = tokio::task::spawn_blocking(move || {
        [
            replay(&["--against", "tiny-bert-classify@1", "--speed", "1000"]),
            replay(&["--against", "tiny-bert-embed", "--closed", "2"]),
            replay(&["--against", "nobody"]),
        ]
    });
    let [classified, embedded, nobody] = done.await.unwrap();
    let report: Value = serde_json::from_str(&printed(&classified)).unwrap();
    assert_eq!(
        (&report["sent"], &report["failed"]),
        (&json!(20), &json!(0))
    );
    assert_eq!(report["lines"]["other_task"], 2);
    assert_eq!(
        (&report["figures"]["rows"], &report["figures"]["agreement"]),
        (&json!(40), &json!(1.0))
    );
    let report: Value = serde_json::from_str(&printed(&embedded)).unwrap();
    assert_eq!(
        (&report["sent"], &report["lines"]["unanswered"]),
        (&json!(1), &json!(1))
    );
    assert!(report["figures"]["agreement"].as_f64().unwrap() > 0.9999);
    assert!(refused(&nobody).contains("nobody"));
    end(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greedy_generation_is_run_again_token_by_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requests.jsonl");
    let models = tempfile::tempdir().unwrap();
    add_version(models.path(), "llama", 1, &fixture("decoders/llama"));
    write_manifest(models.path(), "llama", "task = \"generate\"\n");
    let log = file.clone();
    let running = Running::serving(models, |config| config.request_log.file = log).await;
    for (prompt, temperature) in [("once upon a time", 0.0), ("the end", 1.0)] {
        let request = GenerateRequest {
            prompt: Some(Prompt::Text(prompt.to_owned())),
            options: Some(GenerationOptions {
                max_tokens: Some(6),
                sampling: Some(Sampling {
                    temperature: Some(temperature),
                    ..Sampling::default()
                }),
                ..GenerationOptions::default()
            }),
            ..GenerateRequest::default()
        };
        let mut pieces = running
            .typed()
            .generate(request)
            .await
            .unwrap()
            .into_inner();
        while pieces.message().await.unwrap().is_some() {}
    }
    while lines(&file).len() < 2 {
        tokio::task::yield_now().await;
    }
    let url = format!("http://{}", running.server.grpc_address);
    let path = file.to_str().unwrap().to_owned();
    let done = tokio::task::spawn_blocking(move || {
        ferry(&[
            "replay",
            &path,
            "--url",
            &url,
            "--against",
            "llama",
            "--json",
            "--closed",
            "1",
        ])
    });
    let report: Value = serde_json::from_str(&printed(&done.await.unwrap())).unwrap();
    assert_eq!((&report["sent"], &report["drawn"]), (&json!(2), &json!(1)));
    assert_eq!(
        (&report["figures"]["rows"], &report["figures"]["agreement"]),
        (&json!(1), &json!(1.0))
    );
    end(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_hashes_serves_no_replay_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requests.jsonl");
    let log = file.clone();
    let running = Running::serving(models_of(&["tiny-bert-embed"]), |config| {
        config.request_log.file = log;
        config.request_log.inputs = Keep::Hashed;
        config.request_log.outputs = Keep::None;
    })
    .await;
    running.typed().embed(embed(&["a secret"])).await.unwrap();
    while lines(&file).is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!std::fs::read_to_string(&file).unwrap().contains("secret"));
    let url = format!("http://{}", running.server.grpc_address);
    let path = file.to_str().unwrap().to_owned();
    let done = tokio::task::spawn_blocking(move || {
        ferry(&[
            "replay",
            &path,
            "--url",
            &url,
            "--against",
            "tiny-bert-embed",
        ])
    });
    let said = refused(&done.await.unwrap());
    assert!(said.contains("1 have no full input"), "{said}");
    end(running).await;
}

fn value(page: &str, name: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

async fn windows(running: &Running, count: f64) -> String {
    loop {
        let page = running.http("/metrics").await.1;
        let name = "ferry_drift_windows_total{model=\"tiny-bert-classify\",version=\"1\"}";
        if value(&page, name) >= Some(count) {
            return page;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn texts_of_another_kind_raise_the_alert_of_a_served_model_and_the_same_do_not() {
    let models = models_of(&[]);
    // A folder of its own, since the baseline is written into it.
    let version = models.path().join("tiny-bert-classify/1");
    std::fs::create_dir_all(&version).unwrap();
    for entry in std::fs::read_dir(fixture("tiny-bert-classify")).unwrap() {
        let entry = entry.unwrap().path();
        std::fs::copy(&entry, version.join(entry.file_name().unwrap())).unwrap();
    }
    let manifest =
        "task = \"classify\"\n[drift]\nenabled = true\nwindow_rows = 100\nlearn_rows = 400\n";
    write_manifest(models.path(), "tiny-bert-classify", manifest);
    let running = Running::serving(models, |_| {}).await;
    let words = [
        "river", "boat", "harbour", "captain", "crossing", "wind", "tide",
    ];
    let mut number = 0_usize;
    let mut usual = || {
        number += 1;
        let length = 3 + (number * 7) % 11;
        let words = (0..length).map(|at| words[(number * 5 + at * 3) % words.len()]);
        words.collect::<Vec<_>>().join(" ")
    };
    for _ in 0..16 {
        let texts = (0..50).map(|_| usual()).collect();
        running.typed().classify(classify(texts)).await.unwrap();
    }
    let page = windows(&running, 4.0).await;
    let any = "ferry_drift_state{model=\"tiny-bert-classify\",signal=\"any\",version=\"1\"}";
    assert_eq!(value(&page, any), Some(0.0), "{page}");
    assert!(version.join("drift.json").is_file());

    for _ in 0..4 {
        let texts = (0..50)
            .map(|_| ["\u{4e00}\u{9fa5}"; 20].join(" "))
            .collect();
        running.typed().classify(classify(texts)).await.unwrap();
    }
    let page = windows(&running, 6.0).await;
    assert_eq!(value(&page, any), Some(2.0), "{page}");
    let length = "ferry_drift_distance{measure=\"psi\",model=\"tiny-bert-classify\",\
                  signal=\"length\",version=\"1\"}";
    assert!(value(&page, length).unwrap() > 0.25);

    // An operator says that this is how it is from now on.
    let admin = format!("http://{}", running.server.admin_address.unwrap());
    let mut admin = AdminClient::connect(admin).await.unwrap();
    let request = RecordBaselineRequest {
        model: "tiny-bert-classify".to_owned(),
        version: 0,
    };
    let recorded = admin
        .record_baseline(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((recorded.version, recorded.rows), (1, 600));
    let again = admin.record_baseline(request).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::FailedPrecondition);
    assert!(again.message().contains("100 rows are needed"), "{again}");
    let page = running.http("/metrics").await.1;
    assert_eq!(value(&page, any), Some(0.0));
    let kept = std::fs::read_to_string(version.join("drift.json")).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["rows"], 600);
    end(running).await;
}
