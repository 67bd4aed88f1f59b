//! Confidence: calibrations, what becomes of answers that a model is not sure of, cascades.

use std::{fs, path::Path};

use ferry::api::proto::{
    ferry::v1::{
        ClassifyRequest, ClassifyResponse, ClassifyRow, LowConfidence, LowConfidenceAction,
        ModelOptions, RerankRequest,
    },
    inference::{
        InferTensorContents, ModelInferRequest, RepositoryModelUnloadRequest,
        infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status};

use super::{
    cli::{ferry, printed, refused},
    support::{Running, add_version, fixture, models_of, write_manifest},
};

const SMALL: &str = "tiny-bert-classify";
const LARGE: &str = "tiny-distilbert-classify";
const TEXTS: [&str; 4] = [
    "What a wonderful crossing!",
    "The ferry left an hour late.",
    "Nine to five, every day.",
    "I will not come again",
];

fn request(model: &str, texts: &[&str]) -> ClassifyRequest {
    ClassifyRequest {
        options: Some(ModelOptions {
            model: model.to_owned(),
            ..ModelOptions::default()
        }),
        texts: texts.iter().map(|&text| text.to_owned()).collect(),
        ..ClassifyRequest::default()
    }
}

async fn classify(running: &Running, request: ClassifyRequest) -> Result<ClassifyResponse, Status> {
    let answer = running.typed().classify(request).await?;
    Ok(answer.into_inner())
}

fn low(action: LowConfidenceAction, model: &str) -> Option<LowConfidence> {
    Some(LowConfidence {
        action: action.into(),
        fallback_model: model.to_owned(),
        ..LowConfidence::default()
    })
}

fn scores(row: &ClassifyRow) -> Vec<(String, f32)> {
    let scores = row.scores.iter();
    scores
        .map(|label| (label.label.clone(), label.score))
        .collect()
}

/// A models folder with a copy of a fixture whose files may be changed.
fn copy_of(name: &str) -> TempDir {
    let models = tempfile::tempdir().unwrap();
    copy(&fixture(name), &models.path().join(name).join("1"));
    models
}

fn copy(files: &Path, version: &Path) {
    fs::create_dir_all(version).unwrap();
    for entry in fs::read_dir(files).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, version.join(path.file_name().unwrap())).unwrap();
    }
}

/// Labelled texts, as `ferry calibrate` reads them.
fn labelled(folder: &Path, rows: usize) -> String {
    let labels = ["negative", "neutral", "positive"];
    let lines: Vec<String> = (0..rows)
        .map(|row| {
            let text = format!("{} number {row}, {}", TEXTS[row % 4], row * row % 17);
            json!({"text": text, "label": labels[row * row % 7 % 3]}).to_string()
        })
        .collect();
    let path = folder.join("labels.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn calibrate(models: &TempDir, name: &str, labels: &str, further: &[&str]) -> std::process::Output {
    let folder = models.path().to_str().unwrap();
    let mut arguments = vec!["calibrate", name, "--models", folder, "--labels", labels];
    arguments.extend(further);
    ferry(&arguments)
}

#[tokio::test]
async fn a_calibrated_version_answers_with_calibrated_probabilities_and_says_so() {
    let plain = Running::with(&[SMALL]).await;
    let plain = classify(&plain, request(SMALL, &TEXTS)).await.unwrap();
    assert!(!plain.model.unwrap().calibrated);

    let models = copy_of(SMALL);
    let labels = labelled(models.path(), 200);
    let page = models.path().join("page.html");
    let json = models.path().join("figures.json");
    let output = calibrate(
        &models,
        SMALL,
        &labels,
        &[
            "--method",
            "temperature",
            "--html",
            page.to_str().unwrap(),
            "--json",
            json.to_str().unwrap(),
        ],
    );
    let table = printed(&output);
    assert!(
        table.contains("60 held out") && table.contains("140 rows to fit to"),
        "{table}"
    );
    let figures: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let temperature = figures["calibration"]["temperature"].as_f64().unwrap();
    assert!(figures["after"]["nll"].as_f64() < figures["before"]["nll"].as_f64());
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("src="));

    let running = Running::serving(models, |_| {}).await;
    let answer = classify(&running, request(SMALL, &TEXTS)).await.unwrap();
    assert!(answer.model.unwrap().calibrated);
    for (row, plain) in answer.rows.iter().zip(&plain.rows) {
        // softmax(z / T) is p^(1/T), scaled.
        let powers: Vec<f64> = plain
            .scores
            .iter()
            .map(|label| f64::from(label.score).powf(temperature.recip()))
            .collect();
        let sum: f64 = powers.iter().sum();
        for (label, power) in row.scores.iter().zip(powers) {
            assert!(
                (f64::from(label.score) - power / sum).abs() < 1e-5,
                "{row:?}"
            );
        }
        assert_eq!(row.label, plain.label);
        assert!((row.confidence - row.scores[0].score).abs() < 1e-7);
    }
    // Made anew, it is fitted to what the model says, not to what it is corrected to.
    let again = calibrate(&running.models, SMALL, &labels, &["--dry-run"]);
    assert!(printed(&again).contains("nothing written"));
}

