//! What a model's baseline says of the rows that come: single ones that are far from it, languages, and
//! whether a candidate version may take over.

use std::{path::Path, time::Duration};

use ferry::api::proto::ferry::v1::{
    Anomalies, EmbedRequest, EmbedResponse, GenerateRequest, GenerationOptions, ModelOptions,
    generate_request::Prompt,
};
use ferry::api::proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, infer_parameter::ParameterChoice,
    model_infer_request::InferInputTensor,
};
use tempfile::TempDir;

use super::support::{Running, add_version, fixture, write_manifest};

const MODEL: &str = "tiny-bert-embed";

/// A models folder with copies of a fixture as versions 1 to `versions`, into which baselines are written.
fn models(versions: u64, manifest: &str) -> TempDir {
    let models = tempfile::tempdir().unwrap();
    for version in 1..=versions {
        let folder = models.path().join(MODEL).join(version.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        for entry in std::fs::read_dir(fixture(MODEL)).unwrap() {
            let entry = entry.unwrap().path();
            std::fs::copy(&entry, folder.join(entry.file_name().unwrap())).unwrap();
        }
    }
    let manifest = format!("task = \"embed\"\n{manifest}");
    write_manifest(models.path(), MODEL, &manifest);
    models
}

const DRIFT: &str = "[drift]\nenabled = true\nwindow_rows = 100\nlearn_rows = 400\n\
                     anomaly_quantile = 0.99\nlanguage_sample = 1.0\n";

async fn embed(running: &Running, texts: Vec<String>) -> EmbedResponse {
    let request = EmbedRequest {
        options: Some(ModelOptions {
            model: MODEL.to_owned(),
            ..ModelOptions::default()
        }),
        texts,
        ..EmbedRequest::default()
    };
    running.typed().embed(request).await.unwrap().into_inner()
}

/// English texts of 3 to 6 words.
fn usual(count: usize) -> Vec<String> {
    let words = [
        "the", "river", "boat", "leaves", "harbour", "with", "captain", "crossing", "and", "wind",
        "tide",
    ];
    let text = |number: usize| {
        let length = 3 + number * 7 % 4;
        let words = (0..length).map(|at| words[(number * 5 + at * 3) % words.len()]);
        words.collect::<Vec<_>>().join(" ")
    };
    (0..count).map(text).collect()
}

async fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn learn(running: &Running, baseline: &Path) {
    embed(running, usual(400)).await;
    until(|| baseline.is_file()).await;
}

fn value(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

#[tokio::test]
async fn rows_far_from_the_baseline_are_flagged_in_the_answer_and_counted() {
    let running = Running::serving(models(1, DRIFT), |_| {}).await;
    let version = running.models.path().join(MODEL).join("1");
    learn(&running, &version.join("drift.json")).await;
    let mut texts = usual(50);
    texts.push("ferry ".repeat(60));
    texts.push("\u{4e00}\u{9fa5} ".repeat(12));
    let answer = embed(&running, texts).await;
    let of = |row: usize| answer.rows[row].info.unwrap().anomalies;
    let usual = (0..50).filter(|&row| of(row).is_some()).count();
    assert!(usual <= 2, "{usual} of 50 usual rows are flagged");
    assert!(of(50).unwrap().length, "{:?}", of(50));
    assert!(of(51).unwrap().unknown_tokens, "{:?}", of(51));
    let (_, page) = running.http("/metrics").await;
    let count = |kind: &str| {
        let name = format!(
            "ferry_anomalous_rows_total{{kind=\"{kind}\",model=\"{MODEL}\",version=\"1\"}}"
        );
        value(&page, &name)
    };
    assert!(
        count("length") >= 1.0 && count("unknown_tokens") >= 1.0,
        "{page}"
    );

    let input = |texts: &[String]| ModelInferRequest {
        model_name: MODEL.to_owned(),
        inputs: vec![InferInputTensor {
            name: "TEXT".to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![texts.len() as i64, 1],
            contents: Some(InferTensorContents {
                bytes_contents: texts.iter().map(|text| text.clone().into()).collect(),
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        }],
        ..ModelInferRequest::default()
    };
    let texts = [usual_text(), "ferry ".repeat(60)];
    let answer = running.open().model_infer(input(&texts)).await.unwrap();
    let parameters = answer.into_inner().parameters;
    let parameter = |name: &str| -> Option<ParameterChoice> {
        let found: &InferParameter = parameters.get(name)?;
        found.parameter_choice.clone()
    };
    let rows = ParameterChoice::Int64Param(1);
    assert_eq!(parameter("anomalous_rows"), Some(rows));
    let Some(ParameterChoice::StringParam(ways)) = parameter("anomalies") else {
        panic!("{parameters:?}");
    };
    assert!(ways.starts_with(",length"), "{ways}");
}

fn usual_text() -> String {
    usual(4).remove(3)
}

#[tokio::test]
async fn texts_in_another_language_raise_the_alert_of_languages() {
    let running = Running::serving(models(1, DRIFT), |_| {}).await;
    let version = running.models.path().join(MODEL).join("1");
    learn(&running, &version.join("drift.json")).await;
    let kept = std::fs::read_to_string(version.join("drift.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    let told: u64 = kept["language"]
        .as_object()
        .unwrap()
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert_eq!(told, 400, "{}", kept["language"]);
    assert!(kept["distance"].as_array().unwrap().len() > 1);
    let german = "Das kleine Schiff verlässt den Hafen bei jedem Wetter, auch im Winter";
    for _ in 0..4 {
        embed(&running, vec![german.to_owned(); 50]).await;
    }
    let windows = format!("ferry_drift_windows_total{{model=\"{MODEL}\",version=\"1\"}}");
    let mut page = running.http("/metrics").await.1;
    while value(&page, &windows) < 2.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        page = running.http("/metrics").await.1;
    }
    let name = format!(
        "ferry_drift_distance{{measure=\"psi\",model=\"{MODEL}\",signal=\"language\",version=\"1\"}}"
    );
    assert!(value(&page, &name) > 0.25, "{page}");
    let state = format!("ferry_drift_state{{model=\"{MODEL}\",signal=\"language\",version=\"1\"}}");
    assert!((value(&page, &state) - 2.0).abs() < 0.5, "{page}");
}

#[tokio::test]
async fn a_candidate_that_drifts_is_rolled_back_with_the_figures() {
    let trial = "[versions]\nserve = \"all\"\nstable = 1\n[canary]\nversion = 2\npercent = 50\n\
                 [rollout]\nautomatic = true\nmin_requests = 100000\nwindow_seconds = 3600\n";
    // The candidate's baseline is of shorter texts.
    let folder = models(2, &format!("{trial}{DRIFT}"));
    let baseline = r#"{"rows":4000,"output":[],"confidence":[],"length":[0,0,4000],
        "unknown":[4000],"embedding":{"n":0,"sum":[],"squares":0.0}}"#;
    std::fs::write(folder.path().join(MODEL).join("2/drift.json"), baseline).unwrap();
    let running = Running::serving(folder, |_| {}).await;
    let repository = running.server.repository();
    let status = || repository.status_of(MODEL).unwrap();
    while status().route.canary.is_some() {
        embed(&running, usual(50)).await;
    }
    let decision = status().decisions.last().cloned().unwrap();
    assert_eq!((decision.action, decision.by), ("rollback", "rollout"));
    let why = &decision.reason;
    assert!(
        why.contains("max_drift: found 2.0000, allowed 1.0000"),
        "{why}"
    );
    assert!(why.contains("drift drifted length"), "{why}");
}

#[tokio::test]
async fn a_generation_tells_whether_its_prompt_is_far_from_the_baseline() {
    let models = tempfile::tempdir().unwrap();
    add_version(models.path(), "llama", 1, &fixture("decoders/llama"));
    // Prompts of 2 to 11 tokens, as the baseline has them, whatever the confidence.
    let baseline = r#"{"rows":4000,"output":[],"confidence":[],"length":[0,0,1000,1000,1000,500,500],
        "unknown":[4000],"embedding":{"n":0,"sum":[],"squares":0.0}}"#;
    std::fs::write(models.path().join("llama/usual.json"), baseline).unwrap();
    let manifest = "task = \"generate\"\n[drift]\nenabled = true\nbaseline = \"usual.json\"\n\
                    keep = false\nanomaly_confidence = 0.0\n";
    write_manifest(models.path(), "llama", manifest);
    let running = Running::serving(models, |_| {}).await;
    let mut found = Vec::new();
    for prompt in ["one two", &"word ".repeat(12)] {
        let request = GenerateRequest {
            prompt: Some(Prompt::Text(prompt.to_owned())),
            options: Some(GenerationOptions {
                max_tokens: Some(3),
                ..GenerationOptions::default()
            }),
            ..GenerateRequest::default()
        };
        let mut stream = running
            .typed()
            .generate(request)
            .await
            .unwrap()
            .into_inner();
        let mut last = None;
        while let Some(message) = stream.message().await.unwrap() {
            last = message.finish;
        }
        let finish = last.unwrap();
        found.push((finish.prompt_tokens, finish.anomalies));
    }
    assert!(found[0].0 <= 11, "{found:?}");
    let length = Anomalies {
        length: true,
        ..Anomalies::default()
    };
    assert_eq!(found[0].1, None, "{found:?}");
    assert_eq!(found[1].1, Some(length), "{found:?}");
}
