//! Models that generate, in Triton's decoupled style: one request, a response for each piece.
//!
//! Tensors and parameters are those of Triton's vLLM backend, so that its clients and load
//! generators work: `text_input` (BYTES), `stream` (BOOL), `sampling_parameters` (BYTES, a JSON
//! object), `exclude_input_in_output` (BOOL) and the `return_…` switches (BOOL) to `text_output`
//! (BYTES) and what was asked for beside. Every response says in its parameter
//! `triton_final_response` whether it is the last.

mod inputs;
mod outputs;
mod sampling;

use super::super::{Shared, duplex::Replies};
use crate::{
    admission::CallContext,
    api::{generation::start_generation, proto::inference as pb},
    error::RequestError,
};

pub use inputs::{INPUTS, OUTPUTS};

/// Answers with everything at once, for callers that can't take a stream.
pub async fn infer(
    shared: &Shared,
    request: &pb::ModelInferRequest,
    context: CallContext,
) -> Result<pb::ModelInferResponse, RequestError> {
    let asked = inputs::decode(request, context)?;
    if asked.stream {
        return Err(RequestError::invalid(
            "inputs['stream']",
            "true",
            "false in ModelInfer; pieces come through ModelStreamInfer",
        ));
    }
    let mut whole = outputs::Whole::new(&asked);
    let mut generation = start_generation(
        &shared.admission,
        &shared.metrics,
        asked.call,
        asked.context,
    )
    .await?;
    while let Some(piece) = generation.next().await {
        whole.add(piece?);
    }
    Ok(whole.response(&generation, &request.id))
}

/// Answers piece by piece, or with everything at once where `stream` is false.
///
/// # Errors
/// [`RequestError`]; nothing has been sent of it yet.
pub async fn infer_in_stream(
    shared: &Shared,
    request: &pb::ModelInferRequest,
    context: CallContext,
    replies: &Replies<pb::ModelStreamInferResponse>,
) -> Result<(), RequestError> {
    let asked = inputs::decode(request, context.clone())?;
    if !asked.stream {
        let response = infer(shared, request, context).await?;
        replies.send(in_stream(response)).await;
        return Ok(());
    }
    let returns = asked.returns;
    let mut generation = start_generation(
        &shared.admission,
        &shared.metrics,
        asked.call,
        asked.context,
    )
    .await?;
    while let Some(piece) = generation.next().await {
        let response = outputs::piece(&generation, &request.id, piece?, returns);
        if !replies.send(in_stream(response)).await {
            return Ok(());
        }
    }
    Ok(())
}

fn in_stream(response: pb::ModelInferResponse) -> pb::ModelStreamInferResponse {
    pb::ModelStreamInferResponse {
        error_message: String::new(),
        infer_response: Some(response),
    }
}
