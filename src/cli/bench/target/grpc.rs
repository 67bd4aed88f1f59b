//! Calls over gRPC: Ferry's own, and the Open Inference Protocol's.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tonic::{
    Code, Request, Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
    transport::{Channel, Endpoint},
};

use super::{Asked, Refusal, Reply};
use crate::{
    api::{
        proto::{
            ferry::v1::{
                EmbedRequest, GenerateRequest, GenerationOptions, ModelOptions, Sampling,
                generate_request::Prompt, inference_client::InferenceClient,
            },
            inference::{
                InferTensorContents, ModelInferRequest, ModelMetadataRequest,
                grpc_inference_service_client::GrpcInferenceServiceClient,
                model_infer_request::InferInputTensor,
            },
        },
        status::code_name,
    },
    cli::{Failure, reach::ClientTls},
};

/// Clients that share a connection, as in backends with a small pool.
const CLIENTS: usize = 8;

/// Connections at most; beyond that they are shared by more clients.
const CONNECTIONS: usize = 64;

/// Connections to a server, opened as clients need them.
#[derive(Debug)]
pub struct Channels {
    endpoint: Endpoint,
    open: Mutex<Vec<Channel>>,
}

impl Channels {
    /// Connects.
    ///
    /// # Errors
    /// When the address is none, or nothing answers there.
    pub async fn open(url: &str, tls: &ClientTls) -> Result<Self, Failure> {
        let url = if url.contains("://") {
            url.to_owned()
        } else {
            format!("http://{url}")
        };
        let endpoint = tls.endpoint(&url)?.tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{url}: {}", cause.unwrap_or_else(|| error.to_string()))
        })?;
        Ok(Self {
            endpoint,
            open: Mutex::new(vec![channel]),
        })
    }

    /// The connection of a client.
    ///
    /// # Errors
    /// When it is a new one, and nothing answers.
    pub async fn channel(&self, client: usize) -> Result<Channel, Refusal> {
        let at = (client / CLIENTS) % CONNECTIONS;
        let mut open = self.open.lock().await;
        while open.len() <= at {
            let channel = self.endpoint.connect().await;
            open.push(channel.map_err(|error| Refusal::new("CONNECT", error.to_string()))?);
        }
        Ok(open[at].clone())
    }
}

/// Embeds rows with Ferry's own service.
pub async fn embed(channel: &Channel, asked: &Asked, texts: Vec<String>) -> Result<Reply, Refusal> {
    let request = EmbedRequest {
        options: Some(ModelOptions {
            model: asked.model.clone(),
            ..ModelOptions::default()
        }),
        texts,
        ..EmbedRequest::default()
    };
    let mut client = InferenceClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let answer = client.embed(with_headers(request, asked)?).await;
    let answer = answer.map_err(|status| refusal(&status))?.into_inner();
    if let Some(error) = answer.rows.iter().find_map(|row| row.error.as_ref()) {
        return Err(Refusal::new(
            code_name(Code::from(error.code)),
            error.message.clone(),
        ));
    }
    let infos = || answer.rows.iter().filter_map(|row| row.info);
    Ok(Reply {
        rows: answer.rows.len(),
        read_tokens: Some(infos().map(|info| u64::from(info.tokens)).sum()),
        execute: answer
            .timing
            .map(|timing| Duration::from_micros(timing.execute_us)),
        batch_rows: infos().next().map(|info| info.batch_rows),
        ..Reply::default()
    })
}

/// Streams a continuation of one text with Ferry's own service.
pub async fn generate(
    channel: &Channel,
    asked: &Asked,
    texts: Vec<String>,
) -> Result<Reply, Refusal> {
    let request = GenerateRequest {
        model: asked.model.clone(),
        prompt: texts.into_iter().next().map(Prompt::Text),
        options: Some(GenerationOptions {
            max_tokens: Some(asked.max_tokens),
            ignore_eos: !asked.may_end_early,
            sampling: Some(Sampling {
                temperature: Some(0.0),
                ..Sampling::default()
            }),
            ..GenerationOptions::default()
        }),
        ..GenerateRequest::default()
    };
    let mut client = InferenceClient::new(channel.clone());
    let stream = client.generate(with_headers(request, asked)?).await;
    let mut stream = stream.map_err(|status| refusal(&status))?.into_inner();
    let mut reply = Reply {
        rows: 1,
        ..Reply::default()
    };
    while let Some(message) = stream.message().await.map_err(|status| refusal(&status))? {
        if !message.text.is_empty() {
            reply.note_piece(Instant::now())?;
        }
        if let Some(finish) = message.finish {
            reply.written_tokens = Some(u64::from(finish.generated_tokens));
            reply.read_tokens = Some(u64::from(finish.prompt_tokens));
        }
    }
    Ok(reply)
}

