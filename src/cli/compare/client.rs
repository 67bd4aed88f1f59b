//! One side over gRPC: rows in, answers out.

use std::time::Duration;

use futures_util::future::join_all;
use tonic::{Code, Request, Status};

use super::inputs::{Message, Row};
use crate::{
    api::proto::{
        ferry::v1::{
            ChatMessage, ChatRequest, ClassifyRequest, ClassifyTokensRequest, EmbedRequest,
            GenerateRequest, GenerateResponse, GeneratedToken, GenerationOptions, ModelOptions,
            RerankRequest, RowError, Sampling, TokenizeRequest, generate_request::Prompt,
            inference_client::InferenceClient,
        },
        inference::{
            ModelMetadataRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
        },
    },
    cli::{Failure, reach::WithKey},
    config::Task,
    quality::LabelledSpan,
};

/// Bytes of an answer taken in: a scored text names up to 20 alternatives a token.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Alternatives asked for at each token of a given text.
const ALTERNATIVES: u32 = 20;

/// One side.
#[derive(Debug, Clone)]
pub struct Client {
    channel: WithKey,
    inference: InferenceClient<WithKey>,
    model: String,
    version: String,
    timeout: Duration,
}

/// What a side makes of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// An embedding.
    Vector(Vec<f32>),
    /// Labels with probabilities, by name.
    Classes(Vec<(String, f32)>),
    /// Scores of the query's documents, in their order.
    Scores(Vec<f32>),
    /// Labelled spans.
    Spans(Vec<LabelledSpan>),
    /// A continuation.
    Text(Continuation),
}

/// A continuation of a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Continuation {
    /// The text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<Token>,
    /// Tokens of the prompt that were computed.
    pub prompt_tokens: u64,
    /// From the request to the first token.
    pub first: Duration,
    /// From the first token to the end.
    pub rest: Duration,
}

/// A token with what the model thought of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Logarithm of its probability; `None` for a text's first token.
    pub logprob: Option<f32>,
    /// The most likely tokens in its place: id, text, logarithm of the probability.
    pub top: Vec<(u32, String, f32)>,
}

/// What a row gets: an answer, or why there is none.
pub type RowAnswer = Result<Answer, String>;

impl Client {
    /// A side that asks for `model` and `version` (empty: the one routed to) through `channel`.
    pub fn new(channel: WithKey, model: &str, version: &str, timeout: Duration) -> Self {
        Self {
            inference: InferenceClient::new(channel.clone())
                .max_decoding_message_size(MAX_ANSWER_BYTES)
                .max_encoding_message_size(MAX_ANSWER_BYTES),
            channel,
            model: model.to_owned(),
            version: version.to_owned(),
            timeout,
        }
    }

    /// What the model does, and the name of the version that answers.
    ///
    /// # Errors
    /// When the server doesn't serve it.
    pub async fn describe(&self) -> Result<(Task, String), Failure> {
        let request = self.request(ModelMetadataRequest {
            name: self.model.clone(),
            version: self.version.clone(),
        });
        let metadata = GrpcInferenceServiceClient::new(self.channel.clone())
            .model_metadata(request)
            .await
            .map_err(|status| self.refused(&status))?
            .into_inner();
        let has = |name: &str| metadata.outputs.iter().any(|output| output.name == name);
        let task = if has("EMBEDDING") {
            Task::Embed
        } else if has("LABEL") {
            Task::Classify
        } else if has("LOGIT") {
            Task::Rerank
        } else if has("ENTITIES") {
            Task::Tokens
        } else {
            Task::Generate
        };
        let version = if self.version.is_empty() {
            metadata
                .versions
                .into_iter()
                .next_back()
                .unwrap_or_default()
        } else {
            self.version.clone()
        };
        Ok((task, version))
    }

