//! Keys that open some models only, over each protocol.

use ferry::{
    api::proto::{
        ferry::v1::{
            ClassifyRequest, EmbedRequest, ExplainClass, ExplainRequest, GenerateRequest, JobRow,
            JobRows, JobState, LowConfidence, LowConfidenceAction, ModelOptions, ResultsForm,
            ResultsRequest, StreamRequest, SubmitRequest, TokenizeRequest, WatchJobRequest,
            explain_request::Explained, job_result::Result as Ended, job_row::Request as Asked,
            jobs_client::JobsClient, results_response, stream_request::Task,
            stream_response::Answer, submit_request::Part,
        },
        inference as pb,
    },
    config::auth::ApiKey,
};
use serde_json::{Value, json};
use tonic::{Code, Request, Status, metadata::MetadataValue};

use super::{
    openai::{self, send},
    support::{Running, models_of},
};

/// What the key `some` opens.
const OPEN: &str = "tiny-bert-embed";
/// What it does not.
const CLOSED: &str = "tiny-bert-classify";

/// A server with a key for everything and one for models that begin as [`OPEN`] does.
struct Gated {
    running: Running,
    _kept: tempfile::TempDir,
    _keys: tempfile::NamedTempFile,
}

impl Gated {
    async fn start() -> Self {
        let (kept, keys) = (
            tempfile::tempdir().unwrap(),
            tempfile::NamedTempFile::new().unwrap(),
        );
        let key = |name: &str, models: &str| {
            let hash = ApiKey::write_hash(&format!("secret-{name}"));
            format!(
                "[[key]]\nname = \"{name}\"\ntenant = \"t\"\nhash = \"{hash}\"\n\
                 scopes = [\"infer\", \"jobs\", \"operate\"]\n{models}\n"
            )
        };
        let some = key("some", "models = [\"nothing\", \"tiny-bert-e*\"]");
        let one = key("one", &format!("models = [\"{CLOSED}\"]"));
        let text = format!("[[tenant]]\nname = \"t\"\n{}{some}{one}", key("all", ""));
        std::fs::write(keys.path(), text).unwrap();
        let (file, directory) = (keys.path().to_owned(), kept.path().to_owned());
        let models = models_of(&[OPEN, CLOSED, "tiny-roberta-classify"]);
        let running = Running::serving(models, |config| {
            config.auth.keys_file = Some(file);
            config.jobs.directory = directory;
        })
        .await;
        Self {
            running,
            _kept: kept,
            _keys: keys,
        }
    }

    async fn http(&self, method: &str, path: &str, key: &str, body: &Value) -> openai::Answer {
        let headers = format!("x-api-key: secret-{key}\r\n");
        let body = if method == "GET" {
            String::new()
        } else {
            body.to_string()
        };
        send(&self.running, method, path, &headers, &body).await
    }
}

fn with_key<T>(message: T, key: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer secret-{key}")).unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn options(model: &str) -> Option<ModelOptions> {
    Some(ModelOptions {
        model: model.to_owned(),
        ..ModelOptions::default()
    })
}

fn embed(model: &str) -> EmbedRequest {
    EmbedRequest {
        options: options(model),
        texts: vec!["a text".to_owned()],
        ..EmbedRequest::default()
    }
}