/// The tensor of a model that takes text.
#[derive(Debug)]
pub struct TextInput {
    name: String,
    /// Whether a row is a row of one column, not an element.
    columns: bool,
}

impl TextInput {
    /// Asks the server for it.
    ///
    /// # Errors
    /// When the server does not know the model, or it takes no text.
    pub async fn of(channels: &Channels, asked: &Asked) -> Result<Self, Failure> {
        let channel = channels
            .channel(0)
            .await
            .map_err(|error| error.to_string())?;
        let request = ModelMetadataRequest {
            name: asked.model.clone(),
            ..ModelMetadataRequest::default()
        };
        let request = with_headers(request, asked).map_err(|error| error.to_string())?;
        let metadata = GrpcInferenceServiceClient::new(channel)
            .model_metadata(request)
            .await
            .map_err(|status| refusal(&status).to_string())?
            .into_inner();
        let wanted = |name: &str| asked.input.as_ref().is_none_or(|input| input == name);
        let mut inputs = metadata.inputs.iter();
        let Some(found) = inputs.find(|input| input.datatype == "BYTES" && wanted(&input.name))
        else {
            let inputs: Vec<_> = metadata
                .inputs
                .iter()
                .map(|input| format!("{} {}", input.name, input.datatype))
                .collect();
            return Err(format!(
                "model '{}' has no {} of BYTES to put text into; its inputs: {}",
                asked.model,
                asked
                    .input
                    .as_ref()
                    .map_or("input".to_owned(), |name| format!("input '{name}'")),
                inputs.join(", ")
            )
            .into());
        };
        Ok(Self {
            name: found.name.clone(),
            columns: found.shape.len() > 1,
        })
    }
}

/// Runs a model that takes text with the Open Inference Protocol.
pub async fn infer(
    channel: &Channel,
    asked: &Asked,
    input: &TextInput,
    texts: Vec<String>,
) -> Result<Reply, Refusal> {
    let rows = texts.len();
    let mut shape = vec![rows as i64];
    if input.columns {
        shape.push(1);
    }
    let request = ModelInferRequest {
        model_name: asked.model.clone(),
        inputs: vec![InferInputTensor {
            name: input.name.clone(),
            datatype: "BYTES".to_owned(),
            shape,
            contents: Some(InferTensorContents {
                bytes_contents: texts.into_iter().map(String::into_bytes).collect(),
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        }],
        ..ModelInferRequest::default()
    };
    let mut client =
        GrpcInferenceServiceClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let answer = client.model_infer(with_headers(request, asked)?).await;
    let answer = answer.map_err(|status| refusal(&status))?.into_inner();
    let answered = answer
        .outputs
        .first()
        .and_then(|output| output.shape.first());
    if answered.is_none_or(|answered| *answered != rows as i64) {
        let what = format!("{rows} rows were sent; the first output has {answered:?}");
        return Err(Refusal::new("MALFORMED_ANSWER", what));
    }
    Ok(Reply {
        rows,
        ..Reply::default()
    })
}

fn with_headers<T>(message: T, asked: &Asked) -> Result<Request<T>, Refusal> {
    let mut request = Request::new(message);
    for (name, value) in &asked.headers {
        let wrong = || Refusal::new("HEADER", format!("{name}: not a header of gRPC"));
        let key = AsciiMetadataKey::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let value = AsciiMetadataValue::try_from(value).map_err(|_| wrong())?;
        request.metadata_mut().append(key, value);
    }
    Ok(request)
}

fn refusal(status: &Status) -> Refusal {
    Refusal::new(code_name(status.code()), status.message())
}
