//! `inference.GRPCInferenceService`: the Open Inference Protocol as Triton speaks it, so that
//! Triton's clients work unmodified.

mod describe;
mod generate;
mod inputs;
mod outputs;
mod parameters;
mod repository;
mod settings;
mod statistics;
mod tensors;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Shared,
    admin::{anonymous, identify},
    duplex::{Replies, answer_each},
};
use crate::{
    admission::{CallContext, Operator},
    api::{
        account::{answer_call, find},
        context::read_context,
        gate::allowed_models,
        proto::inference as pb,
        proto::inference::grpc_inference_service_server::GrpcInferenceService,
        status::{map, status_of},
    },
    config::{Task, admin::RepositoryRpcs},
    error::RequestError,
};

/// The service.
#[derive(Debug)]
pub struct OpenInference {
    shared: Shared,
    settings: settings::LogState,
}

impl OpenInference {
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            settings: settings::LogState::default(),
        }
    }

    /// Who loads or unloads a model.
    fn operator<T>(&self, request: &Request<T>) -> Result<Operator, Status> {
        match self.shared.repository_rpcs {
            RepositoryRpcs::Open => Ok(anonymous(request)),
            RepositoryRpcs::Token => identify(&self.shared.operators, request),
            RepositoryRpcs::Off => Err(status_of(&RequestError::NotPermitted {
                what: "load and unload on this port (admin.repository_rpcs is \"off\"); use ferry \
                       admin, on the admin listener"
                    .to_owned(),
            })),
        }
    }

    fn context(&self, request: &Request<impl Sized>) -> Result<CallContext, RequestError> {
        let most = self.shared.admission.limits().max_metadata_bytes;
        let context = read_context(request.metadata(), most)?;
        Ok(CallContext {
            endpoint: "open_inference",
            ..context
        })
    }
}

/// Runs one inference from its message to its message.
async fn infer(
    shared: &Shared,
    request: pb::ModelInferRequest,
    context: CallContext,
) -> Result<pb::ModelInferResponse, RequestError> {
    shared.admission.wake(&request.model_name, &context).await;
    let (name, version) = (&request.model_name, &request.model_version);
    let model = shared.admission.look_up(name, version, &context.models);
    let model = model.inspect_err(|error| shared.metrics.count_unrouted(map(error).outcome))?;
    if model.task() == Task::Generate {
        return generate::infer(shared, &request, context).await;
    }
    let max_rows = shared.admission.limits().max_rows;
    let decoded = inputs::decode(request, &model, context, max_rows).map_err(|error| {
        // The model is known, so the mistake is counted as one of its requests.
        let context = CallContext::plain(std::time::Instant::now());
        let call = inputs::empty_call(&model);
        match find(&shared.admission, &shared.metrics, &call, &context) {
            Ok((_, account)) => account.failed(error),
            Err(other) => other,
        }
    })?;
    let inputs::Decoded {
        call,
        context,
        id,
        texts,
        wanted,
    } = decoded;
    answer_call(
        &shared.admission,
        &shared.metrics,
        call,
        context,
        |answered| outputs::encode(answered, id, &texts, &wanted),
    )
    .await
}

/// Runs one inference of a stream; an error is told in the message and leaves the stream open.
async fn infer_in_stream(
    shared: Shared,
    request: pb::ModelInferRequest,
    context: CallContext,
    replies: Replies<pb::ModelStreamInferResponse>,
) {
    let id = request.id.clone();
    shared.admission.wake(&request.model_name, &context).await;
    let (name, version) = (&request.model_name, &request.model_version);
    let model = shared.admission.look_up(name, version, &context.models);
    let answered = match model {
        Ok(model) if model.task() == Task::Generate => {
            generate::infer_in_stream(&shared, &request, context, &replies).await
        }
        Ok(_) => match infer(&shared, request, context).await {
            Ok(response) => {
                replies
                    .send(pb::ModelStreamInferResponse {
                        error_message: String::new(),
                        infer_response: Some(response),
                    })
                    .await;
                Ok(())
            }
            Err(error) => Err(error),
        },
        Err(error) => {
            shared.metrics.count_unrouted(map(&error).outcome);
            Err(error)
        }
    };
    if let Err(error) = answered {
        let refused = pb::ModelStreamInferResponse {
            error_message: error.to_string(),
            // The id tells the caller which request it was.
            infer_response: Some(pb::ModelInferResponse {
                id,
                ..pb::ModelInferResponse::default()
            }),
        };
        replies.send(refused).await;
    }
}

fn no_shared_memory<T>() -> Result<Response<T>, Status> {
    Err(status_of(&RequestError::Unimplemented {
        what: "shared memory; send the tensors in the request".to_owned(),
    }))
}