#[tokio::test]
async fn a_calibration_that_is_damaged_or_of_another_model_fails_the_load() {
    let models = copy_of(SMALL);
    let labels = labelled(models.path(), 200);
    printed(&calibrate(
        &models,
        SMALL,
        &labels,
        &["--method", "isotonic"],
    ));
    let file = models.path().join(SMALL).join("1/calibration.json");
    let good = fs::read_to_string(&file).unwrap();

    let cases: [(&str, String); 3] = [
        ("it is damaged", good.replacen("0.", "1.", 1)),
        ("it is damaged", good[..good.len() / 2].to_owned()),
        ("it is damaged", String::new()),
    ];
    for (says, content) in cases {
        let models = copy_of(SMALL);
        fs::write(
            models.path().join(SMALL).join("1/calibration.json"),
            content,
        )
        .unwrap();
        refused_with(models, SMALL, says).await;
    }
    // Another model with the same labels, and one with others.
    for (other, says) in [
        (
            LARGE,
            "made for tiny-bert-classify version 1, whose weights are others",
        ),
        (
            "tiny-bert-multilabel",
            "whose labels are negative, neutral, positive, not",
        ),
        ("tiny-bert-embed", "has none"),
    ] {
        let models = copy_of(other);
        fs::write(models.path().join(other).join("1/calibration.json"), &good).unwrap();
        refused_with(models, other, says).await;
    }
    // The same weights, served in fewer bits.
    let manifest = "task = \"classify\"\nquantize = \"q8_0\"";
    write_manifest(models.path(), SMALL, manifest);
    refused_with(models, SMALL, "quantized to nothing, not Q8_0").await;
}

async fn refused_with(models: TempDir, model: &str, says: &str) {
    let running = Running::serving(models, |_| {}).await;
    let mut asked = request(model, &TEXTS);
    asked.on_low_confidence = None;
    let error = classify(&running, asked).await.unwrap_err();
    assert!(error.message().contains(says), "{}", error.message());
    assert!(error.message().contains("calibration.json"));
}

