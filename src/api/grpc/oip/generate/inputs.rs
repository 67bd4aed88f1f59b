//! From the tensors of a request to admission's call.

use super::sampling::read_sampling;
use crate::{
    admission::{CallContext, GenerateCall, Prompt},
    api::{
        grpc::oip::{
            parameters::{read_parameters, refuse_shared_memory, short},
            tensors::{DataType, TensorSpec, split_bytes},
        },
        proto::inference::{self as pb, model_infer_request::InferInputTensor},
    },
    error::RequestError,
};

/// The inputs of a model that generates.
pub const INPUTS: [TensorSpec; 8] = [
    TensorSpec::new("text_input", DataType::Bytes, 1),
    TensorSpec::new("stream", DataType::Bool, 1).optional(),
    TensorSpec::new("sampling_parameters", DataType::Bytes, 1).optional(),
    TensorSpec::new("exclude_input_in_output", DataType::Bool, 1).optional(),
    TensorSpec::new("return_finish_reason", DataType::Bool, 1).optional(),
    TensorSpec::new("return_cumulative_logprob", DataType::Bool, 1).optional(),
    TensorSpec::new("return_num_input_tokens", DataType::Bool, 1).optional(),
    TensorSpec::new("return_num_output_tokens", DataType::Bool, 1).optional(),
];

/// Its outputs.
pub const OUTPUTS: [TensorSpec; 5] = [
    TensorSpec::new("text_output", DataType::Bytes, -1),
    TensorSpec::new("finish_reason", DataType::Bytes, -1),
    TensorSpec::new("cumulative_logprob", DataType::Fp32, -1),
    TensorSpec::new("num_input_tokens", DataType::Uint32, 1),
    TensorSpec::new("num_output_tokens", DataType::Uint32, -1),
];

/// What is wanted beside the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "one switch of the protocol each"
)]
pub struct Returns {
    pub finish_reason: bool,
    pub cumulative_logprob: bool,
    pub input_tokens: bool,
    pub output_tokens: bool,
}

/// A request that is understood.
#[derive(Debug)]
pub struct Asked {
    pub call: GenerateCall,
    pub context: CallContext,
    pub stream: bool,
    /// The prompt, where the text is to begin with it.
    pub prepend: Option<String>,
    pub returns: Returns,
}

/// Understands a request.
pub fn decode(
    request: &pb::ModelInferRequest,
    mut context: CallContext,
) -> Result<Asked, RequestError> {
    read_parameters(&request.parameters, &mut context)?;
    let tensors = Tensors::read(request)?;
    let Some(prompt) = tensors.text("text_input")? else {
        return Err(RequestError::invalid(
            "inputs",
            "no text_input",
            "text_input",
        ));
    };
    let stream = tensors.switch("stream")?.unwrap_or(false);
    let exclude = tensors.switch("exclude_input_in_output")?;
    if stream && exclude == Some(false) {
        return Err(RequestError::invalid(
            "inputs['exclude_input_in_output']",
            "false",
            "true while stream is true: the prompt is not streamed",
        ));
    }
    let prepend = (!stream && exclude != Some(true)).then(|| prompt.clone());
    let mut call = GenerateCall::new(request.model_name.clone(), Prompt::Text(prompt));
    call.version.clone_from(&request.model_version);
    call.whole = !stream;
    if let Some(json) = tensors.text("sampling_parameters")? {
        read_sampling(&json, &mut call)?;
    }
    let returned = |name| Ok::<_, RequestError>(tensors.switch(name)?.unwrap_or(false));
    Ok(Asked {
        call,
        context,
        stream,
        prepend,
        returns: Returns {
            finish_reason: returned("return_finish_reason")?,
            cumulative_logprob: returned("return_cumulative_logprob")?,
            input_tokens: returned("return_num_input_tokens")?,
            output_tokens: returned("return_num_output_tokens")?,
        },
    })
}

/// The request's tensors, names, types and shapes checked.
struct Tensors<'a> {
    request: &'a pb::ModelInferRequest,
}

impl<'a> Tensors<'a> {
    fn read(request: &'a pb::ModelInferRequest) -> Result<Self, RequestError> {
        let raw = request.raw_input_contents.len();
        if raw > 0 && raw != request.inputs.len() {
            return Err(RequestError::invalid(
                "raw_input_contents",
                format_args!("{raw} entries"),
                format_args!("one for each of the {} inputs", request.inputs.len()),
            ));
        }
        for (at, input) in request.inputs.iter().enumerate() {
            let field = format!("inputs['{}']", short(&input.name));
            let Some(spec) = INPUTS.iter().find(|spec| spec.name == input.name) else {
                let names = INPUTS.map(|spec| spec.name).join(", ");
                return Err(RequestError::invalid(
                    field,
                    "an input the model doesn't have",
                    names,
                ));
            };
            if request.inputs[..at]
                .iter()
                .any(|other| other.name == input.name)
            {
                return Err(RequestError::invalid(field, "given twice", "once"));
            }
            refuse_shared_memory(&field, &input.parameters)?;
            if input.datatype != spec.datatype.name() {
                return Err(RequestError::invalid(
                    format!("{field}.datatype"),
                    format_args!("'{}'", short(&input.datatype)),
                    spec.datatype.name(),
                ));
            }
            if input.shape != [1] && input.shape != [1, 1] {
                let found: Vec<_> = input.shape.iter().take(8).collect();
                return Err(RequestError::invalid(
                    format!("{field}.shape"),
                    format_args!("{found:?}"),
                    "[1]: one prompt a request; batches are made of many requests",
                ));
            }
        }
        Ok(Self { request })
    }

    fn find(&self, name: &str) -> Option<(&'a InferInputTensor, Option<&'a [u8]>)> {
        let at = self
            .request
            .inputs
            .iter()
            .position(|input| input.name == name)?;
        let raw = self.request.raw_input_contents.get(at);
        Some((&self.request.inputs[at], raw.map(AsRef::as_ref)))
    }

    fn text(&self, name: &str) -> Result<Option<String>, RequestError> {
        let Some((input, raw)) = self.find(name) else {
            return Ok(None);
        };
        let one = || {
            let allowed = "one element: a 4-byte little-endian length and its bytes";
            RequestError::invalid(format!("inputs['{name}']"), "other contents", allowed)
        };
        let elements = match (raw, &input.contents) {
            (Some(raw), None) => split_bytes(raw).ok_or_else(one)?,
            (None, Some(contents)) => contents.bytes_contents.iter().map(AsRef::as_ref).collect(),
            _ => return Err(one()),
        };
        let &[element] = elements.as_slice() else {
            return Err(one());
        };
        let text = std::str::from_utf8(element).map_err(|error| {
            RequestError::invalid(
                format!("inputs['{name}']"),
                format_args!("invalid UTF-8 at byte {}", error.valid_up_to()),
                "UTF-8 text",
            )
        })?;
        Ok(Some(text.to_owned()))
    }

    fn switch(&self, name: &str) -> Result<Option<bool>, RequestError> {
        let Some((input, raw)) = self.find(name) else {
            return Ok(None);
        };
        match (raw, &input.contents) {
            (Some(&[byte]), None) => Ok(Some(byte != 0)),
            (None, Some(contents)) if contents.bool_contents.len() == 1 => {
                Ok(Some(contents.bool_contents[0]))
            }
            _ => Err(RequestError::invalid(
                format!("inputs['{name}']"),
                "other contents",
                "one BOOL: 1 byte",
            )),
        }
    }
}
