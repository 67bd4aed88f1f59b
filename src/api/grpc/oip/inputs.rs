//! From a `ModelInferRequest` to admission's call: every name, type, shape and length checked.

use std::collections::HashMap;

use super::{
    parameters::{Wanted, read_parameters, refuse_shared_memory, short, wanted_outputs},
    tensors::{DataType, TensorSpec, inputs_of, split_bytes},
};
use crate::{
    admission::{Call, CallContext, WhenUnsure},
    api::proto::inference::{self as pb, model_infer_request::InferInputTensor},
    config::Task,
    error::RequestError,
    repository::ServedModel,
    text::{EncodeOptions, RowInput},
};

/// A request that is understood.
#[derive(Debug)]
pub struct Decoded {
    pub call: Call,
    pub context: CallContext,
    pub id: String,
    /// The texts, for answers that point into them; empty unless the task needs them.
    pub texts: Vec<String>,
    pub wanted: Wanted,
}

/// A call without rows, to account for a request that was not understood.
pub fn empty_call(model: &ServedModel) -> Call {
    Call {
        model: model.name.clone(),
        version: model.version.clone(),
        task: None,
        rows: Vec::new(),
        options: EncodeOptions::default(),
        dimensions: 0,
        when_unsure: WhenUnsure::default(),
        keeps_no_answer: false,
        field: "inputs",
    }
}

/// Understands a request for `model`.
pub fn decode(
    request: pb::ModelInferRequest,
    model: &ServedModel,
    mut context: CallContext,
    max_rows: usize,
) -> Result<Decoded, RequestError> {
    let options = read_parameters(&request.parameters, &mut context)?;
    let outputs = wanted_outputs(&request.outputs, model)?;
    let mut tensors = read_tensors(&request, model, max_rows)?;

    let mut texts = Vec::new();
    let mut take_text = |name: &str| tensors.remove(name).map(Tensor::into_texts);
    let (rows, field) = match model.task() {
        Task::Rerank => {
            let query = take_text("QUERY").ok_or_else(|| missing("QUERY"))??;
            let text = take_text("TEXT").ok_or_else(|| missing("TEXT"))??;
            let pairs = query.into_iter().zip(text);
            let rows = pairs.map(|(query, text)| RowInput::Pair(query, text));
            (rows.collect(), "TEXT")
        }
        Task::Tokens => {
            texts = take_text("TEXT").ok_or_else(|| missing("TEXT"))??;
            (texts.iter().cloned().map(RowInput::Text).collect(), "TEXT")
        }
        Task::Generate => {
            return Err(model
                .encoder()
                .err()
                .unwrap_or_else(|| RequestError::internal("no encoder")));
        }
        Task::Embed | Task::Classify => {
            let text = take_text("TEXT");
            match (text, tensors.remove("INPUT_IDS")) {
                (Some(text), None) => (text?.into_iter().map(RowInput::Text).collect(), "TEXT"),
                (None, Some(ids)) => {
                    let mask = tensors.remove("ATTENTION_MASK");
                    (read_ids(&ids, mask.as_ref())?, "INPUT_IDS")
                }
                (Some(_), Some(_)) => {
                    let allowed = "one of TEXT and INPUT_IDS";
                    return Err(RequestError::invalid(
                        "inputs",
                        "both TEXT and INPUT_IDS",
                        allowed,
                    ));
                }
                (None, None) => return Err(missing("TEXT (or INPUT_IDS)")),
            }
        }
    };
    Ok(Decoded {
        call: Call {
            model: model.name.clone(),
            version: model.version.clone(),
            task: None,
            rows,
            options: options.rows,
            dimensions: options.dimensions as usize,
            when_unsure: WhenUnsure::default(),
            keeps_no_answer: false,
            field,
        },
        context,
        id: request.id,
        texts,
        wanted: Wanted {
            outputs,
            dimensions: options.dimensions,
        },
    })
}

/// An input whose name, type, shape and length are right.
#[derive(Debug)]
struct Tensor<'a> {
    name: &'static str,
    rows: usize,
    width: usize,
    data: Data<'a>,
}

