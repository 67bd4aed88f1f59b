//! The activation in the precision of the product: a row of 32-bit words, as
//! [`Compute::words`] orders them.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators over vectors might not be inlined, and they would go through memory"
)]

use super::super::simd::{Arithmetic, Kernel, WIDTH, dispatch};
use super::Compute;

/// A row in bytes: `x ≈ scale · (byte − zero)`. The range of the row's values, widened to have 0
/// in it, is cut in 255 steps: rows that a GELU has made have few values below 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct RowScale {
    pub scale: f32,
    pub zero: i32,
}

/// Converts rows of `inputs` values; `words` has as many rows of [`Compute::words`], and `scales`
/// one per row where the words are bytes.
pub(super) fn convert(
    words: &mut [u32],
    scales: &mut [RowScale],
    x: &[f32],
    inputs: usize,
    compute: Compute,
) {
    dispatch(Convert {
        words,
        scales,
        x,
        inputs,
        compute,
    });
}

struct Convert<'a> {
    words: &'a mut [u32],
    scales: &'a mut [RowScale],
    x: &'a [f32],
    inputs: usize,
    compute: Compute,
}

impl Kernel for Convert<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let rows = self.x.chunks_exact(self.inputs);
        let words = self.words.chunks_exact_mut(self.compute.words(self.inputs));
        match self.compute {
            Compute::F32 => {
                for (x, words) in rows.zip(words) {
                    words.copy_from_slice(bytemuck::cast_slice(x));
                }
            }
            Compute::Bf16 => {
                for (x, words) in rows.zip(words) {
                    to_pairs(words, x);
                }
            }
            Compute::Int8 => {
                for ((x, words), scale) in rows.zip(words).zip(self.scales) {
                    *scale = to_bytes::<A>(words, x);
                }
            }
        }
    }
}

#[inline(always)]
fn to_pairs(words: &mut [u32], x: &[f32]) {
    let (runs, rest) = x.as_chunks::<{ 2 * WIDTH }>();
    let mut last = [0f32; 2 * WIDTH];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.as_chunks_mut::<WIDTH>().0;
    for (x, words) in runs.iter().chain([&last]).zip(words) {
        for i in 0..WIDTH {
            words[i] = to_bf16(x[i]) >> 16 | (to_bf16(x[WIDTH + i]) & 0xffff_0000);
        }
    }
}

/// Rounded to nearest, ties to even, in the high half; what is below is to be dropped.
#[inline(always)]
fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // The rounding could carry a NaN's mantissa away.
    if x.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    }
}

#[inline(always)]
fn to_bytes<A: Arithmetic>(words: &mut [u32], x: &[f32]) -> RowScale {
    let (runs, rest) = x.as_chunks::<{ 4 * WIDTH }>();
    let mut last = [0f32; 4 * WIDTH];
    last[..rest.len()].copy_from_slice(rest);
    let last = (!rest.is_empty()).then_some(&last);

    let nothing = A::splat(0.0);
    let (mut low, mut high, mut poison) = ([nothing; 4], [nothing; 4], nothing);
    for run in runs.iter().chain(last) {
        let x = run.as_chunks::<WIDTH>().0;
        for v in 0..4 {
            let x = A::load(&x[v]);
            low[v] = A::min(x, low[v]);
            high[v] = A::max(x, high[v]);
            // 0, or NaN if `x` is not finite.
            poison = A::mul_add_vector(x, nothing, poison);
        }
    }
    let low = A::min(A::min(low[0], low[1]), A::min(low[2], low[3]));
    let high = A::max(A::max(high[0], high[1]), A::max(high[2], high[3]));
    let low = lanes::<A>(low).into_iter().fold(0f32, f32::min);
    let high = lanes::<A>(high).into_iter().fold(0f32, f32::max);
    let poison: f32 = lanes::<A>(poison).into_iter().sum();
    // A row with a value that is not finite becomes NaN as a whole.
    let scale = (high - low) / 255.0 + poison;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let zero = (-low * inverse).round_ties_even();

    let factor = A::splat(inverse);
    // Adding 2²³ leaves the integer, rounded to nearest, in the low bits of the mantissa.
    let shift = A::splat(8_388_608.0);
    let (offset, most) = (A::splat(zero), A::splat(255.0));
    let words = words.as_chunks_mut::<WIDTH>().0;
    for (run, words) in runs.iter().chain(last).zip(words) {
        let x = run.as_chunks::<WIDTH>().0;
        let mut bits = [[0u32; WIDTH]; 4];
        for v in 0..4 {
            // Two roundings, not one of a fused product, so that every machine has the same byte.
            let x = A::add(A::mul(A::load(&x[v]), factor), offset);
            let x = A::min(A::max(x, nothing), most);
            bits[v] = lanes::<A>(A::add(x, shift)).map(f32::to_bits);
        }
        for i in 0..WIDTH {
            let [a, b, c, d] = [bits[0][i], bits[1][i], bits[2][i], bits[3][i]];
            words[i] = a & 0xff | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24;
        }
    }
    RowScale {
        scale,
        zero: zero as i32,
    }
}

#[inline(always)]
fn lanes<A: Arithmetic>(vector: A::Vector) -> [f32; WIDTH] {
    let mut lanes = [0f32; WIDTH];
    A::store(vector, &mut lanes);
    lanes
}
