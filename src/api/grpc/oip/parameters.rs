//! The parameters of a `ModelInferRequest` and of the outputs it asks for.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::tensors::{DataType, outputs_of};
use crate::{
    admission::CallContext,
    api::proto::inference::{self as pb, infer_parameter::ParameterChoice},
    batching::Priority,
    config::Truncation,
    error::RequestError,
    repository::ServedModel,
    text::EncodeOptions,
};

/// What the answer is to hold.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Names of outputs, each with the number of classes asked for (0: the tensor itself), in the
    /// order they are to be answered; empty for all.
    pub outputs: Vec<(String, usize)>,
    /// Dimensions of an embedding to keep; 0 for all.
    pub dimensions: u32,
}

/// What the parameters say of the rows.
#[derive(Debug, Default)]
pub struct Options {
    pub rows: EncodeOptions,
    pub dimensions: u32,
}

/// Reads the request's parameters: Triton's `timeout` (microseconds) and `priority` (1 is the
/// highest), and Ferry's `truncation`, `max_tokens` and `dimensions`. Others are ignored, as Triton
/// does.
pub fn read_parameters(
    parameters: &HashMap<String, pb::InferParameter>,
    context: &mut CallContext,
) -> Result<Options, RequestError> {
    let mut options = Options::default();
    for (name, parameter) in parameters {
        let Some(value) = &parameter.parameter_choice else {
            continue;
        };
        match name.as_str() {
            "timeout" => {
                let microseconds = whole_number(name, value)?;
                if microseconds > 0 {
                    let deadline = Instant::now().checked_add(Duration::from_micros(microseconds));
                    context.deadline = match (context.deadline, deadline) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    };
                }
            }
            "priority" => {
                context.priority = match whole_number(name, value)? {
                    0 | 2 => Priority::NORMAL,
                    1 => Priority::HIGH,
                    _ => Priority::LOW,
                };
            }
            "max_tokens" => {
                options.rows.max_tokens = Some(whole_number(name, value)? as usize);
            }
            "dimensions" => {
                options.dimensions = u32::try_from(whole_number(name, value)?).unwrap_or(u32::MAX);
            }
            "truncation" => {
                options.rows.truncation = Some(match value {
                    ParameterChoice::StringParam(text) if text == "right" => Truncation::Right,
                    ParameterChoice::StringParam(text) if text == "left" => Truncation::Left,
                    ParameterChoice::StringParam(text) if text == "error" => Truncation::Error,
                    other => {
                        let found = format!("{other:?}").chars().take(64).collect::<String>();
                        let allowed = "the string right, left or error";
                        return Err(RequestError::invalid(
                            "parameters.truncation",
                            found,
                            allowed,
                        ));
                    }
                });
            }
            _ => {}
        }
    }
    Ok(options)
}

fn whole_number(name: &str, value: &ParameterChoice) -> Result<u64, RequestError> {
    let number = match value {
        ParameterChoice::Int64Param(value) => u64::try_from(*value).ok(),
        ParameterChoice::Uint64Param(value) => Some(*value),
        ParameterChoice::StringParam(text) => text.parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| {
        let found = format!("{value:?}").chars().take(64).collect::<String>();
        RequestError::invalid(format!("parameters.{name}"), found, "a whole number from 0")
    })
}

/// Understands which outputs are asked for.
pub fn wanted_outputs(
    requested: &[pb::model_infer_request::InferRequestedOutputTensor],
    model: &ServedModel,
) -> Result<Vec<(String, usize)>, RequestError> {
    let specs = outputs_of(model);
    let mut wanted: Vec<(String, usize)> = Vec::with_capacity(requested.len());
    for output in requested {
        let field = format!("outputs['{}']", short(&output.name));
        let Some(spec) = specs.iter().find(|spec| spec.name == output.name) else {
            let names: Vec<_> = specs.iter().map(|spec| spec.name).collect();
            return Err(RequestError::invalid(
                field,
                "an output the model doesn't have",
                names.join(", "),
            ));
        };
        if wanted.iter().any(|(name, _)| *name == output.name) {
            return Err(RequestError::invalid(field, "asked for twice", "once"));
        }
        refuse_shared_memory(&field, &output.parameters)?;
        let classes = match output.parameters.get("classification") {
            None => 0,
            Some(parameter) => {
                let value = parameter.parameter_choice.as_ref();
                let classes = value.map_or(Ok(0), |value| whole_number("classification", value))?;
                if classes == 0 || spec.datatype != DataType::Fp32 {
                    return Err(RequestError::invalid(
                        field,
                        format_args!("classification {classes} of {}", spec.datatype.name()),
                        "1 or more classes of an FP32 output",
                    ));
                }
                classes as usize
            }
        };
        wanted.push((output.name.clone(), classes));
    }
    Ok(wanted)
}

/// Refuses a tensor that is said to be in shared memory.
pub fn refuse_shared_memory(
    field: &str,
    parameters: &HashMap<String, pb::InferParameter>,
) -> Result<(), RequestError> {
    if parameters.contains_key("shared_memory_region") {
        return Err(RequestError::Unimplemented {
            what: format!("{field}: shared memory; send the tensor in the request"),
        });
    }
    Ok(())
}

/// The parameter of an answer that tells whether nothing was run for it.
pub fn cached_parameter(cached: bool) -> (String, pb::InferParameter) {
    let choice = ParameterChoice::BoolParam(cached);
    let parameter = pb::InferParameter {
        parameter_choice: Some(choice),
    };
    ("ferry_cached".to_owned(), parameter)
}

/// A caller's string, cut to what an error message should hold.
pub fn short(text: &str) -> String {
    text.chars().take(64).collect()
}