#[test]
fn labels_that_can_not_be_used_are_refused_by_their_line() {
    let models = models_of(&[SMALL, "tiny-bert-embed"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    fs::write(
        path,
        "{\"text\":\"a\",\"label\":\"neutral\"}\n{\"text\":\"b\",\"label\":\"good\"}\n",
    )
    .unwrap();
    let error = refused(&calibrate(&models, SMALL, path, &[]));
    assert!(
        error.contains("line 2") && error.contains("'good'"),
        "{error}"
    );
    let error = refused(&calibrate(&models, "tiny-bert-embed", path, &[]));
    assert!(error.contains("does 'embed'"), "{error}");
    let error = refused(&calibrate(&models, "nobody", path, &[]));
    assert!(error.contains("there are: tiny-bert-classify"), "{error}");
    fs::write(path, "{\"text\":\"a\",\"label\":\"neutral\"}\n").unwrap();
    let error = refused(&calibrate(&models, SMALL, path, &[]));
    assert!(error.contains("20 or more are needed"), "{error}");
}

/// The small model with a cascade to the large one, and that.
fn cascade(below: f32) -> TempDir {
    let models = models_of(&[SMALL, LARGE]);
    let manifest =
        format!("task = \"classify\"\n[cascade]\nmodel = \"{LARGE}\"\nbelow = {below:?}");
    write_manifest(models.path(), SMALL, &manifest);
    models
}

#[tokio::test]
async fn a_cascade_asks_the_larger_model_where_the_small_one_is_not_sure() {
    let both = Running::with(&[SMALL, LARGE]).await;
    let small = classify(&both, request(SMALL, &TEXTS)).await.unwrap();
    let large = classify(&both, request(LARGE, &TEXTS)).await.unwrap();
    let mut confidences: Vec<f32> = small.rows.iter().map(|row| row.confidence).collect();
    confidences.sort_by(f32::total_cmp);
    let below = f32::midpoint(confidences[1], confidences[2]);

    let running = Running::serving(cascade(below), |_| {}).await;
    let answer = classify(&running, request(SMALL, &TEXTS)).await.unwrap();
    assert_eq!(answer.model.as_ref().unwrap().name, SMALL);
    for ((row, small), large) in answer.rows.iter().zip(&small.rows).zip(&large.rows) {
        if small.confidence >= below {
            assert_eq!(row.escalation, None);
            assert_eq!(scores(row), scores(small));
            continue;
        }
        let escalation = row.escalation.as_ref().unwrap();
        assert_eq!(escalation.answered_by.as_ref().unwrap().name, LARGE);
        assert_eq!(escalation.escalated_from[0].name, SMALL);
        assert!(!escalation.failed);
        for ((label, score), (other, expected)) in scores(row).iter().zip(&scores(large)) {
            assert!(label == other && (score - expected).abs() < 1e-5);
        }
    }
    let escalated = answer.rows.iter().filter(|row| row.escalation.is_some());
    assert_eq!(escalated.count(), 2);

    let (_, page) = running.http("/metrics").await;
    let counted = |result: &str| {
        let labels = format!("model=\"{SMALL}\",result=\"{result}\",to=\"{LARGE}\",version=\"1\"");
        page.contains(&format!("ferry_cascade_rows_total{{{labels}}} 2"))
    };
    assert!(counted("kept") && counted("escalated"), "{page}");
    assert!(page.contains("ferry_cascade_saved_seconds{"));

    // The Open Inference Protocol's clients get it too, and are told.
    let text = TEXTS.map(|text| text.as_bytes().to_vec()).to_vec();
    let infer = ModelInferRequest {
        model_name: SMALL.to_owned(),
        inputs: vec![InferInputTensor {
            name: "TEXT".to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![4, 1],
            contents: Some(InferTensorContents {
                bytes_contents: text,
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        }],
        ..ModelInferRequest::default()
    };
    let infer = running
        .open()
        .model_infer(infer)
        .await
        .unwrap()
        .into_inner();
    let parameter = |name: &str| infer.parameters[name].parameter_choice.clone().unwrap();
    assert_eq!(parameter("escalated_rows"), ParameterChoice::Int64Param(2));
    let ParameterChoice::StringParam(by) = parameter("answered_by") else {
        panic!("{infer:?}");
    };
    assert_eq!(by.matches(&format!("{LARGE}/1")).count(), 2);
    assert_eq!(by.split(',').count(), 4);

    // Whoever only wants to know asks for that.
    let mut asked = request(SMALL, &TEXTS);
    asked.min_confidence = below;
    asked.on_low_confidence = low(LowConfidenceAction::Flag, "");
    let answer = classify(&running, asked).await.unwrap();
    assert!(answer.rows.iter().all(|row| row.escalation.is_none()));
    assert_eq!(
        answer.rows.iter().filter(|row| row.low_confidence).count(),
        2
    );
}

#[tokio::test]
async fn an_answer_that_can_not_be_handed_on_stands() {
    let running = Running::serving(cascade(1.0), |_| {}).await;
    let unload = RepositoryModelUnloadRequest {
        model_name: LARGE.to_owned(),
        ..RepositoryModelUnloadRequest::default()
    };
    running
        .open()
        .repository_model_unload(unload)
        .await
        .unwrap();
    let answer = classify(&running, request(SMALL, &TEXTS)).await.unwrap();
    for row in &answer.rows {
        let escalation = row.escalation.as_ref().unwrap();
        assert!(escalation.failed && escalation.escalated_from.is_empty());
        assert_eq!(escalation.answered_by.as_ref().unwrap().name, SMALL);
        assert!(!row.label.is_empty());
    }
}

#[tokio::test]
async fn a_request_may_name_whom_to_ask_instead_or_want_no_answer() {
    let running = Running::with(&[SMALL, LARGE, "tiny-bert-multilabel", "tiny-bert-embed"]).await;
    let ask = |action, model: &str, least| {
        let mut asked = request(SMALL, &TEXTS);
        asked.min_confidence = least;
        asked.on_low_confidence = low(action, model);
        asked
    };
    let answer = classify(&running, ask(LowConfidenceAction::FallBack, LARGE, 1.0))
        .await
        .unwrap();
    for row in &answer.rows {
        let by = row
            .escalation
            .as_ref()
            .unwrap()
            .answered_by
            .clone()
            .unwrap();
        assert_eq!((&*by.name, &*by.version), (LARGE, "1"));
    }
    let answer = classify(&running, ask(LowConfidenceAction::Abstain, "", 1.0))
        .await
        .unwrap();
    for row in &answer.rows {
        assert!(row.abstained && row.low_confidence && row.confidence > 0.0);
        assert!(row.label.is_empty() && row.scores.is_empty());
    }
    // One with other labels can't answer for it: the first answer stands.
    let other = ask(LowConfidenceAction::FallBack, "tiny-bert-multilabel", 1.0);
    let answer = classify(&running, other).await.unwrap();
    assert!(
        answer
            .rows
            .iter()
            .all(|row| row.escalation.as_ref().unwrap().failed)
    );

    for (asked, code, says) in [
        (
            ask(LowConfidenceAction::FallBack, "", 0.9),
            Code::InvalidArgument,
            "no [cascade]",
        ),
        (
            ask(LowConfidenceAction::FallBack, SMALL, 0.9),
            Code::InvalidArgument,
            "another model",
        ),
        (
            ask(LowConfidenceAction::FallBack, "nobody", 0.9),
            Code::NotFound,
            "no model named",
        ),
        (
            ask(LowConfidenceAction::FallBack, "tiny-bert-embed", 0.9),
            Code::InvalidArgument,
            "does 'embed'",
        ),
        (
            ask(LowConfidenceAction::Abstain, "", 0.0),
            Code::InvalidArgument,
            "min_confidence",
        ),
        (
            ask(LowConfidenceAction::Flag, LARGE, 0.5),
            Code::InvalidArgument,
            "FALL_BACK",
        ),
    ] {
        let error = classify(&running, asked).await.unwrap_err();
        assert!(error.message().contains(says), "{}", error.message());
        assert_eq!(error.code(), code, "{}", error.message());
    }
    let mut unknown = request(SMALL, &TEXTS);
    unknown.on_low_confidence = Some(LowConfidence {
        action: 9,
        ..LowConfidence::default()
    });
    let error = classify(&running, unknown).await.unwrap_err();
    assert!(error.message().contains("on_low_confidence.action"));
}

#[tokio::test]
async fn documents_below_the_least_score_come_last_without_one() {
    let running = Running::with(&["tiny-bert-rerank"]).await;
    let mut request = RerankRequest {
        options: Some(ModelOptions {
            model: "tiny-bert-rerank".to_owned(),
            ..ModelOptions::default()
        }),
        query: "How do I reset my password?".to_owned(),
        documents: TEXTS.map(String::from).to_vec(),
        ..RerankRequest::default()
    };
    let plain = running
        .typed()
        .rerank(request.clone())
        .await
        .unwrap()
        .into_inner();
    request.min_confidence = f32::midpoint(plain.rows[1].score, plain.rows[2].score);
    request.on_low_confidence = low(LowConfidenceAction::Abstain, "");
    let found = running.typed().rerank(request).await.unwrap().into_inner();
    let abstained: Vec<bool> = found.rows.iter().map(|row| row.abstained).collect();
    assert_eq!(abstained, [false, false, true, true]);
    assert!(found.rows[2].score <= 0.0 && found.rows[1].score > 0.0);
}

#[tokio::test]
async fn a_cascade_that_can_not_work_fails_the_load() {
    let circle = models_of(&[SMALL, LARGE]);
    let to = |model: &str| format!("task = \"classify\"\n[cascade]\nmodel = \"{model}\"");
    write_manifest(circle.path(), SMALL, &to(LARGE));
    write_manifest(circle.path(), LARGE, &to(SMALL));
    let comes_back = format!("the cascade comes back to '{SMALL}': {SMALL} → {LARGE} → {SMALL}");

    let cases = [
        (circle, comes_back.as_str()),
        (with_manifest(&to(SMALL)), "comes back"),
        (
            with_manifest(&to("nobody")),
            "no model 'nobody'; models here: tiny-bert-classify",
        ),
        (
            with_manifest(&to("tiny-bert-multilabel")),
            "the labels of 'tiny-bert-multilabel' are",
        ),
        (
            with_manifest(&to("tiny-bert-embed")),
            "'tiny-bert-embed' does 'embed', not 'classify'",
        ),
        (with_manifest(&to("../x")), "no model '../x'"),
    ];
    for (models, says) in cases {
        let running = Running::serving(models, |_| {}).await;
        let error = classify(&running, request(SMALL, &TEXTS))
            .await
            .unwrap_err();
        assert!(error.message().contains(says), "{}", error.message());
    }
}

fn with_manifest(manifest: &str) -> TempDir {
    let models = models_of(&[SMALL, "tiny-bert-multilabel", "tiny-bert-embed"]);
    write_manifest(models.path(), SMALL, manifest);
    models
}

#[tokio::test]
async fn a_row_goes_through_several_models_and_each_is_named() {
    const LAST: &str = "tiny-roberta-classify";
    let models = cascade(1.0);
    add_version(models.path(), LAST, 1, &fixture(LAST));
    let manifest = format!("task = \"classify\"\n[cascade]\nmodel = \"{LAST}\"\nbelow = 1.0");
    write_manifest(models.path(), LARGE, &manifest);
    let running = Running::serving(models, |_| {}).await;
    let answer = classify(&running, request(SMALL, &TEXTS[..1]))
        .await
        .unwrap();
    let escalation = answer.rows[0].escalation.as_ref().unwrap();
    let from: Vec<_> = escalation
        .escalated_from
        .iter()
        .map(|model| &*model.name)
        .collect();
    assert_eq!(from, [SMALL, LARGE]);
    assert_eq!(escalation.answered_by.as_ref().unwrap().name, LAST);
}
