//! What a file says of its tensors: type, shape, and where the bytes lie.

use std::fmt;
use std::ops::Range;

use candle_core::quantized::GgmlDType;

use super::super::error::LoadError;
use super::cursor::Damage;

/// A tensor as the header describes it.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: TensorType,
    /// Shape, outermost dimension first (the file has it the other way round).
    pub shape: Vec<usize>,
    /// Where it lies in the file; empty if the type is not supported.
    pub(super) bytes: Range<usize>,
}

impl TensorInfo {
    /// Bytes in the file; 0 if the type is not supported.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// `shape` as in the file, `data` where the tensors' data begin.
    pub(super) fn new(
        shape: &[u64],
        dtype: TensorType,
        data: u64,
        offset: u64,
        file_len: u64,
    ) -> Result<Self, Damage> {
        let elements = shape
            .iter()
            .try_fold(1_u64, |product, &size| product.checked_mul(size))
            // What follows multiplies by at most a few bytes an element.
            .filter(|elements| (1..=1 << 48).contains(elements))
            .ok_or_else(|| format!("its shape {shape:?} is empty or too large"))?;
        let beyond = || format!("it lies beyond the end of the file, {file_len} bytes");
        let start = data
            .checked_add(offset)
            .filter(|&start| start <= file_len)
            .ok_or_else(beyond)?;
        let end = match dtype {
            TensorType::Supported(dtype) => {
                let block = dtype.block_size() as u64;
                if !shape[0].is_multiple_of(block) {
                    let row = shape[0];
                    return Err(format!("a row of {row} is no multiple of a block, {block}"));
                }
                start + elements / block * dtype.type_size() as u64
            }
            TensorType::Other(_) => start,
        };
        if end > file_len {
            return Err(beyond());
        }
        Ok(Self {
            dtype,
            shape: shape.iter().rev().map(|&size| size as usize).collect(),
            bytes: start as usize..end as usize,
        })
    }
}

/// A GGML type, as the file numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    /// One that models may be made of.
    Supported(GgmlDType),
    /// Any other, by its number.
    Other(u32),
}

/// The number by which files know a type.
pub(super) fn type_id(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q8_1 => 9,
        GgmlDType::Q2K => 10,
        GgmlDType::Q3K => 11,
        GgmlDType::Q4K => 12,
        GgmlDType::Q5K => 13,
        GgmlDType::Q6K => 14,
        GgmlDType::Q8K => 15,
        GgmlDType::BF16 => 30,
    }
}

impl TensorType {
    pub(super) fn from_id(id: u32) -> Self {
        Self::Supported(match id {
            0 => GgmlDType::F32,
            1 => GgmlDType::F16,
            2 => GgmlDType::Q4_0,
            3 => GgmlDType::Q4_1,
            6 => GgmlDType::Q5_0,
            7 => GgmlDType::Q5_1,
            8 => GgmlDType::Q8_0,
            10 => GgmlDType::Q2K,
            11 => GgmlDType::Q3K,
            12 => GgmlDType::Q4K,
            13 => GgmlDType::Q5K,
            14 => GgmlDType::Q6K,
            30 => GgmlDType::BF16,
            // Q8_1 and Q8_K among them: they hold activations, no model is stored in them.
            _ => return Self::Other(id),
        })
    }

    /// The type, or an error that names the tensor.
    pub(in crate::models) fn supported(self, tensor: &str) -> Result<GgmlDType, LoadError> {
        match self {
            Self::Supported(dtype) => Ok(dtype),
            Self::Other(_) => Err(LoadError::GgmlType {
                name: tensor.to_owned(),
                found: self.to_string(),
            }),
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Supported(dtype) => match dtype {
                GgmlDType::Q2K => "Q2_K",
                GgmlDType::Q3K => "Q3_K",
                GgmlDType::Q4K => "Q4_K",
                GgmlDType::Q5K => "Q5_K",
                GgmlDType::Q6K => "Q6_K",
                other => return write!(f, "{other:?}"),
            },
            Self::Other(id) => match id {
                9 => "Q8_1",
                15 => "Q8_K",
                16 => "IQ2_XXS",
                17 => "IQ2_XS",
                18 => "IQ3_XXS",
                19 => "IQ1_S",
                20 => "IQ4_NL",
                21 => "IQ3_S",
                22 => "IQ2_S",
                23 => "IQ4_XS",
                24..=27 => "an integer type",
                28 => "F64",
                29 => "IQ1_M",
                34 => "TQ1_0",
                35 => "TQ2_0",
                39 => "MXFP4",
                _ => return write!(f, "of the unknown GGML type {id}"),
            },
        };
        f.write_str(name)
    }
}
