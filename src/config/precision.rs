//! The manifest's `compute`: the precision of an encoder's matrix products.

use serde::{Deserialize, Serialize};

/// What matrix products are computed in; inputs, outputs and all else are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with the range of f32; sums in f32.
    Bf16,
    /// 8-bit integers, scaled by output and row; exact sums.
    Int8,
}

impl Precision {
    /// As the manifest has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}
