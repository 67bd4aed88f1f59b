//! A thousand malformed requests: each is answered with the caller's fault, and the server is well
//! after.

#[path = "../../fuzz/targets/raw_codec.rs"]
mod raw_codec;

use std::collections::BTreeMap;

use ferry::api::proto::{
    ferry::v1::{EmbedRequest, ModelOptions},
    inference::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor},
};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};

use self::raw_codec::RawCodec;
use super::support::Running;

/// xorshift64*, so that a failure can be run again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.roll(256) as u8).collect()
    }
}

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const EMBED: &str = "/ferry.v1.Inference/Embed";
const METHODS: [&str; 10] = [
    INFER,
    EMBED,
    "/ferry.v1.Inference/Classify",
    "/ferry.v1.Inference/Rerank",
    "/ferry.v1.Inference/ClassifyTokens",
    "/ferry.v1.Inference/Tokenize",
    "/inference.GRPCInferenceService/ModelMetadata",
    "/inference.GRPCInferenceService/ModelConfig",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/LogSettings",
];

fn good_embed() -> EmbedRequest {
    EmbedRequest {
        options: Some(ModelOptions {
            model: "tiny-bert-embed".to_owned(),
            ..ModelOptions::default()
        }),
        texts: vec!["a text".to_owned(), "another".to_owned()],
        ..EmbedRequest::default()
    }
}

fn good_infer() -> ModelInferRequest {
    ModelInferRequest {
        model_name: "tiny-bert-embed".to_owned(),
        inputs: vec![InferInputTensor {
            name: "TEXT".to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![2, 1],
            contents: Some(InferTensorContents {
                bytes_contents: vec![b"a text".to_vec(), b"another".to_vec()],
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        }],
        ..ModelInferRequest::default()
    }
}

/// One malformed request: its method, its bytes and, where the fault is certain, that it must fail.
fn make(dice: &mut Dice, kind: u64) -> (&'static str, Vec<u8>, bool) {
    match kind {
        // Noise.
        0 => {
            let length = dice.roll(200) as usize + 1;
            (METHODS[dice.roll(10) as usize], dice.bytes(length), false)
        }
        // A good message with a few bits turned; some of them stay good.
        1 => {
            let (method, mut message) = if dice.roll(2) == 0 {
                (EMBED, good_embed().encode_to_vec())
            } else {
                (INFER, good_infer().encode_to_vec())
            };
            for _ in 0..=dice.roll(4) {
                let at = dice.roll(message.len() as u64) as usize;
                message[at] ^= 1 << dice.roll(8);
            }
            (method, message, false)
        }
        // A good message cut short inside a field.
        2 => {
            let message = good_infer().encode_to_vec();
            let end = message.len() - 1 - dice.roll(8) as usize;
            (INFER, message[..end].to_vec(), true)
        }
        // Wrong shapes.
        3 => {
            let mut request = good_infer();
            let odd = [0, -1, i64::MIN, i64::MAX, 1 << 32, 3, 7];
            request.inputs[0].shape = (0..dice.roll(6))
                .map(|_| odd[dice.roll(odd.len() as u64) as usize])
                .collect();
            (INFER, request.encode_to_vec(), true)
        }
        // Wrong types and contents.
        4 => {
            let mut request = good_infer();
            let types = ["FP32", "", "BOOL", "bytes", "INT64", "\u{0}", "FP16"];
            if dice.roll(2) == 0 {
                types[dice.roll(7) as usize].clone_into(&mut request.inputs[0].datatype);
            } else {
                let length = dice.roll(40) as usize;
                request.raw_input_contents = vec![dice.bytes(length).into()];
            }
            (INFER, request.encode_to_vec(), true)
        }
        // Giant strings: a text, a model's name, a tensor's name.
        5 => {
            let giant = "ferry ".repeat(30_000 + dice.roll(300_000) as usize);
            match dice.roll(3) {
                0 => {
                    let mut request = good_embed();
                    request.texts = vec![giant];
                    (EMBED, request.encode_to_vec(), true)
                }
                1 => {
                    let mut request = good_infer();
                    request.model_name = giant;
                    (INFER, request.encode_to_vec(), true)
                }
                _ => {
                    let mut request = good_infer();
                    request.inputs[0].name = giant;
                    (INFER, request.encode_to_vec(), true)
                }
            }
        }
        // Strings that are not UTF-8, in a field that must be (`texts` is field 2).
        _ => {
            let mut message = good_embed().encode_to_vec();
            message.extend_from_slice(&[0x12, 3, b'a', 0xC3, 0x28]);
            (EMBED, message, true)
        }
    }
}

async fn send(channel: &Channel, method: &'static str, message: Vec<u8>) -> Result<usize, Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static(method);
    let answer = client.unary(Request::new(message), path, RawCodec).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn a_thousand_malformed_requests_are_answered_with_the_callers_fault() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let channel = running.channel();
    let mut dice = Dice(20_261_123);
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for at in 0..1000 {
        let kind = match at % 20 {
            // Megabytes take their time: one in twenty.
            19 => 5,
            at => at % 7 % 5 + u64::from(at % 7 == 6) * 2,
        };
        let (method, message, must_fail) = make(&mut dice, kind);
        let code = match send(&channel, method, message).await {
            Ok(_) => Code::Ok,
            Err(status) => {
                let message = status.message();
                assert!(message.len() < 5000, "{at}: {} bytes", message.len());
                assert!(!message.is_empty(), "{at}: no message");
                status.code()
            }
        };
        let right = match code {
            Code::InvalidArgument | Code::NotFound => true,
            // Unimplemented: log settings and load parameters that Ferry does not have.
            Code::Ok | Code::Unimplemented => !must_fail,
            _ => false,
        };
        assert!(right, "request {at} of kind {kind} to {method}: {code:?}");
        *seen.entry(format!("{code:?}")).or_default() += 1;
    }
    println!("{seen:?}");
    assert!(seen["InvalidArgument"] > 600, "{seen:?}");
    let good = send(&channel, EMBED, good_embed().encode_to_vec()).await;
    assert!(good.is_ok(), "the server is well");
    assert_eq!(running.http("/health/ready").await.0, 200);
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_and_the_connection_lives() {
    let running = Running::serving(super::support::models_of(&["tiny-bert-embed"]), |config| {
        config.grpc.max_request_bytes = 10_000;
    })
    .await;
    let channel = running.channel();
    let mut request = good_embed();
    request.texts = vec!["x".repeat(20_000)];
    let error = send(&channel, EMBED, request.encode_to_vec())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
    assert!(error.message().contains("10000"), "{}", error.message());
    assert!(
        send(&channel, EMBED, good_embed().encode_to_vec())
            .await
            .is_ok()
    );
}