#[derive(Debug)]
enum Data<'a> {
    Bytes(Vec<&'a [u8]>),
    Int64(Vec<i64>),
}

impl Tensor<'_> {
    fn into_texts(self) -> Result<Vec<String>, RequestError> {
        let Data::Bytes(elements) = self.data else {
            return Err(RequestError::internal("a text tensor that isn't BYTES"));
        };
        let texts = elements.into_iter().enumerate().map(|(row, element)| {
            let text = std::str::from_utf8(element).map_err(|error| {
                RequestError::invalid(
                    format!("{}[{row}]", self.name),
                    format_args!("invalid UTF-8 at byte {}", error.valid_up_to()),
                    "UTF-8 text",
                )
            })?;
            Ok(text.to_owned())
        });
        texts.collect()
    }
}

fn read_tensors<'a>(
    request: &'a pb::ModelInferRequest,
    model: &ServedModel,
    max_rows: usize,
) -> Result<HashMap<&'static str, Tensor<'a>>, RequestError> {
    let specs = inputs_of(model.task());
    let raw = &request.raw_input_contents;
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        return Err(RequestError::invalid(
            "raw_input_contents",
            format_args!("{} entries", raw.len()),
            format_args!("one for each of the {} inputs", request.inputs.len()),
        ));
    }
    let mut tensors: HashMap<&'static str, Tensor<'a>> = HashMap::new();
    for (at, input) in request.inputs.iter().enumerate() {
        let field = format!("inputs['{}']", short(&input.name));
        let Some(spec) = specs.iter().find(|spec| spec.name == input.name) else {
            let names: Vec<_> = specs.iter().map(|spec| spec.name).collect();
            return Err(RequestError::invalid(
                field,
                "an input the model doesn't have",
                names.join(", "),
            ));
        };
        if tensors.contains_key(spec.name) {
            return Err(RequestError::invalid(field, "given twice", "once"));
        }
        refuse_shared_memory(&field, &input.parameters)?;
        let (rows, width) = read_shape(&field, input, spec, max_rows)?;
        let raw = raw.get(at).map(AsRef::as_ref);
        let data = read_data(&field, input, spec, rows * width, raw)?;
        if let Some(other) = tensors.values().find(|other| other.rows != rows) {
            return Err(RequestError::invalid(
                field,
                format_args!("{rows} rows"),
                format_args!("{} rows, as in {}", other.rows, other.name),
            ));
        }
        let name = spec.name;
        let tensor = Tensor {
            name,
            rows,
            width,
            data,
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// Checks type and shape; returns rows and width, both at least 1 and bounded, so that their
/// product can't overflow.
fn read_shape(
    field: &str,
    input: &InferInputTensor,
    spec: &TensorSpec,
    max_rows: usize,
) -> Result<(usize, usize), RequestError> {
    if input.datatype != spec.datatype.name() {
        return Err(RequestError::invalid(
            format!("{field}.datatype"),
            format_args!("'{}'", short(&input.datatype)),
            spec.datatype.name(),
        ));
    }
    // Ids of one row: far more than any model takes, far less than what could overflow.
    let max_width = if spec.width > 0 { spec.width } else { 1 << 20 };
    let wrong = || {
        let found: Vec<_> = input.shape.iter().take(8).collect();
        let width = if spec.width > 0 {
            spec.width.to_string()
        } else {
            "tokens".to_owned()
        };
        RequestError::invalid(
            format!("{field}.shape"),
            format_args!("{found:?}"),
            format_args!("[rows, {width}] with 1 to {max_rows} rows"),
        )
    };
    let &[rows, width] = input.shape.as_slice() else {
        return Err(wrong());
    };
    let rows = usize::try_from(rows).map_err(|_| wrong())?;
    let right = (1..=max_rows).contains(&rows)
        && (1..=max_width).contains(&width)
        && (spec.width < 0 || width == spec.width);
    if right {
        Ok((rows, width as usize))
    } else {
        Err(wrong())
    }
}

fn read_data<'a>(
    field: &str,
    input: &'a InferInputTensor,
    spec: &TensorSpec,
    elements: usize,
    raw: Option<&'a [u8]>,
) -> Result<Data<'a>, RequestError> {
    let count_error = |found: usize, what: &str| {
        RequestError::invalid(
            field,
            format_args!("{found} {what}"),
            format_args!("{elements}, as the shape says"),
        )
    };
    if let Some(raw) = raw {
        if input.contents.is_some() {
            let found = "both contents and raw_input_contents";
            return Err(RequestError::invalid(field, found, "one of the two"));
        }
        if spec.datatype == DataType::Bytes {
            let split = split_bytes(raw).ok_or_else(|| {
                RequestError::invalid(
                    field,
                    "raw bytes whose lengths don't add up",
                    "each element as a 4-byte little-endian length and its bytes",
                )
            })?;
            if split.len() != elements {
                return Err(count_error(split.len(), "elements"));
            }
            return Ok(Data::Bytes(split));
        }
        let (values, rest) = raw.as_chunks::<8>();
        if values.len() != elements || !rest.is_empty() {
            return Err(count_error(raw.len(), "raw bytes; 8 to each element"));
        }
        let values = values.iter().map(|value| i64::from_le_bytes(*value));
        return Ok(Data::Int64(values.collect()));
    }
    let Some(contents) = &input.contents else {
        return Err(RequestError::invalid(
            field,
            "no data",
            "contents, or raw_input_contents of the request",
        ));
    };
    refuse_other_contents(field, contents, spec.datatype)?;
    if spec.datatype == DataType::Bytes {
        if contents.bytes_contents.len() != elements {
            return Err(count_error(contents.bytes_contents.len(), "elements"));
        }
        let elements = contents.bytes_contents.iter().map(AsRef::as_ref);
        return Ok(Data::Bytes(elements.collect()));
    }
    if contents.int64_contents.len() != elements {
        return Err(count_error(contents.int64_contents.len(), "elements"));
    }
    Ok(Data::Int64(contents.int64_contents.clone()))
}

