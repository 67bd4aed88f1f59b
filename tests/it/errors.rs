//! The table of docs/errors.md, line by line: each bad input, its code, and a text that names the
//! field, what was found and what is allowed.

use ferry::api::proto::{
    ferry::v1::{ClassifyRequest, EmbedRequest, ModelOptions, TokenIds},
    inference::{
        InferParameter, InferTensorContents, ModelInferRequest,
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    },
};
use tonic::{Code, Request, Status};

use super::support::{Running, models_of};

const MODEL: &str = "tiny-bert-embed";

fn check(case: &str, error: &Status, code: Code, parts: &[&str]) {
    assert_eq!(error.code(), code, "{case}: {}", error.message());
    for part in parts {
        let message = error.message();
        assert!(
            message.contains(part),
            "{case}: '{part}' not in '{message}'"
        );
    }
}

#[tokio::test]
async fn a_bad_typed_request_is_refused_with_its_field() {
    let running = Running::serving(models_of(&[MODEL, "tiny-bert-classify"]), |config| {
        config.limits.max_rows = 4;
        config.limits.max_text_bytes = 100;
    })
    .await;
    let base = EmbedRequest {
        options: Some(ModelOptions {
            model: MODEL.to_owned(),
            ..ModelOptions::default()
        }),
        texts: vec!["a text".to_owned()],
        ..EmbedRequest::default()
    };
    let with = |change: fn(&mut EmbedRequest)| {
        let mut request = base.clone();
        change(&mut request);
        request
    };
    let options = |change: fn(&mut ModelOptions)| {
        let mut request = base.clone();
        change(request.options.as_mut().unwrap());
        request
    };
    let cases: Vec<(&str, EmbedRequest, Code, &[&str])> = vec![
        (
            "no rows",
            with(|r| r.texts.clear()),
            Code::InvalidArgument,
            &["texts", "0 rows", "1 to 4"],
        ),
        (
            "many rows",
            with(|r| r.texts = vec![String::new(); 5]),
            Code::InvalidArgument,
            &["texts", "5 rows", "1 to 4"],
        ),
        (
            "long text",
            with(|r| r.texts = vec!["x".repeat(101)]),
            Code::InvalidArgument,
            &["texts[0]", "101 bytes", "at most 100"],
        ),
        (
            "both forms",
            with(|r| r.token_ids = vec![TokenIds { ids: vec![1] }]),
            Code::InvalidArgument,
            &["token_ids", "one of"],
        ),
        (
            "unknown id",
            with(|r| {
                r.texts.clear();
                r.token_ids = vec![TokenIds { ids: vec![99_999] }];
            }),
            Code::InvalidArgument,
            &["token_ids[0]", "99999", "ids from 0"],
        ),
        (
            "no ids",
            with(|r| {
                r.texts.clear();
                r.token_ids = vec![TokenIds { ids: vec![] }];
            }),
            Code::InvalidArgument,
            &["token_ids[0]", "at least 1"],
        ),
        (
            "unknown model",
            options(|o| o.model = "nobody".to_owned()),
            Code::NotFound,
            &["'nobody'", MODEL],
        ),
        (
            "path as model",
            options(|o| o.model = "../../etc".to_owned()),
            Code::NotFound,
            &["../../etc"],
        ),
        (
            "unknown version",
            options(|o| o.version = "7".to_owned()),
            Code::NotFound,
            &["'7'", "1"],
        ),
        (
            "unknown truncation",
            options(|o| o.truncation = 9),
            Code::InvalidArgument,
            &["options.truncation", "9", "0 to 3"],
        ),
        (
            "no room",
            options(|o| o.max_tokens = 2),
            Code::InvalidArgument,
            &["max_tokens", "2 special tokens"],
        ),
    ];
    for (case, request, code, parts) in cases {
        let error = running.typed().embed(request).await.unwrap_err();
        check(case, &error, code, parts);
    }
    let wrong_task = ClassifyRequest {
        options: base.options.clone(),
        texts: base.texts.clone(),
        ..ClassifyRequest::default()
    };
    let error = running.typed().classify(wrong_task).await.unwrap_err();
    check(
        "wrong task",
        &error,
        Code::InvalidArgument,
        &["'embed'", "'classify'"],
    );
    for (key, value, part) in [
        (
            "x-ferry-priority",
            "urgent".to_owned(),
            "high, normal or low",
        ),
        ("x-ferry-tenant", "t".repeat(300), "at most 256 bytes"),
        ("grpc-timeout", "soon".to_owned(), "digits"),
    ] {
        let mut request = Request::new(base.clone());
        request.metadata_mut().insert(key, value.parse().unwrap());
        let error = running.typed().embed(request).await.unwrap_err();
        check(key, &error, Code::InvalidArgument, &[key, part]);
    }
    assert!(
        running.typed().embed(base).await.is_ok(),
        "the server is well"
    );
}

