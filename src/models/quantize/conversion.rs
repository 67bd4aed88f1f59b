//! What an output file will hold, before a weight is read: metadata in order, and each tensor with
//! where its values come from.

use candle_core::quantized::GgmlDType;

use super::super::error::LoadError;
use super::super::gguf::MetadataValue;
use super::super::source::Source;
use super::super::tensor_plan::TensorPlan;

/// A model on its way into a GGUF file.
#[derive(Debug)]
pub(super) struct Conversion {
    pub metadata: Vec<(String, MetadataValue)>,
    pub tensors: Vec<Converted>,
    /// Decides, among others, which layers get more bits.
    pub layers: usize,
    pub heads_per_kv: usize,
    /// What a reader of the report should know.
    pub notes: Vec<String>,
}

/// A tensor of the output.
#[derive(Debug)]
pub(super) struct Converted {
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    pub origin: Origin,
    /// The type that it has where it comes from.
    pub from: String,
    /// The type that it keeps if no rule wants it quantized.
    pub unruled: Unruled,
}

/// What becomes of a tensor that is not quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unruled {
    /// It is written in f32.
    F32,
    /// It is copied as it is.
    Copied(GgmlDType),
}

/// Where a tensor's values come from.
#[derive(Debug)]
pub(super) enum Origin {
    /// A tensor of the input, changed.
    File { name: String, change: Change },
    /// They are computed.
    Values(Vec<f32>),
}

/// How the values in a checkpoint become those of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    None,
    /// Something is added to each: 1 to Gemma's norms.
    Add(f32),
    /// The rows of each of so many heads change their order: dimensions that rotate together are
    /// half a head apart in transformers, and neighbours in llama.cpp's `llama`.
    Interleave {
        heads: usize,
    },
    /// The first rows are left out: positions that no token has.
    Skip {
        rows: usize,
    },
}

impl Converted {
    /// `source`'s `from`, renamed `to`.
    pub fn of(source: &Source, from: &TensorPlan, to: &TensorPlan, change: Change) -> Self {
        let dtype = match source {
            Source::Gguf(file) => file.tensors()[&from.name].dtype.to_string(),
            Source::Safetensors(_, checkpoint) => {
                format!("{:?}", checkpoint.entries()[&from.name].dtype)
            }
        };
        Self {
            name: to.name.clone(),
            shape: to.shape.clone(),
            origin: Origin::File {
                name: from.name.clone(),
                change,
            },
            from: dtype.to_lowercase(),
            unruled: Unruled::F32,
        }
    }

    /// A tensor that no file has.
    pub fn computed(name: &str, values: Vec<f32>) -> Self {
        Self {
            name: name.to_owned(),
            shape: vec![values.len()],
            origin: Origin::Values(values),
            from: "f32".to_owned(),
            unruled: Unruled::F32,
        }
    }

    /// The values, in f32.
    pub fn values(&self, source: &Source) -> Result<Vec<f32>, LoadError> {
        match &self.origin {
            Origin::Values(values) => Ok(values.clone()),
            Origin::File { name, change } => {
                let values = source.values(name)?;
                Ok(change.apply(values, &self.shape))
            }
        }
    }
}

impl Change {
    /// From the values in the file to those of a tensor of shape `shape`.
    fn apply(self, mut values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match self {
            Self::None => values,
            Self::Add(offset) => {
                for value in &mut values {
                    *value += offset;
                }
                values
            }
            Self::Skip { rows } => values.split_off(rows * shape[1]),
            Self::Interleave { heads } => {
                let width: usize = shape[1..].iter().product();
                let pairs = shape[0] / heads / 2;
                let mut changed = Vec::with_capacity(values.len());
                for head in values.chunks_exact(2 * pairs * width) {
                    for pair in 0..pairs {
                        for half in [0, pairs] {
                            changed.extend(&head[(half + pair) * width..][..width]);
                        }
                    }
                }
                changed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_change_as_llama_cpp_wants_them() {
        let values: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let change = |change: Change, shape: &[usize]| change.apply(values.clone(), shape);
        assert_eq!(change(Change::None, &[8]), values);
        assert_eq!(
            change(Change::Add(1.0), &[8])[7].to_bits(),
            8.0_f32.to_bits()
        );
        assert_eq!(change(Change::Skip { rows: 3 }, &[1, 2]), [6.0, 7.0]);
        let two_heads = Change::Interleave { heads: 2 };
        assert_eq!(
            change(two_heads, &[8]),
            [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
        );
        let one_head = Change::Interleave { heads: 1 };
        assert_eq!(
            change(one_head, &[4, 2]),
            [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]
        );
    }
}