    /// Asks for all rows at once. A row that is at fault has its error in its place.
    ///
    /// # Errors
    /// When the model or the server isn't there.
    pub async fn ask(
        &self,
        task: Task,
        rows: &[&Row],
        max_tokens: u32,
    ) -> Result<Vec<RowAnswer>, Failure> {
        let answers = match task {
            Task::Embed => self.embed(texts(rows)).await,
            Task::Classify => self.classify(texts(rows)).await,
            Task::Tokens => self.classify_tokens(texts(rows)).await,
            Task::Rerank => Ok(join_all(rows.iter().map(|row| self.rerank(row))).await),
            Task::Generate => {
                let asked = rows.iter().map(|row| self.generate(row, max_tokens));
                Ok(join_all(asked).await)
            }
        };
        let answers: Vec<Result<Answer, Status>> = match answers {
            Ok(answers) => answers,
            Err(status) => vec![Err(status); rows.len()],
        };
        let mut out = Vec::with_capacity(answers.len());
        for answer in answers {
            out.push(match answer {
                Ok(answer) => Ok(answer),
                Err(status) if is_of_the_row(&status) => Err(status.message().to_owned()),
                Err(status) => return Err(self.refused(&status)),
            });
        }
        Ok(out)
    }

    /// Token ids of texts.
    ///
    /// # Errors
    /// When the model or the server isn't there, or a text has none.
    pub async fn tokenize(&self, texts: Vec<String>) -> Result<Vec<Vec<u32>>, Failure> {
        let request = self.request(TokenizeRequest {
            options: Some(self.options()),
            texts,
            without_special_tokens: false,
        });
        let answer = self.inference.clone().tokenize(request).await;
        let rows = answer
            .map_err(|status| self.refused(&status))?
            .into_inner()
            .rows;
        let ids = |row: &crate::api::proto::ferry::v1::TokenizeRow| {
            row.tokens.iter().map(|token| token.id).collect()
        };
        Ok(rows.iter().map(ids).collect())
    }

    /// Scores each token of a text, the model being given those before it.
    ///
    /// # Errors
    /// What the server says is wrong with the text, or that it isn't there.
    pub async fn score(&self, text: &str) -> Result<Continuation, Failure> {
        let request = GenerateRequest {
            model: self.model.clone(),
            version: self.version.clone(),
            prompt: Some(Prompt::Text(text.to_owned())),
            echo: true,
            options: Some(GenerationOptions {
                top_logprobs: ALTERNATIVES,
                ..greedy(0)
            }),
        };
        let answer = self.inference.clone().generate(self.request(request)).await;
        let gathered = match answer {
            Ok(stream) => gather(stream.into_inner()).await,
            Err(status) => Err(status),
        };
        gathered.map_err(|status| self.refused(&status))
    }

    async fn embed(&self, texts: Vec<String>) -> Result<Vec<Result<Answer, Status>>, Status> {
        let request = self.request(EmbedRequest {
            options: Some(self.options()),
            texts,
            ..EmbedRequest::default()
        });
        let rows = self
            .inference
            .clone()
            .embed(request)
            .await?
            .into_inner()
            .rows;
        let answers = rows
            .into_iter()
            .map(|row| or_error(row.error, || Answer::Vector(row.embedding)));
        Ok(answers.collect())
    }

    async fn classify(&self, texts: Vec<String>) -> Result<Vec<Result<Answer, Status>>, Status> {
        let request = self.request(ClassifyRequest {
            options: Some(self.options()),
            texts,
            ..ClassifyRequest::default()
        });
        let rows = self
            .inference
            .clone()
            .classify(request)
            .await?
            .into_inner()
            .rows;
        let answers = rows.into_iter().map(|row| {
            let scores = row.scores.into_iter();
            or_error(row.error, || {
                Answer::Classes(scores.map(|class| (class.label, class.score)).collect())
            })
        });
        Ok(answers.collect())
    }

    async fn classify_tokens(
        &self,
        texts: Vec<String>,
    ) -> Result<Vec<Result<Answer, Status>>, Status> {
        let request = self.request(ClassifyTokensRequest {
            options: Some(self.options()),
            texts,
            ..ClassifyTokensRequest::default()
        });
        let answer = self.inference.clone().classify_tokens(request).await?;
        let answers = answer.into_inner().rows.into_iter().map(|row| {
            let spans = row.spans.into_iter().map(|span| LabelledSpan {
                label: span.label,
                start: span.start as usize,
                end: span.end as usize,
                confidence: span.confidence,
            });
            or_error(row.error, || Answer::Spans(spans.collect()))
        });
        Ok(answers.collect())
    }

