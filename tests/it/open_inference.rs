//! The Open Inference Protocol over a real socket. Triton's own clients are run against the server
//! by tests/clients; here is what they don't show.

use std::collections::BTreeSet;

use ferry::api::proto::inference::{
    InferParameter, InferTensorContents, ModelConfigRequest, ModelInferRequest, ModelInferResponse,
    ModelStatisticsRequest, RepositoryIndexRequest, RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use tonic::Code;

use super::support::{Running, cosine};

fn bytes(name: &str, texts: &[&str]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![texts.len() as i64, 1],
        contents: Some(InferTensorContents {
            bytes_contents: texts.iter().map(|text| text.as_bytes().to_vec()).collect(),
            ..InferTensorContents::default()
        }),
        ..InferInputTensor::default()
    }
}

fn request(model: &str, inputs: Vec<InferInputTensor>) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        id: "r1".to_owned(),
        inputs,
        ..ModelInferRequest::default()
    }
}

fn floats(response: &ModelInferResponse, name: &str) -> Vec<f32> {
    let at = response
        .outputs
        .iter()
        .position(|output| output.name == name);
    let raw = &response.raw_output_contents[at.unwrap()];
    let (values, rest) = raw.as_chunks::<4>();
    assert!(rest.is_empty());
    values
        .iter()
        .map(|value| f32::from_le_bytes(*value))
        .collect()
}

fn strings(response: &ModelInferResponse, name: &str) -> Vec<String> {
    let at = response
        .outputs
        .iter()
        .position(|output| output.name == name);
    let mut raw = &response.raw_output_contents[at.unwrap()][..];
    let mut found = Vec::new();
    while let Some((length, rest)) = raw.split_first_chunk::<4>() {
        let (text, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        found.push(String::from_utf8(text.to_vec()).unwrap());
        raw = rest;
    }
    found
}

#[tokio::test]
async fn padded_ids_with_their_mask_give_the_answer_of_the_texts() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let ids = |name: &str, values: Vec<i64>| InferInputTensor {
        name: name.to_owned(),
        datatype: "INT64".to_owned(),
        shape: vec![2, 5],
        contents: Some(InferTensorContents {
            int64_contents: values,
            ..InferTensorContents::default()
        }),
        ..InferInputTensor::default()
    };
    let inputs = vec![
        ids("INPUT_IDS", vec![2, 40, 3, 0, 0, 2, 41, 42, 43, 3]),
        ids("ATTENTION_MASK", vec![1, 1, 1, 0, 0, 1, 1, 1, 1, 1]),
    ];
    let mut open = running.open();
    let both = open.model_infer(request("tiny-bert-embed", inputs)).await;
    let both = floats(&both.unwrap().into_inner(), "EMBEDDING");
    let mut alone = ids("INPUT_IDS", vec![2, 40, 3]);
    alone.shape = vec![1, 3];
    let alone = open
        .model_infer(request("tiny-bert-embed", vec![alone]))
        .await;
    let alone = floats(&alone.unwrap().into_inner(), "EMBEDDING");
    assert!(cosine(&both[..alone.len()], &alone) > 0.999_999);
}

#[tokio::test]
async fn only_the_outputs_asked_for_come_back_in_their_order() {
    let running = Running::with(&["tiny-bert-classify"]).await;
    let mut asked = request("tiny-bert-classify", vec![bytes("TEXT", &["a", "b"])]);
    asked.outputs = ["CONFIDENCE", "LABEL", "SCORES"]
        .map(|name| InferRequestedOutputTensor {
            name: name.to_owned(),
            ..InferRequestedOutputTensor::default()
        })
        .to_vec();
    let answer = running
        .open()
        .model_infer(asked)
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = answer.outputs.iter().map(|output| &*output.name).collect();
    assert_eq!(names, ["CONFIDENCE", "LABEL", "SCORES"]);
    assert_eq!((&*answer.id, &*answer.model_version), ("r1", "1"));
    let scores = floats(&answer, "SCORES");
    let best = scores[..3].iter().copied().fold(0.0, f32::max);
    assert!((floats(&answer, "CONFIDENCE")[0] - best).abs() < 1e-6);
    assert_eq!(strings(&answer, "LABEL").len(), 2);
    for time in ["queue_us", "execute_us", "total_us"] {
        assert!(answer.parameters.contains_key(time), "{time}");
    }
}

#[tokio::test]
async fn the_classification_extension_gives_value_index_and_label() {
    let running = Running::with(&["tiny-bert-classify"]).await;
    let mut asked = request("tiny-bert-classify", vec![bytes("TEXT", &["a boat"])]);
    let count = InferParameter {
        parameter_choice: Some(ParameterChoice::Int64Param(2)),
    };
    asked.outputs = vec![InferRequestedOutputTensor {
        name: "SCORES".to_owned(),
        parameters: [("classification".to_owned(), count)].into(),
    }];
    let answer = running
        .open()
        .model_infer(asked)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.outputs[0].shape, [1, 2]);
    let classes = strings(&answer, "SCORES");
    let value = |class: &str| class.split(':').next().unwrap().parse::<f32>().unwrap();
    assert!(value(&classes[0]) >= value(&classes[1]));
    assert_eq!(classes[0].split(':').count(), 3);
}