fn classify(model: &str) -> ClassifyRequest {
    ClassifyRequest {
        options: options(model),
        texts: vec!["a text".to_owned()],
        ..ClassifyRequest::default()
    }
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test]
async fn a_key_asks_the_models_it_names_and_no_others() {
    let gated = Gated::start().await;
    let mut client = gated.running.typed();
    let refused = Code::PermissionDenied;
    assert_eq!(
        code(client.embed(with_key(embed(OPEN), "some")).await),
        Code::Ok
    );
    let status = client
        .classify(with_key(classify(CLOSED), "some"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), refused);
    assert!(
        status
            .message()
            .contains("key 'some' opens the models nothing, tiny-bert-e*"),
        "{status}"
    );
    assert_eq!(
        code(client.classify(with_key(classify(CLOSED), "all")).await),
        Code::Ok
    );
    // What is not there is refused alike: nobody learns what there is.
    let status = client
        .embed(with_key(embed("other"), "some"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), refused);
    let status = client
        .embed(with_key(embed("nothing"), "some"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(!status.message().contains(CLOSED), "{status}");
    // A call that names none is for the only one that does this; it must be open, too.
    assert_eq!(
        code(client.embed(with_key(embed(""), "some")).await),
        Code::Ok
    );
    let status = client
        .classify(with_key(classify(""), "some"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), refused);
    assert!(!status.message().contains(CLOSED), "{status}");

    let tokenize = TokenizeRequest {
        options: options(CLOSED),
        texts: vec!["a".to_owned()],
        ..TokenizeRequest::default()
    };
    assert_eq!(
        code(client.tokenize(with_key(tokenize, "some")).await),
        refused
    );
    let explain = ExplainRequest {
        options: options(CLOSED),
        explained: Some(Explained::Classify(ExplainClass {
            text: "a text".to_owned(),
            ..ExplainClass::default()
        })),
        ..ExplainRequest::default()
    };
    assert_eq!(
        code(client.explain(with_key(explain, "some")).await),
        refused
    );
    let generate = GenerateRequest {
        model: "llama".to_owned(),
        prompt: Some(ferry::api::proto::ferry::v1::generate_request::Prompt::Text("a".to_owned())),
        ..GenerateRequest::default()
    };
    assert_eq!(
        code(client.generate(with_key(generate, "some")).await),
        refused
    );

    let metrics = String::from_utf8(gated.running.server.metrics().render()).unwrap();
    assert!(
        metrics.contains("ferry_callers_refused_total{reason=\"model\"} 6"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_request_can_not_fall_back_to_a_model_that_its_key_does_not_open() {
    let gated = Gated::start().await;
    let mut request = classify(CLOSED);
    request.min_confidence = 1.0;
    request.on_low_confidence = Some(LowConfidence {
        action: LowConfidenceAction::FallBack.into(),
        fallback_model: "tiny-roberta-classify".to_owned(),
        ..LowConfidence::default()
    });
    let mut client = gated.running.typed();
    let status = client
        .classify(with_key(request.clone(), "one"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    // With a key for both, the model there answers, or says what is wrong with it.
    let answer = client.classify(with_key(request, "all")).await;
    assert_ne!(code(answer), Code::PermissionDenied);
}

#[tokio::test]
async fn each_request_of_a_stream_is_looked_at() {
    let gated = Gated::start().await;
    let requests = [OPEN, CLOSED].map(|model| StreamRequest {
        id: model.to_owned(),
        task: Some(Task::Embed(embed(model))),
    });
    let request = with_key(tokio_stream::iter(requests), "some");
    let mut client = gated.running.typed();
    let mut answers = client.stream(request).await.unwrap().into_inner();
    let mut codes = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let code = match answer.answer {
            Some(Answer::Error(error)) => Code::from(error.code),
            _ => Code::Ok,
        };
        codes.push((answer.id, code));
    }
    codes.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(
        codes,
        [
            (CLOSED.to_owned(), Code::PermissionDenied),
            (OPEN.to_owned(), Code::Ok),
        ]
    );

    let requests = [OPEN, CLOSED].map(infer);
    let request = with_key(tokio_stream::iter(requests), "some");
    let mut open = gated.running.open();
    let mut answers = open.model_stream_infer(request).await.unwrap().into_inner();
    let mut errors = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        errors.push(answer.error_message);
    }
    errors.sort();
    assert!(
        errors[0].is_empty() && errors[1].starts_with("not permitted"),
        "{errors:?}"
    );
}

fn infer(model: &str) -> pb::ModelInferRequest {
    use pb::{InferTensorContents, model_infer_request::InferInputTensor};
    pb::ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: "TEXT".to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![1, 1],
            contents: Some(InferTensorContents {
                bytes_contents: vec![b"a text".to_vec()],
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        }],
        ..pb::ModelInferRequest::default()
    }
}

#[tokio::test]
async fn the_open_inference_protocol_tells_of_the_models_that_the_key_opens() {
    let gated = Gated::start().await;
    let mut client = gated.running.open();
    for (model, expected) in [(OPEN, Code::Ok), (CLOSED, Code::PermissionDenied)] {
        let name = || model.to_owned();
        let metadata = pb::ModelMetadataRequest {
            name: name(),
            ..pb::ModelMetadataRequest::default()
        };
        let config = pb::ModelConfigRequest {
            name: name(),
            ..pb::ModelConfigRequest::default()
        };
        let statistics = pb::ModelStatisticsRequest {
            name: name(),
            ..pb::ModelStatisticsRequest::default()
        };
        let load = pb::RepositoryModelLoadRequest {
            model_name: name(),
            ..pb::RepositoryModelLoadRequest::default()
        };
        let codes = [
            code(client.model_infer(with_key(infer(model), "some")).await),
            code(client.model_metadata(with_key(metadata, "some")).await),
            code(client.model_config(with_key(config, "some")).await),
            code(client.model_statistics(with_key(statistics, "some")).await),
            code(client.repository_model_load(with_key(load, "some")).await),
        ];
        assert_eq!(codes, [expected; 5], "{model}");
    }
    for (key, count) in [("some", 1), ("all", 3)] {
        let all = pb::ModelStatisticsRequest::default();
        let told = client.model_statistics(with_key(all, key)).await.unwrap();
        assert_eq!(told.into_inner().model_stats.len(), count, "{key}");
        let all = pb::RepositoryIndexRequest::default();
        let told = client.repository_index(with_key(all, key)).await.unwrap();
        assert_eq!(told.into_inner().models.len(), count, "{key}");
    }
}

#[tokio::test]
async fn over_http_a_key_asks_and_sees_the_models_it_names() {
    let gated = Gated::start().await;
    let body = |model: &str| json!({"model": model, "input": "a text"});
    let status = async |path: &str, key: &str, model: &str| {
        gated.http("POST", path, key, &body(model)).await.status
    };
    assert_eq!(status("/v1/embeddings", "some", OPEN).await, 200);
    assert_eq!(status("/v1/embeddings", "some", CLOSED).await, 403);
    let chat = json!({"model": "llama", "messages": [{"role": "user", "content": "a"}]});
    let answer = gated
        .http("POST", "/v1/chat/completions", "some", &chat)
        .await;
    assert_eq!(answer.status, 403, "{}", answer.body);

    let names = async |key: &str| {
        let models = gated
            .http("GET", "/v1/models", key, &Value::Null)
            .await
            .json();
        let models = models["data"].as_array().unwrap().clone();
        models
            .into_iter()
            .map(|model| model["id"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("some").await, [OPEN]);
    assert_eq!(names("all").await.len(), 3);
    for (model, expected) in [(OPEN, 200), (CLOSED, 403), ("other", 403)] {
        let path = format!("/v1/models/{model}");
        let answer = gated.http("GET", &path, "some", &Value::Null).await;
        assert_eq!(answer.status, expected, "{model}");
    }
    let page = gated
        .http("GET", "/dashboard/status", "some", &Value::Null)
        .await;
    assert!(
        page.body.contains(OPEN) && !page.body.contains(CLOSED),
        "{}",
        page.body
    );

    // `ferry.v1` as JSON.
    let ask = |model: &str| json!({"options": {"model": model}, "texts": ["a text"]});
    let path = "/ferry.v1.Inference/Embed";
    assert_eq!(
        gated.http("POST", path, "some", &ask(OPEN)).await.status,
        200
    );
    let refused = gated.http("POST", path, "some", &ask(CLOSED)).await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.json()["code"], "permission_denied");
}

#[tokio::test]
async fn a_jobs_rows_ask_the_models_that_its_submitters_key_opens() {
    let gated = Gated::start().await;
    let mut client = JobsClient::new(gated.running.channel());
    let submit = |rows: Vec<Asked>| {
        let rows = rows.into_iter().map(|request| JobRow {
            id: String::new(),
            request: Some(request),
        });
        let part = Part::Rows(JobRows {
            rows: rows.collect(),
        });
        with_key(
            tokio_stream::iter([SubmitRequest { part: Some(part) }]),
            "some",
        )
    };
    let rows = vec![Asked::Embed(embed(OPEN)), Asked::Classify(classify(CLOSED))];
    let status = client.submit(submit(rows)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("rows[1]"), "{status}");

    // Which model a row is for that names none shows when it is run.
    let rows = vec![Asked::Embed(embed("")), Asked::Classify(classify(""))];
    let job = client.submit(submit(rows)).await.unwrap().into_inner();
    let watch = WatchJobRequest { id: job.id.clone() };
    let mut states = client
        .watch(with_key(watch, "some"))
        .await
        .unwrap()
        .into_inner();
    while let Some(job) = states.message().await.unwrap() {
        assert_ne!(job.state(), JobState::Failed);
    }
    let request = ResultsRequest {
        id: job.id,
        form: ResultsForm::Typed.into(),
        ..ResultsRequest::default()
    };
    let mut results = client
        .results(with_key(request, "some"))
        .await
        .unwrap()
        .into_inner();
    let mut codes = Vec::new();
    while let Some(message) = results.message().await.unwrap() {
        if let Some(results_response::Part::Result(result)) = message.part {
            codes.push(match result.result {
                Some(Ended::Error(error)) => Code::from(error.code),
                _ => Code::Ok,
            });
        }
    }
    assert_eq!(codes, [Code::Ok, Code::PermissionDenied]);
}

#[tokio::test]
async fn a_batchs_lines_ask_the_models_that_its_creators_key_opens() {
    let gated = Gated::start().await;
    let line = |id: &str, model: &str| {
        let body = json!({"model": model, "input": "a text"});
        json!({"custom_id": id, "method": "POST", "url": "/v1/embeddings", "body": body})
    };
    let body = format!(
        "--cut\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
         --cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n\
         {}\n{}\n\r\n--cut--\r\n",
        line("a", OPEN),
        line("b", CLOSED)
    );
    let headers = "x-api-key: secret-all\r\ncontent-type: multipart/form-data; boundary=cut\r\n";
    // The file is somebody else's; what counts is who has it run.
    let file = send(&gated.running, "POST", "/v1/files", headers, &body)
        .await
        .json();
    let create = json!({"input_file_id": file["id"], "endpoint": "/v1/embeddings",
        "completion_window": "24h"});
    let batch = gated
        .http("POST", "/v1/batches", "some", &create)
        .await
        .json();
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let ended = loop {
        let batch = gated.http("GET", &path, "some", &Value::Null).await.json();
        if batch["status"] == "completed" {
            break batch;
        }
        assert_ne!(batch["status"], "failed", "{batch}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let counts = &ended["request_counts"];
    assert_eq!(
        (&counts["completed"], &counts["failed"]),
        (&json!(1), &json!(1))
    );
    let errors = format!(
        "/v1/files/{}/content",
        ended["error_file_id"].as_str().unwrap()
    );
    let errors = gated
        .http("GET", &errors, "some", &Value::Null)
        .await
        .json();
    assert_eq!(errors["response"]["status_code"], 403, "{errors}");
}