/// Refuses typed contents in a field of another type, which would otherwise be read as missing.
fn refuse_other_contents(
    field: &str,
    contents: &pb::InferTensorContents,
    datatype: DataType,
) -> Result<(), RequestError> {
    let fields = [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ];
    let right = match datatype {
        DataType::Bytes => "bytes_contents",
        _ => "int64_contents",
    };
    match fields.iter().find(|(name, len)| *len > 0 && *name != right) {
        Some((name, _)) => Err(RequestError::invalid(field, name, right)),
        None => Ok(()),
    }
}

fn read_ids(ids: &Tensor, mask: Option<&Tensor>) -> Result<Vec<RowInput>, RequestError> {
    let Data::Int64(values) = &ids.data else {
        return Err(RequestError::internal("INPUT_IDS that isn't INT64"));
    };
    let mask = match mask {
        None => None,
        Some(mask) if mask.width != ids.width => {
            return Err(RequestError::invalid(
                "ATTENTION_MASK",
                format_args!("{} wide", mask.width),
                format_args!("{}, as INPUT_IDS", ids.width),
            ));
        }
        Some(mask) => match &mask.data {
            Data::Int64(values) => Some(values),
            Data::Bytes(_) => {
                return Err(RequestError::internal("ATTENTION_MASK that isn't INT64"));
            }
        },
    };
    let mut rows = Vec::with_capacity(ids.rows);
    for row in 0..ids.rows {
        let mut kept = Vec::with_capacity(ids.width);
        for at in row * ids.width..(row + 1) * ids.width {
            match mask.map_or(1, |mask| mask[at]) {
                0 => continue,
                1 => {}
                other => {
                    let field = format!("ATTENTION_MASK[{row}]");
                    return Err(RequestError::invalid(field, other, "0 or 1"));
                }
            }
            kept.push(u32::try_from(values[at]).map_err(|_| {
                let field = format!("INPUT_IDS[{row}]");
                RequestError::invalid(field, values[at], "ids from 0 to the vocabulary's last")
            })?);
        }
        rows.push(RowInput::Tokens(kept));
    }
    Ok(rows)
}

fn missing(name: &str) -> RequestError {
    RequestError::invalid("inputs", "no such tensor", name)
}