fn text_input(rows: i64) -> InferInputTensor {
    InferInputTensor {
        name: "TEXT".to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![rows, 1],
        contents: Some(InferTensorContents {
            bytes_contents: (0..rows).map(|_| b"a text".to_vec()).collect(),
            ..InferTensorContents::default()
        }),
        ..InferInputTensor::default()
    }
}

fn infer(inputs: Vec<InferInputTensor>) -> ModelInferRequest {
    ModelInferRequest {
        model_name: MODEL.to_owned(),
        inputs,
        ..ModelInferRequest::default()
    }
}

fn with_input(change: impl Fn(&mut InferInputTensor)) -> ModelInferRequest {
    let mut input = text_input(2);
    change(&mut input);
    infer(vec![input])
}

fn parameter(value: ParameterChoice) -> InferParameter {
    InferParameter {
        parameter_choice: Some(value),
    }
}

#[tokio::test]
async fn a_bad_tensor_is_refused_with_its_name() {
    let running = Running::with(&[MODEL]).await;
    let ids = |shape: Vec<i64>, ids: Vec<i64>| {
        infer(vec![InferInputTensor {
            name: "INPUT_IDS".to_owned(),
            datatype: "INT64".to_owned(),
            shape,
            contents: Some(InferTensorContents {
                int64_contents: ids,
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        }])
    };
    let raw = |contents: Vec<&[u8]>| {
        let mut request = with_input(|input| input.contents = None);
        request.raw_input_contents = contents
            .into_iter()
            .map(|raw| raw.to_vec().into())
            .collect();
        request
    };
    let output = |name: &str, classes: Option<i64>| {
        let mut request = infer(vec![text_input(1)]);
        let parameters = classes.map(|count| {
            let count = parameter(ParameterChoice::Int64Param(count));
            ("classification".to_owned(), count)
        });
        request.outputs.push(InferRequestedOutputTensor {
            name: name.to_owned(),
            parameters: parameters.into_iter().collect(),
        });
        request
    };
    let option = |name: &str, value: ParameterChoice| {
        let mut request = infer(vec![text_input(1)]);
        request.parameters.insert(name.to_owned(), parameter(value));
        request
    };
    let utf8 = |input: &mut InferInputTensor| {
        input.contents.as_mut().unwrap().bytes_contents[1] = vec![b'a', 0xff];
    };
    let invalid = Code::InvalidArgument;
    let cases: Vec<(&str, ModelInferRequest, Code, &[&str])> = vec![
        ("no inputs", infer(vec![]), invalid, &["TEXT"]),
        (
            "unknown input",
            with_input(|i| i.name = "TXT".to_owned()),
            invalid,
            &["'TXT'", "TEXT, INPUT_IDS"],
        ),
        (
            "twice",
            infer(vec![text_input(1), text_input(1)]),
            invalid,
            &["'TEXT'", "twice"],
        ),
        (
            "wrong type",
            with_input(|i| i.datatype = "FP32".to_owned()),
            invalid,
            &["'TEXT'", "FP32", "BYTES"],
        ),
        (
            "rank",
            with_input(|i| i.shape = vec![2]),
            invalid,
            &["shape", "[2]", "[rows, 1]"],
        ),
        (
            "width",
            with_input(|i| i.shape = vec![1, 2]),
            invalid,
            &["shape", "[1, 2]"],
        ),
        (
            "zero rows",
            with_input(|i| i.shape = vec![0, 1]),
            invalid,
            &["shape", "[0, 1]"],
        ),
        (
            "negative",
            with_input(|i| i.shape = vec![-1, 1]),
            invalid,
            &["shape", "[-1, 1]"],
        ),
        (
            "overflow",
            with_input(|i| i.shape = vec![i64::MAX, i64::MAX]),
            invalid,
            &["shape"],
        ),
        (
            "too few",
            with_input(|i| i.shape = vec![3, 1]),
            invalid,
            &["2 elements", "3"],
        ),
        (
            "no data",
            with_input(|i| i.contents = None),
            invalid,
            &["no data"],
        ),
        (
            "other contents",
            with_input(|i| i.contents.as_mut().unwrap().fp32_contents = vec![1.0]),
            invalid,
            &["fp32_contents", "bytes_contents"],
        ),
        (
            "utf-8",
            with_input(utf8),
            invalid,
            &["TEXT[1]", "UTF-8 at byte 1"],
        ),
        (
            "raw lengths",
            raw(vec![&[9, 0, 0, 0, 1]]),
            invalid,
            &["don't add up"],
        ),
        (
            "raw count",
            raw(vec![&[0, 0, 0, 0]]),
            invalid,
            &["1 elements", "2"],
        ),
        (
            "raw entries",
            raw(vec![&[], &[]]),
            invalid,
            &["raw_input_contents", "2 entries"],
        ),
        (
            "ids count",
            ids(vec![1, 3], vec![1, 2]),
            invalid,
            &["2 elements", "3"],
        ),
        (
            "ids range",
            ids(vec![1, 2], vec![1, -2]),
            invalid,
            &["INPUT_IDS[0]", "-2"],
        ),
        (
            "ids vocabulary",
            ids(vec![1, 1], vec![1 << 20]),
            invalid,
            &["INPUT_IDS[0]", "1048576"],
        ),
        (
            "unknown output",
            output("VECTOR", None),
            invalid,
            &["'VECTOR'", "EMBEDDING"],
        ),
        (
            "classes of ints",
            output("TOKEN_COUNT", Some(2)),
            invalid,
            &["classification", "FP32"],
        ),
        (
            "zero classes",
            output("EMBEDDING", Some(0)),
            invalid,
            &["classification 0"],
        ),
        (
            "truncation",
            option("truncation", ParameterChoice::StringParam("up".to_owned())),
            invalid,
            &["truncation", "right, left or error"],
        ),
        (
            "timeout",
            option("timeout", ParameterChoice::Int64Param(-1)),
            invalid,
            &["timeout", "whole number"],
        ),
        (
            "shared memory",
            with_input(|i| {
                i.parameters.insert(
                    "shared_memory_region".to_owned(),
                    parameter(ParameterChoice::StringParam("r".to_owned())),
                );
            }),
            Code::Unimplemented,
            &["shared memory"],
        ),
        (
            "unknown model",
            ModelInferRequest {
                model_name: "nobody".to_owned(),
                ..infer(vec![text_input(1)])
            },
            Code::NotFound,
            &["nobody"],
        ),
        (
            "unknown version",
            ModelInferRequest {
                model_version: "9".to_owned(),
                ..infer(vec![text_input(1)])
            },
            Code::NotFound,
            &["'9'"],
        ),
    ];
    for (case, request, code, parts) in cases {
        let error = running.open().model_infer(request).await;
        let error = error.err().unwrap_or_else(|| panic!("{case} was answered"));
        check(case, &error, code, parts);
    }
    let good = infer(vec![text_input(2)]);
    assert!(
        running.open().model_infer(good).await.is_ok(),
        "the server is well"
    );
}