#[tokio::test]
async fn pairs_and_spans_have_tensors_too() {
    let running = Running::with(&["tiny-bert-rerank", "tiny-bert-tokens"]).await;
    let inputs = vec![
        bytes("QUERY", &["who?", "who?"]),
        bytes("TEXT", &["me", "you"]),
    ];
    let answer = running
        .open()
        .model_infer(request("tiny-bert-rerank", inputs))
        .await;
    let answer = answer.unwrap().into_inner();
    let (scores, logits) = (floats(&answer, "SCORE"), floats(&answer, "LOGIT"));
    for (score, logit) in scores.iter().zip(logits) {
        assert!((score - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-6);
    }
    let text = "Ærø and Ada in the small boat";
    let inputs = vec![bytes("TEXT", &[text])];
    let answer = running
        .open()
        .model_infer(request("tiny-bert-tokens", inputs))
        .await;
    let spans: serde_json::Value =
        serde_json::from_str(&strings(&answer.unwrap().into_inner(), "ENTITIES")[0]).unwrap();
    for span in spans.as_array().unwrap() {
        let start = span["start"].as_u64().unwrap() as usize;
        let length = span["end"].as_u64().unwrap() as usize - start;
        let found: String = text.chars().skip(start).take(length).collect();
        assert_eq!(span["text"], found);
    }
}

#[tokio::test]
async fn statistics_add_up() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let mut open = running.open();
    for _ in 0..5 {
        let inputs = vec![bytes("TEXT", &["a", "b", "c"])];
        open.model_infer(request("tiny-bert-embed", inputs))
            .await
            .unwrap();
    }
    open.model_infer(request("tiny-bert-embed", vec![]))
        .await
        .unwrap_err();
    let asked = ModelStatisticsRequest::default();
    let answer = open.model_statistics(asked).await.unwrap().into_inner();
    let statistics = &answer.model_stats[0];
    assert_eq!(statistics.inference_count, 15);
    let requests = statistics.inference_stats.as_ref().unwrap();
    let success = requests.success.unwrap();
    assert_eq!((success.count, requests.fail.unwrap().count), (5, 1));
    let parts = [
        requests.queue,
        requests.compute_input,
        requests.compute_infer,
        requests.compute_output,
    ];
    assert!(parts.iter().all(|part| part.unwrap().count == 5));
    let sum: u64 = parts.iter().map(|part| part.unwrap().ns).sum();
    assert!(sum <= success.ns, "{sum} of {}", success.ns);
    let by_size = &statistics.batch_stats;
    let batches: u64 = by_size
        .iter()
        .map(|size| size.compute_infer.unwrap().count)
        .sum();
    let rows: u64 = by_size
        .iter()
        .map(|size| size.batch_size * size.compute_infer.unwrap().count)
        .sum();
    assert_eq!((batches, rows), (statistics.execution_count, 15));
}

#[tokio::test]
async fn a_stream_tells_errors_in_the_message_and_goes_on() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let requests: Vec<_> = (0..60)
        .map(|at| {
            let model = if at % 3 == 0 {
                "nobody"
            } else {
                "tiny-bert-embed"
            };
            let mut asked = request(model, vec![bytes("TEXT", &["a text"])]);
            asked.id = at.to_string();
            asked
        })
        .collect();
    let answers = running
        .open()
        .model_stream_infer(tokio_stream::iter(requests))
        .await;
    let mut answers = answers.unwrap().into_inner();
    let mut seen = BTreeSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let response = answer.infer_response.unwrap();
        let id: u32 = response.id.parse().unwrap();
        assert!(seen.insert(id), "{id} answered twice");
        assert_eq!(answer.error_message.is_empty(), !id.is_multiple_of(3));
        assert_eq!(response.outputs.is_empty(), id.is_multiple_of(3));
    }
    assert_eq!(seen.len(), 60);
}

#[tokio::test]
async fn models_are_unloaded_and_loaded_again() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let mut open = running.open();
    let name = || "tiny-bert-embed".to_owned();
    let unload = RepositoryModelUnloadRequest {
        model_name: name(),
        ..RepositoryModelUnloadRequest::default()
    };
    open.repository_model_unload(unload).await.unwrap();
    let asked = || request("tiny-bert-embed", vec![bytes("TEXT", &["a"])]);
    let error = open.model_infer(asked()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("unloaded"));
    let index = open
        .repository_index(RepositoryIndexRequest::default())
        .await;
    let index = index.unwrap().into_inner();
    assert_eq!(index.models[0].state, "UNAVAILABLE");
    let load = |model_name: String| RepositoryModelLoadRequest {
        model_name,
        ..RepositoryModelLoadRequest::default()
    };
    open.repository_model_load(load(name())).await.unwrap();
    open.model_infer(asked()).await.unwrap();
    for wrong in ["nobody", "../tiny-bert-embed", "", "/etc"] {
        let error = open.repository_model_load(load(wrong.to_owned())).await;
        assert_eq!(error.unwrap_err().code(), Code::NotFound, "{wrong}");
    }
}

#[tokio::test]
async fn the_configuration_tells_how_requests_are_batched() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let asked = ModelConfigRequest {
        name: "tiny-bert-embed".to_owned(),
        ..ModelConfigRequest::default()
    };
    let answer = running
        .open()
        .model_config(asked)
        .await
        .unwrap()
        .into_inner();
    let config = answer.config.unwrap();
    assert_eq!(config.max_batch_size, 1024);
    assert!(config.input.iter().all(|input| input.optional));
    assert!(config.scheduling_choice.is_some());
}