    async fn rerank(&self, row: &Row) -> Result<Answer, Status> {
        let Row::Query { query, documents } = row else {
            return Err(Status::invalid_argument("no query"));
        };
        let request = self.request(RerankRequest {
            options: Some(self.options()),
            query: query.clone(),
            documents: documents.clone(),
            ..RerankRequest::default()
        });
        let rows = self
            .inference
            .clone()
            .rerank(request)
            .await?
            .into_inner()
            .rows;
        let mut scores = vec![f32::NAN; documents.len()];
        for row in rows {
            // A query is compared as a whole: one document without a score fails it.
            let place = row.info.map_or(0, |info| info.row as usize);
            or_error(row.error, || ())?;
            if let Some(score) = scores.get_mut(place) {
                *score = row.score;
            }
        }
        Ok(Answer::Scores(scores))
    }

    async fn generate(&self, row: &Row, max_tokens: u32) -> Result<Answer, Status> {
        let options = Some(GenerationOptions {
            top_logprobs: 1,
            ..greedy(max_tokens)
        });
        let (model, version) = (self.model.clone(), self.version.clone());
        let mut inference = self.inference.clone();
        let stream = match row {
            Row::Prompt(prompt) => {
                let request = GenerateRequest {
                    model,
                    version,
                    prompt: Some(Prompt::Text(prompt.clone())),
                    options,
                    echo: false,
                };
                inference.generate(self.request(request)).await?
            }
            Row::Chat(messages) => {
                let request = ChatRequest {
                    model,
                    version,
                    messages: messages.iter().map(chat_message).collect(),
                    options,
                };
                inference.chat(self.request(request)).await?
            }
            _ => return Err(Status::invalid_argument("no prompt")),
        };
        Ok(Answer::Text(gather(stream.into_inner()).await?))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    fn options(&self) -> ModelOptions {
        ModelOptions {
            model: self.model.clone(),
            version: self.version.clone(),
            ..ModelOptions::default()
        }
    }

    fn refused(&self, status: &Status) -> Failure {
        let at = if self.version.is_empty() { "" } else { "@" };
        let (model, version) = (&self.model, &self.version);
        format!("{model}{at}{version}: {}", status.message()).into()
    }
}

fn greedy(max_tokens: u32) -> GenerationOptions {
    GenerationOptions {
        max_tokens: Some(max_tokens),
        sampling: Some(Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        }),
        ..GenerationOptions::default()
    }
}

async fn gather(mut stream: tonic::Streaming<GenerateResponse>) -> Result<Continuation, Status> {
    let mut gathered = Continuation::default();
    while let Some(message) = stream.message().await? {
        gathered.text.push_str(&message.text);
        gathered
            .tokens
            .extend(message.tokens.into_iter().map(token));
        if let Some(finish) = message.finish {
            let computed = finish.prompt_tokens.saturating_sub(finish.cached_tokens);
            gathered.prompt_tokens = u64::from(computed);
            gathered.first = Duration::from_micros(finish.first_token_us);
            let rest = finish.total_us.saturating_sub(finish.first_token_us);
            gathered.rest = Duration::from_micros(rest);
        }
    }
    Ok(gathered)
}

fn token(token: GeneratedToken) -> Token {
    Token {
        id: token.id,
        text: token.text,
        logprob: token.logprob,
        top: token
            .alternatives
            .into_iter()
            .map(|other| (other.id, other.text, other.logprob))
            .collect(),
    }
}

fn chat_message(message: &Message) -> ChatMessage {
    ChatMessage {
        role: message.role.clone(),
        content: message.content.clone(),
    }
}

fn texts(rows: &[&Row]) -> Vec<String> {
    rows.iter().map(|row| row.describe().to_owned()).collect()
}

fn or_error<T>(error: Option<RowError>, answer: impl FnOnce() -> T) -> Result<T, Status> {
    match error {
        None => Ok(answer()),
        Some(error) => Err(Status::new(Code::from_i32(error.code), error.message)),
    }
}

/// Whether a failure says something of the row, not of the model or the server.
fn is_of_the_row(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::OutOfRange
            | Code::Internal
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
    )
}