#[tonic::async_trait]
impl GrpcInferenceService for OpenInference {
    async fn server_live(
        &self,
        _: Request<pb::ServerLiveRequest>,
    ) -> Result<Response<pb::ServerLiveResponse>, Status> {
        Ok(Response::new(pb::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> Result<Response<pb::ServerReadyResponse>, Status> {
        let ready = self.shared.is_ready();
        Ok(Response::new(pb::ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Result<Response<pb::ModelReadyResponse>, Status> {
        let request = request.into_inner();
        let repository = self.shared.admission.repository();
        let ready = repository
            .find(&request.name, &request.version, None)
            .is_ok_and(|model| model.lost().is_none());
        Ok(Response::new(pb::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Result<Response<pb::ServerMetadataResponse>, Status> {
        Ok(Response::new(describe::server()))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Result<Response<pb::ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let admission = &self.shared.admission;
        let model = admission
            .look_up(&request.name, &request.version, &allowed_models())
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(describe::metadata(&model)))
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Result<Response<pb::ModelConfigResponse>, Status> {
        let request = request.into_inner();
        let admission = &self.shared.admission;
        let model = admission
            .look_up(&request.name, &request.version, &allowed_models())
            .map_err(|error| status_of(&error))?;
        let config = describe::config(&model, admission.limits().max_rows);
        Ok(Response::new(pb::ModelConfigResponse {
            config: Some(config),
        }))
    }

    async fn model_infer(
        &self,
        request: Request<pb::ModelInferRequest>,
    ) -> Result<Response<pb::ModelInferResponse>, Status> {
        let context = self.context(&request).map_err(|error| status_of(&error))?;
        infer(&self.shared, request.into_inner(), context)
            .await
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }

    type ModelStreamInferStream = ReceiverStream<Result<pb::ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<pb::ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let context = self.context(&request).map_err(|error| status_of(&error))?;
        let shared = self.shared.clone();
        let answers = answer_each(
            &self.shared,
            request.into_inner(),
            move |request, replies| {
                let context =
                    context.of_part("inference.GRPCInferenceService/ModelStreamInfer request");
                infer_in_stream(shared.clone(), request, context, replies)
            },
        );
        Ok(Response::new(answers))
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Result<Response<pb::ModelStatisticsResponse>, Status> {
        let request = request.into_inner();
        let (admission, models) = (&self.shared.admission, allowed_models());
        statistics::read(admission, &models, &request.name, &request.version)
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Result<Response<pb::RepositoryIndexResponse>, Status> {
        let only_ready = request.into_inner().ready;
        let repository = self.shared.admission.repository();
        let index = repository::index(repository, &allowed_models(), only_ready);
        Ok(Response::new(index))
    }

    async fn repository_model_load(
        &self,
        request: Request<pb::RepositoryModelLoadRequest>,
    ) -> Result<Response<pb::RepositoryModelLoadResponse>, Status> {
        let operator = self.operator(&request)?;
        allowed_models()
            .check(&request.get_ref().model_name)
            .map_err(|error| status_of(&error))?;
        repository::load(&self.shared, operator, request.into_inner())
            .await
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Result<Response<pb::RepositoryModelUnloadResponse>, Status> {
        let operator = self.operator(&request)?;
        allowed_models()
            .check(&request.get_ref().model_name)
            .map_err(|error| status_of(&error))?;
        repository::unload(&self.shared, operator, request.into_inner())
            .await
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<pb::SystemSharedMemoryStatusRequest>,
    ) -> Result<Response<pb::SystemSharedMemoryStatusResponse>, Status> {
        no_shared_memory()
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<pb::SystemSharedMemoryRegisterRequest>,
    ) -> Result<Response<pb::SystemSharedMemoryRegisterResponse>, Status> {
        no_shared_memory()
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<pb::SystemSharedMemoryUnregisterRequest>,
    ) -> Result<Response<pb::SystemSharedMemoryUnregisterResponse>, Status> {
        no_shared_memory()
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<pb::CudaSharedMemoryStatusRequest>,
    ) -> Result<Response<pb::CudaSharedMemoryStatusResponse>, Status> {
        no_shared_memory()
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<pb::CudaSharedMemoryRegisterRequest>,
    ) -> Result<Response<pb::CudaSharedMemoryRegisterResponse>, Status> {
        no_shared_memory()
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<pb::CudaSharedMemoryUnregisterRequest>,
    ) -> Result<Response<pb::CudaSharedMemoryUnregisterResponse>, Status> {
        no_shared_memory()
    }

    async fn trace_setting(
        &self,
        request: Request<pb::TraceSettingRequest>,
    ) -> Result<Response<pb::TraceSettingResponse>, Status> {
        settings::trace(&request.into_inner(), &self.shared.tracer)
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }

    async fn log_settings(
        &self,
        request: Request<pb::LogSettingsRequest>,
    ) -> Result<Response<pb::LogSettingsResponse>, Status> {
        self.settings
            .apply(&request.into_inner())
            .map(Response::new)
            .map_err(|error| status_of(&error))
    }
}
