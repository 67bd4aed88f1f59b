//! The dashboard's files and what it asks for; the typed calls as JSON over HTTP.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::Running;

async fn post(running: &Running, path: &str, body: &[u8]) -> (u16, Value) {
    let mut socket = tokio::net::TcpStream::connect(running.server.http_address)
        .await
        .unwrap();
    let head = format!(
        "POST {path} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn the_page_and_its_files_are_served_with_a_policy_that_keeps_others_out() {
    let running = Running::with(&["tiny-bert-classify"]).await;
    let (status, page) = running.http("/dashboard/").await;
    assert_eq!(status, 200);
    assert!(page.contains("<title>Ferry</title>"));
    for file in [
        "main.js",
        "metrics.js",
        "charts.js",
        "models.js",
        "playground.js",
        "style.css",
    ] {
        assert_eq!(
            running.http(&format!("/dashboard/{file}")).await.0,
            200,
            "{file}"
        );
    }
    assert_eq!(running.http("/dashboard/../Cargo.toml").await.0, 404);
    assert_eq!(running.http("/dashboard/passwd").await.0, 404);
    assert_eq!(running.http("/").await.0, 307);
}

#[tokio::test]
async fn the_page_learns_of_models_versions_and_routes() {
    let running = Running::with(&["tiny-bert-classify"]).await;
    let (status, body) = running.http("/dashboard/status").await;
    assert_eq!(status, 200);
    let status: Value = serde_json::from_str(&body).unwrap();
    let model = &status["models"][0];
    assert_eq!(model["name"], "tiny-bert-classify");
    assert_eq!(model["route"]["stable"], 1);
    assert_eq!(model["versions"][0]["state"], "VERSION_STATE_READY");
}

#[tokio::test]
async fn a_dashboard_that_is_off_is_not_there() {
    let models = super::support::models_of(&["tiny-bert-classify"]);
    let running = Running::serving(models, |config| config.http.dashboard = false).await;
    assert_eq!(running.http("/dashboard/").await.0, 404);
    assert_eq!(running.http("/dashboard/status").await.0, 404);
}

#[tokio::test]
async fn typed_calls_are_answered_as_json_too() {
    let running =
        Running::with(&["tiny-bert-classify", "tiny-bert-embed", "tiny-bert-tokens"]).await;
    let ask = async |method: &str, model: &str| {
        let body = json!({"options": {"model": model}, "texts": ["hello world"]}).to_string();
        let path = format!("/ferry.v1.Inference/{method}");
        post(&running, &path, body.as_bytes()).await
    };
    let (status, answer) = ask("Classify", "tiny-bert-classify").await;
    assert_eq!(status, 200, "{answer}");
    let row = &answer["rows"][0];
    assert_eq!(answer["model"]["name"], "tiny-bert-classify");
    assert!(row["confidence"].as_f64().unwrap() > 0.0, "{row}");
    // What gRPC says of the same.
    let request = ferry::api::proto::ferry::v1::ClassifyRequest {
        options: Some(ferry::api::proto::ferry::v1::ModelOptions {
            model: "tiny-bert-classify".to_owned(),
            ..Default::default()
        }),
        texts: vec!["hello world".to_owned()],
        ..Default::default()
    };
    let typed = running
        .typed()
        .classify(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(row["label"], json!(typed.rows[0].label));
    let told = row["confidence"].as_f64().unwrap() as f32;
    assert!((told - typed.rows[0].confidence).abs() < 1e-6, "{row}");
    assert_eq!(ask("Embed", "tiny-bert-embed").await.0, 200);
    assert_eq!(ask("Tokenize", "tiny-bert-embed").await.0, 200);
    assert_eq!(ask("ClassifyTokens", "tiny-bert-tokens").await.0, 200);
}

#[tokio::test]
async fn a_typed_call_over_http_that_is_wrong_is_told_why_in_connects_form() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let nobody = json!({"options": {"model": "nobody"}, "texts": ["a"]}).to_string();
    for (method, body, status, code, part) in [
        ("Embed", nobody.as_str(), 404, "not_found", "nobody"),
        (
            "Embed",
            "{\"texts\":",
            400,
            "invalid_argument",
            "EmbedRequest",
        ),
        ("Embed", "{\"text\": []}", 400, "invalid_argument", "text"),
        ("Embed", "", 400, "invalid_argument", "texts"),
        ("Embed", "\u{0}", 400, "invalid_argument", "EmbedRequest"),
        ("Chat", "{}", 501, "unimplemented", "/v1/chat/completions"),
        ("Fly", "{}", 501, "unimplemented", "Fly"),
    ] {
        let path = format!("/ferry.v1.Inference/{method}");
        let (found, answer) = post(&running, &path, body.as_bytes()).await;
        assert_eq!(
            (found, &answer["code"]),
            (status, &json!(code)),
            "{body}: {answer}"
        );
        assert!(
            answer["message"].as_str().unwrap().contains(part),
            "{answer}"
        );
    }
}
