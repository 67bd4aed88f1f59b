//! gRPC methods with any message, over a real socket: bytes that are no message, messages that ask
//! for what can't be done, and sound ones. An answer, or the caller's fault.

use std::sync::OnceLock;

use ferry::api::proto::{
    ferry::v1::{
        ChatMessage, ChatRequest, ClassifyRequest, EmbedRequest, ExplainClass, ExplainRequest,
        GenerateRequest, GenerationOptions, ModelOptions, RerankRequest, TokenIds,
        explain_request::Explained, generate_request::Prompt, generation_options::Constraint,
    },
    inference::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor},
};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};

use super::{bytes::Bytes, raw_codec::RawCodec, server::served};

const METHODS: [&str; 13] = [
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
    "/ferry.v1.Inference/Embed",
    "/ferry.v1.Inference/Classify",
    "/ferry.v1.Inference/Rerank",
    "/ferry.v1.Inference/ClassifyTokens",
    "/ferry.v1.Inference/Tokenize",
    "/ferry.v1.Inference/Explain",
    "/ferry.v1.Inference/Generate",
    "/ferry.v1.Inference/Chat",
    "/ferry.v1.Inference/Stream",
    "/inference.GRPCInferenceService/ModelMetadata",
    "/inference.GRPCInferenceService/ModelConfig",
];

/// Which method, and the message.
pub fn run(input: &[u8]) {
    let mut input = Bytes::new(input);
    let method = METHODS[usize::from(input.byte()) % METHODS.len()];
    let message = input.rest().to_vec();
    let answer = served().runtime.block_on(call(method, message));
    if let Err(status) = answer {
        let fine = matches!(
            status.code(),
            Code::InvalidArgument
                | Code::NotFound
                | Code::Unimplemented
                | Code::ResourceExhausted
                | Code::DeadlineExceeded
                | Code::Cancelled
        );
        assert!(fine, "{method}: {status:?}");
        assert!(!status.message().is_empty() && status.message().len() < 5000);
    }
}

/// Every method as one that streams both ways: on the wire, a unary one is no different.
async fn call(method: &'static str, message: Vec<u8>) -> Result<(), Status> {
    static CHANNEL: OnceLock<Channel> = OnceLock::new();
    let served = served();
    let channel = if let Some(channel) = CHANNEL.get() {
        channel.clone()
    } else {
        let url = format!("http://{}", served.grpc);
        let endpoint = Channel::from_shared(url).expect("an address");
        let channel = endpoint.connect().await.expect("it listens");
        CHANNEL.get_or_init(|| channel).clone()
    };
    let mut client = Grpc::new(channel);
    client.ready().await.expect("it is there");
    let mut request = Request::new(tokio_stream::once(message));
    // A caller may ask for much.
    request.set_timeout(std::time::Duration::from_secs(5));
    let path = PathAndQuery::from_static(method);
    let answers = client.streaming(request, path, RawCodec).await?;
    let mut answers = answers.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

fn options(model: &str) -> ModelOptions {
    ModelOptions {
        model: model.to_owned(),
        ..ModelOptions::default()
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let texts = || vec!["a text".to_owned(), "another".to_owned()];
    let infer = |name: &str, input: &str| ModelInferRequest {
        model_name: name.to_owned(),
        inputs: vec![InferInputTensor {
            name: input.to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![2, 1],
            contents: Some(InferTensorContents {
                bytes_contents: vec![b"a text".to_vec(), b"another".to_vec()],
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        }],
        ..ModelInferRequest::default()
    };
    let generation = || {
        Some(GenerationOptions {
            max_tokens: Some(3),
            n: 2,
            stop: vec!["x".to_owned()],
            top_logprobs: 2,
            constraint: Some(Constraint::Regex("[a-z]+".to_owned())),
            ..GenerationOptions::default()
        })
    };
    let seed = |method: u8, message: Vec<u8>| [&[method], &message[..]].concat();
    let embed = EmbedRequest {
        options: Some(options("embed")),
        texts: texts(),
        token_ids: vec![TokenIds { ids: vec![5, 6] }],
        ..EmbedRequest::default()
    };
    let classify = ClassifyRequest {
        options: Some(options("classify")),
        texts: texts(),
        ..ClassifyRequest::default()
    };
    let rerank = RerankRequest {
        options: Some(options("rerank")),
        query: "when".to_owned(),
        documents: texts(),
        ..RerankRequest::default()
    };
    let explain = ExplainRequest {
        options: Some(options("classify")),
        explained: Some(Explained::Classify(ExplainClass {
            text: "a text".to_owned(),
            ..ExplainClass::default()
        })),
        ..ExplainRequest::default()
    };
    let generate = GenerateRequest {
        model: "generate".to_owned(),
        prompt: Some(Prompt::Text("The ferry".to_owned())),
        options: generation(),
        ..GenerateRequest::default()
    };
    let chat = ChatRequest {
        model: "generate".to_owned(),
        messages: vec![ChatMessage {
            role: "user".to_owned(),
            content: "When?".to_owned(),
        }],
        options: generation(),
        ..ChatRequest::default()
    };
    vec![
        seed(0, infer("embed", "TEXT").encode_to_vec()),
        seed(1, infer("classify", "TEXT").encode_to_vec()),
        seed(2, embed.encode_to_vec()),
        seed(3, classify.encode_to_vec()),
        seed(4, rerank.encode_to_vec()),
        seed(5, classify.encode_to_vec()),
        seed(6, classify.encode_to_vec()),
        seed(7, explain.encode_to_vec()),
        seed(8, generate.encode_to_vec()),
        seed(9, chat.encode_to_vec()),
        seed(10, classify.encode_to_vec()),
    ]
}
