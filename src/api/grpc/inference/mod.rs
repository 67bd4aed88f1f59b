//! `ferry.v1.Inference`: texts in, typed answers out, row by row.

mod calls;
mod explain;
mod generate;
mod rows;
mod stream;

pub use rows::shorten;

use rows::Least;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{Shared, duplex::answer_each};
use crate::{
    admission::{Call, CallContext, GenerateCall},
    api::{
        account::{Answered, answer_call},
        context::read_context,
        proto::ferry::v1::{
            ChatRequest, ClassifyRequest, ClassifyResponse, ClassifyTokensRequest,
            ClassifyTokensResponse, EmbedRequest, EmbedResponse, ExplainRequest, ExplainResponse,
            GenerateRequest, RerankRequest, RerankResponse, StreamRequest, StreamResponse,
            TokenizeRequest, TokenizeResponse, inference_server::Inference,
        },
        status::{map, status_of},
    },
    error::RequestError,
};

/// The service.
#[derive(Debug, Clone)]
pub struct TypedInference {
    shared: Shared,
}

impl TypedInference {
    /// The service over what all services share.
    pub fn new(shared: Shared) -> Self {
        Self { shared }
    }

    fn context(&self, metadata: &MetadataMap) -> Result<CallContext, RequestError> {
        let most = self.shared.admission.limits().max_metadata_bytes;
        let context = read_context(metadata, most)?;
        Ok(CallContext {
            endpoint: "grpc",
            ..context
        })
    }

    /// Runs `call` and encodes its answer.
    async fn answer<T>(
        &self,
        metadata: &MetadataMap,
        call: Result<Call, RequestError>,
        encode: impl FnOnce(&Answered) -> T,
    ) -> Result<Response<T>, Status> {
        let prepared = call.and_then(|call| Ok((call, self.context(metadata)?)));
        let (call, context) = prepared.map_err(|error| {
            self.shared.metrics.count_unrouted(map(&error).outcome);
            status_of(&error)
        })?;
        let Shared {
            admission, metrics, ..
        } = &self.shared;
        answer_call(admission, metrics, call, context, |answered| {
            Ok(encode(answered))
        })
        .await
        .map(Response::new)
        .map_err(|error| status_of(&error))
    }
}

impl TypedInference {
    /// Starts a generation.
    async fn start(
        &self,
        metadata: &MetadataMap,
        call: Result<(GenerateCall, generate::Sending), RequestError>,
    ) -> Result<Response<generate::GenerateStream>, Status> {
        let prepared = call.and_then(|call| Ok((call, self.context(metadata)?)));
        let ((call, sending), context) = prepared.map_err(|error| {
            self.shared.metrics.count_unrouted(map(&error).outcome);
            status_of(&error)
        })?;
        generate::start(&self.shared, call, context, sending)
            .await
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }
}

#[tonic::async_trait]
impl Inference for TypedInference {
    async fn embed(
        &self,
        request: Request<EmbedRequest>,
    ) -> Result<Response<EmbedResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let dimensions = request.dimensions;
        self.answer(&metadata, calls::embed(request), |answered| EmbedResponse {
            model: Some(rows::model_info(&answered.model)),
            timing: Some(rows::timing(answered)),
            rows: rows::in_order(answered, |row, answer| rows::embed(row, answer, dimensions)),
        })
        .await
    }

    async fn classify(
        &self,
        request: Request<ClassifyRequest>,
    ) -> Result<Response<ClassifyResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let top_k = request.top_k as usize;
        let least = Least::of(request.min_confidence, request.on_low_confidence.as_ref());
        self.answer(&metadata, calls::classify(request), |answered| {
            ClassifyResponse {
                model: Some(rows::model_info(&answered.model)),
                timing: Some(rows::timing(answered)),
                rows: rows::in_order(answered, |row, answer| {
                    rows::classify(row, answer, &answered.model, top_k, least)
                }),
            }
        })
        .await
    }

    async fn rerank(
        &self,
        request: Request<RerankRequest>,
    ) -> Result<Response<RerankResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let documents = rows::kept_documents(&mut request);
        let top_n = request.top_n as usize;
        let least = Least::of(request.min_confidence, request.on_low_confidence.as_ref());
        self.answer(&metadata, calls::rerank(request), |answered| {
            let mut ranked = rows::in_order(answered, |row, answer| {
                rows::rerank(row, answer, &answered.model, &documents, least)
            });
            rows::rank(&mut ranked, top_n);
            RerankResponse {
                model: Some(rows::model_info(&answered.model)),
                timing: Some(rows::timing(answered)),
                rows: ranked,
            }
        })
        .await
    }

    async fn classify_tokens(
        &self,
        request: Request<ClassifyTokensRequest>,
    ) -> Result<Response<ClassifyTokensResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let texts = request.texts.clone();
        let least = Least::of(request.min_confidence, request.on_low_confidence.as_ref());
        self.answer(&metadata, calls::classify_tokens(request), |answered| {
            ClassifyTokensResponse {
                model: Some(rows::model_info(&answered.model)),
                timing: Some(rows::timing(answered)),
                rows: rows::in_order(answered, |row, answer| {
                    rows::classify_tokens(row, answer, &answered.model, &texts[row], least)
                }),
            }
        })
        .await
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let texts = request.texts.clone();
        let with_special_tokens = !request.without_special_tokens;
        let tokenized = async {
            let call = calls::tokenize(request)?;
            let context = self.context(&metadata)?;
            let model = self.shared.admission.find(&call, &context)?;
            let rows = self
                .shared
                .admission
                .tokenize(&model, call, with_special_tokens)
                .await?;
            Ok(TokenizeResponse {
                model: Some(rows::model_info(&model)),
                rows: rows
                    .into_iter()
                    .zip(&texts)
                    .enumerate()
                    .map(|(row, (encoded, text))| rows::tokenize(row, encoded, text, &model))
                    .collect(),
            })
        };
        tokenized
            .await
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let context = self.context(&metadata);
        explain::answer(&self.shared, explain::read(request), context)
            .await
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }

    type GenerateStream = generate::GenerateStream;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.start(&metadata, generate::generate(request)).await
    }

    type ChatStream = generate::GenerateStream;

    async fn chat(
        &self,
        request: Request<ChatRequest>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.start(&metadata, generate::chat(request)).await
    }

    type StreamStream = ReceiverStream<Result<StreamResponse, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<StreamRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let (metadata, _, requests) = request.into_parts();
        let context = self.context(&metadata).map_err(|error| status_of(&error))?;
        let shared = self.shared.clone();
        let answers = answer_each(&self.shared, requests, move |request, replies| {
            let context = context.of_part("ferry.v1.Inference/Stream request");
            stream::answer_rows(shared.clone(), request, context, replies)
        });
        Ok(Response::new(answers))
    }
}
