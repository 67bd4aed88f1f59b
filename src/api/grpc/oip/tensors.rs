//! The tensors of each task, and their bytes.
//!
//! | task | inputs | outputs |
//! | --- | --- | --- |
//! | embed | `TEXT`, or `INPUT_IDS` with `ATTENTION_MASK` | `EMBEDDING` |
//! | classify | `TEXT`, or `INPUT_IDS` with `ATTENTION_MASK` | `SCORES`, `LABEL`, `CONFIDENCE` |
//! | rerank | `QUERY`, `TEXT` | `SCORE`, `LOGIT` |
//! | tokens | `TEXT` | `ENTITIES` (JSON) |
//! | generate | `text_input` and others, see `generate` | `text_output` and others |
//!
//! All but `generate` also give `TOKEN_COUNT` and `TRUNCATED`, and the first dimension of their
//! tensors is the row.

use super::generate;
use crate::{api::proto::inference as pb, config::Task, repository::ServedModel};

/// An element type of the protocol that Ferry's tensors use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    Bool,
    Int32,
    Int64,
    Uint32,
    Fp32,
    Bytes,
}

impl DataType {
    /// The protocol's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Uint32 => "UINT32",
            Self::Fp32 => "FP32",
            Self::Bytes => "BYTES",
        }
    }

    /// The value in a model configuration.
    pub fn config(self) -> i32 {
        let value = match self {
            Self::Bool => pb::DataType::TypeBool,
            Self::Int32 => pb::DataType::TypeInt32,
            Self::Int64 => pb::DataType::TypeInt64,
            Self::Uint32 => pb::DataType::TypeUint32,
            Self::Fp32 => pb::DataType::TypeFp32,
            Self::Bytes => pb::DataType::TypeString,
        };
        value.into()
    }
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: &'static str,
    pub datatype: DataType,
    /// Its second dimension, the first being the row; -1 for any.
    pub width: i64,
    pub optional: bool,
}

impl TensorSpec {
    pub const fn new(name: &'static str, datatype: DataType, width: i64) -> Self {
        Self {
            name,
            datatype,
            width,
            optional: false,
        }
    }

    pub const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

/// The inputs of a task.
pub fn inputs_of(task: Task) -> Vec<TensorSpec> {
    let text = TensorSpec::new("TEXT", DataType::Bytes, 1);
    match task {
        Task::Rerank => vec![TensorSpec::new("QUERY", DataType::Bytes, 1), text],
        Task::Tokens => vec![text],
        // TEXT may be left out when INPUT_IDS is there.
        Task::Generate => generate::INPUTS.to_vec(),
        Task::Embed | Task::Classify => vec![
            text.optional(),
            TensorSpec::new("INPUT_IDS", DataType::Int64, -1).optional(),
            TensorSpec::new("ATTENTION_MASK", DataType::Int64, -1).optional(),
        ],
    }
}

/// The outputs of a model.
pub fn outputs_of(model: &ServedModel) -> Vec<TensorSpec> {
    let width = model.output_size as i64;
    let mut outputs = match model.task() {
        Task::Embed => vec![TensorSpec::new("EMBEDDING", DataType::Fp32, width)],
        Task::Classify => vec![
            TensorSpec::new("SCORES", DataType::Fp32, width),
            TensorSpec::new("LABEL", DataType::Bytes, 1),
            TensorSpec::new("CONFIDENCE", DataType::Fp32, 1),
        ],
        Task::Rerank => vec![
            TensorSpec::new("SCORE", DataType::Fp32, 1),
            TensorSpec::new("LOGIT", DataType::Fp32, 1),
        ],
        Task::Tokens => vec![TensorSpec::new("ENTITIES", DataType::Bytes, 1)],
        Task::Generate => return generate::OUTPUTS.to_vec(),
    };
    outputs.push(TensorSpec::new("TOKEN_COUNT", DataType::Int32, 1));
    outputs.push(TensorSpec::new("TRUNCATED", DataType::Bool, 1));
    outputs
}

/// Splits raw BYTES content into its elements: each a length (u32, little-endian) and its data.
/// `None` when the lengths don't add up.
pub fn split_bytes(mut raw: &[u8]) -> Option<Vec<&[u8]>> {
    let mut elements = Vec::new();
    while !raw.is_empty() {
        let (length, rest) = raw.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        elements.push(rest.get(..length)?);
        raw = &rest[length..];
    }
    Some(elements)
}

/// Appends one BYTES element.
pub fn put_bytes(raw: &mut Vec<u8>, element: &[u8]) {
    raw.extend_from_slice(&(element.len() as u32).to_le_bytes());
    raw.extend_from_slice(element);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_elements_survive_the_way_there_and_back() {
        let mut raw = Vec::new();
        for element in ["", "a", "ferry"] {
            put_bytes(&mut raw, element.as_bytes());
        }
        assert_eq!(split_bytes(&raw).unwrap(), [&b""[..], b"a", b"ferry"]);
    }

    #[test]
    fn lengths_that_do_not_add_up_are_noticed() {
        for raw in [&[1, 0, 0, 0][..], &[0, 0, 0], &[255, 255, 255, 255, 1]] {
            assert_eq!(split_bytes(raw), None);
        }
    }
}
