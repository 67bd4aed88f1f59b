//! From pieces to responses.

use std::collections::HashMap;

use super::inputs::{Asked, Returns};
use crate::{
    admission::{Ending, Escalation, Piece},
    api::{
        generation::AccountedGeneration,
        grpc::oip::{
            outputs::escalation_parameters,
            parameters::cached_parameter,
            tensors::{DataType, put_bytes},
        },
        proto::inference::{
            self as pb, infer_parameter::ParameterChoice, model_infer_response::InferOutputTensor,
        },
    },
};

/// A continuation as far as it has come.
#[derive(Debug, Clone, Default)]
struct Continuation {
    text: String,
    logprob: f32,
    tokens: u32,
    ending: Option<Ending>,
    escalation: Option<Box<Escalation>>,
}

impl Continuation {
    fn add(&mut self, piece: Piece) {
        self.text.push_str(&piece.text);
        self.tokens += piece.tokens.len() as u32;
        self.logprob += piece
            .tokens
            .iter()
            .filter_map(|token| token.logprob)
            .sum::<f32>();
        if let Some(finish) = piece.finish {
            self.ending = Some(finish.ending);
            self.escalation = finish.escalation;
        }
    }
}

/// Gathers all pieces of a request for one response.
#[derive(Debug)]
pub struct Whole {
    continuations: Vec<Continuation>,
    returns: Returns,
}

impl Whole {
    pub fn new(asked: &Asked) -> Self {
        let text = asked.prepend.clone().unwrap_or_default();
        let empty = Continuation {
            text,
            ..Continuation::default()
        };
        Self {
            continuations: vec![empty; asked.call.continuations as usize],
            returns: asked.returns,
        }
    }

    pub fn add(&mut self, piece: Piece) {
        if let Some(continuation) = self.continuations.get_mut(piece.index as usize) {
            continuation.add(piece);
        }
    }

    pub fn response(&self, generation: &AccountedGeneration, id: &str) -> pb::ModelInferResponse {
        encode(generation, id, &self.continuations, self.returns, true)
    }
}

/// The response for one piece of a stream.
pub fn piece(
    generation: &AccountedGeneration,
    id: &str,
    piece: Piece,
    returns: Returns,
) -> pb::ModelInferResponse {
    let mut continuation = Continuation::default();
    continuation.add(piece);
    let is_last = generation.is_over();
    encode(generation, id, &[continuation], returns, is_last)
}

fn encode(
    generation: &AccountedGeneration,
    id: &str,
    continuations: &[Continuation],
    returns: Returns,
    is_last: bool,
) -> pb::ModelInferResponse {
    let mut outputs = Vec::new();
    let mut raw_output_contents = Vec::new();
    let mut put = |name: &str, datatype: DataType, count: usize, raw: Vec<u8>| {
        outputs.push(InferOutputTensor {
            name: name.to_owned(),
            datatype: datatype.name().to_owned(),
            shape: vec![count as i64],
            ..InferOutputTensor::default()
        });
        raw_output_contents.push(raw.into());
    };
    let count = continuations.len();
    let texts = |text: &dyn Fn(&Continuation) -> &str| {
        let mut raw = Vec::new();
        for continuation in continuations {
            put_bytes(&mut raw, text(continuation).as_bytes());
        }
        raw
    };
    let text_output = texts(&|continuation| &continuation.text);
    put("text_output", DataType::Bytes, count, text_output);
    if returns.finish_reason {
        let reasons = texts(&|continuation| match &continuation.ending {
            None => "None",
            Some(ending) if ending.is_stop() => "stop",
            Some(_) => "length",
        });
        put("finish_reason", DataType::Bytes, count, reasons);
    }
    if returns.cumulative_logprob {
        let raw = continuations
            .iter()
            .flat_map(|continuation| continuation.logprob.to_le_bytes())
            .collect();
        put("cumulative_logprob", DataType::Fp32, count, raw);
    }
    if returns.input_tokens {
        let raw = generation.prompt_tokens.to_le_bytes().to_vec();
        put("num_input_tokens", DataType::Uint32, 1, raw);
    }
    if returns.output_tokens {
        let raw = continuations
            .iter()
            .flat_map(|continuation| continuation.tokens.to_le_bytes())
            .collect();
        put("num_output_tokens", DataType::Uint32, count, raw);
    }
    let is_last = pb::InferParameter {
        parameter_choice: Some(ParameterChoice::BoolParam(is_last)),
    };
    let mut parameters = HashMap::from([("triton_final_response".to_owned(), is_last)]);
    parameters.extend(generation.cached.map(cached_parameter));
    let by: Vec<_> = continuations
        .iter()
        .map(|continuation| continuation.escalation.as_deref())
        .collect();
    parameters.extend(escalation_parameters(&generation.model, &by));
    pb::ModelInferResponse {
        model_name: generation.model.name.clone(),
        model_version: generation.model.version.clone(),
        id: id.to_owned(),
        parameters,
        outputs,
        raw_output_contents,
    }
}
