//! Layer normalisation of one row, the tail of every fused op that ends in it.
//!
//! ```text
//! μ = Σx / n,  σ² = Σ(x − μ)² / n,  y = (x − μ) / √(σ² + ε) · γ + β
//! ```
//! Ba, Kiros, Hinton 2016 (arXiv:1607.06450). Two passes over a row that lies in L1: the one-pass
//! formula `E[x²] − μ²` loses all digits when the mean is large against the spread.

use super::simd::{Arithmetic, sum_of};

/// Gain `γ`, offset `β` (each `[hidden]`) and `ε`.
#[derive(Clone, Copy)]
pub(crate) struct NormWeights<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub epsilon: f32,
}

/// Normalises `row` in place. `row`, `weight` and `bias` have equal lengths.
#[inline(always)]
pub(crate) fn normalize_row<A: Arithmetic>(row: &mut [f32], norm: NormWeights<'_>) {
    let scale = 1.0 / row.len() as f32;
    let mean = sum_of(row, |x| x) * scale;
    let variance = sum_of(row, |x| (x - mean) * (x - mean)) * scale;
    let inverse = 1.0 / (variance + norm.epsilon).sqrt();
    for ((x, w), b) in row.iter_mut().zip(norm.weight).zip(norm.bias) {
        *x = A::mul_add((*x - mean) * inverse, *w, *b);
    }
}
