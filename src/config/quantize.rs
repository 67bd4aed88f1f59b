//! The manifest's `quantize`: what weights become as they are loaded.

use serde::{Deserialize, Serialize};

/// What weights are quantized to as they are loaded. The names are those of `ferry quantize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quantize {
    /// 4.5 bits a weight.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 5 bits a weight.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 5.5 bits a weight.
    #[serde(rename = "q5_0")]
    Q5_0,
    /// 6 bits a weight.
    #[serde(rename = "q5_1")]
    Q5_1,
    /// 8.5 bits a weight.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 2.6 bits a weight, in blocks of 256.
    #[serde(rename = "q2_k")]
    Q2K,
    /// 3.4 bits a weight, in blocks of 256.
    #[serde(rename = "q3_k")]
    Q3K,
    /// 4.5 bits a weight, in blocks of 256.
    #[serde(rename = "q4_k")]
    Q4K,
    /// 5.5 bits a weight, in blocks of 256.
    #[serde(rename = "q5_k")]
    Q5K,
    /// 6.6 bits a weight, in blocks of 256.
    #[serde(rename = "q6_k")]
    Q6K,
}
