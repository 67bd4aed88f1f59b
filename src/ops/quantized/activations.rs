//! The activations in 8 bits, as the formats of the weights ask for them.
//!
//! A block of inputs is stored as `x ≈ d·q`, `q` in ±127, `d = max |x| / 127`, the rounding to
//! nearest, ties to even. This is what llama.cpp does before it multiplies, and done the same way
//! here, for a served model to give the answers that its users know:
//!
//! - [`Blocks32`], with `Q4_0` … `Q8_0`: blocks of 32. `q` is found with the exact `127 / max |x|`,
//!   while `d` is rounded to f16, as is `d·Σq`, which meets the minima of `Q4_1` and `Q5_1`.
//! - [`Blocks256`], with the K formats: blocks of 256, `d` in f32, and integer sums of 16 and 32.

use half::f16;

use super::super::simd::{Arithmetic, Kernel, dispatch};

/// Inputs in a unit of codes.
pub(super) const UNIT: usize = 32;
/// Inputs in a block of the K formats.
pub(super) const SUPER: usize = 256;
/// Units in a block of the K formats.
pub(super) const UNITS: usize = SUPER / UNIT;

/// Rows in blocks of 32; all vectors are `[rows, in / 32]`.
pub(super) struct Blocks32 {
    pub codes: Vec<[i8; UNIT]>,
    pub scales: Vec<Scale32>,
}

/// What goes with the codes of a block of 32.
#[derive(Clone, Copy, Default)]
pub(super) struct Scale32 {
    /// `d`
    pub scale: f32,
    /// `Σq`
    pub sum: i32,
    /// `d·Σq`
    pub scaled_sum: f32,
}

/// Rows in blocks of 256.
pub(super) struct Blocks256 {
    /// `[rows, in / 32]`
    pub codes: Vec<[i8; UNIT]>,
    /// `[rows, in / 256]`
    pub scales: Vec<Scale256>,
}

/// What goes with the codes of a block of 256.
#[derive(Clone, Copy, Default)]
pub(super) struct Scale256 {
    /// `d`
    pub scale: f32,
    /// `Σq` over each 16 inputs, in pairs.
    pub sums16: [[i16; 2]; SUPER / 32],
    /// `Σq` over each 32 inputs, in pairs.
    pub sums32: [[i16; 2]; SUPER / 64],
}

impl Blocks32 {
    /// `x` may be any number of rows whose length is a multiple of 32.
    pub fn quantize(x: &[f32]) -> Self {
        let blocks = x.len() / UNIT;
        let mut quantized = Self {
            codes: vec![[0; UNIT]; blocks],
            scales: vec![Scale32::default(); blocks],
        };
        dispatch(Quantize32 {
            x,
            to: &mut quantized,
        });
        quantized
    }
}

impl Blocks256 {
    /// `x` may be any number of rows whose length is a multiple of 256.
    pub fn quantize(x: &[f32]) -> Self {
        let mut quantized = Self {
            codes: vec![[0; UNIT]; x.len() / UNIT],
            scales: vec![Scale256::default(); x.len() / SUPER],
        };
        dispatch(Quantize256 {
            x,
            to: &mut quantized,
        });
        quantized
    }
}

struct Quantize32<'a> {
    x: &'a [f32],
    to: &'a mut Blocks32,
}

impl Kernel for Quantize32<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (blocks, _) = self.x.as_chunks::<UNIT>();
        let to = self.to.codes.iter_mut().zip(&mut self.to.scales);
        for (x, (codes, scale)) in blocks.iter().zip(to) {
            let largest = largest_magnitude(x);
            let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
            let d = largest / 127.0;
            let sum = round_scaled(x, inverse, codes);
            *scale = Scale32 {
                scale: f16::from_f32(d).to_f32(),
                sum,
                scaled_sum: f16::from_f32(d * sum as f32).to_f32(),
            };
        }
    }
}

struct Quantize256<'a> {
    x: &'a [f32],
    to: &'a mut Blocks256,
}

impl Kernel for Quantize256<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (blocks, _) = self.x.as_chunks::<SUPER>();
        let (codes, _) = self.to.codes.as_chunks_mut::<UNITS>();
        let to = codes.iter_mut().zip(&mut self.to.scales);
        for (x, (codes, scale)) in blocks.iter().zip(to) {
            let largest = largest_magnitude(x);
            // llama.cpp gives both factors the opposite sign of the largest value; in the products
            // that cancels out.
            let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
            scale.scale = if largest == 0.0 { 0.0 } else { 1.0 / inverse };
            let (units, _) = x.as_chunks::<UNIT>();
            for (unit, (x, codes)) in units.iter().zip(codes).enumerate() {
                let sum = round_scaled(x, inverse, codes);
                let first = codes[..UNIT / 2].iter().map(|&q| i16::from(q)).sum::<i16>();
                scale.sums16[unit] = [first, sum as i16 - first];
                scale.sums32[unit / 2][unit % 2] = sum as i16;
            }
        }
    }
}

/// `max |x|`; NaN if there is one among them. On bits, whose order is that of the magnitudes.
#[inline(always)]
fn largest_magnitude<const N: usize>(x: &[f32; N]) -> f32 {
    let mut largest = [0u32; 16];
    for x in x.as_chunks::<16>().0 {
        for (largest, x) in largest.iter_mut().zip(x) {
            *largest = (*largest).max(x.to_bits() & 0x7FFF_FFFF);
        }
    }
    f32::from_bits(largest.into_iter().fold(0, u32::max))
}

/// `codes = round(x · factor)`, within ±127 if no value is larger than `127 / factor`, and
/// anything for NaN. Returns their sum.
#[inline(always)]
fn round_scaled(x: &[f32; UNIT], factor: f32, codes: &mut [i8; UNIT]) -> i32 {
    /// 1.5·2²³: adding it leaves the integer, rounded to even, in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let mut sum = 0;
    for (code, x) in codes.iter_mut().zip(x) {
        // The product's own rounding must stay: no fused multiply-add.
        let rounded = (x * factor + MAGIC).to_bits() as i8;
        *code = rounded;
        sum += i32::from(rounded);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::super::super::simd::Portable;
    use super::super::super::testing::Random;
    use super::*;

    #[test]
    fn codes_are_the_nearest_multiples_of_the_scale() {
        let x = Random::new(3).values(64 * SUPER, 3.0);
        let by_32 = Blocks32::quantize(&x);
        for (x, (codes, scale)) in x.chunks(UNIT).zip(by_32.codes.iter().zip(&by_32.scales)) {
            assert_eq!(scale.sum, codes.iter().map(|&q| i32::from(q)).sum::<i32>());
            let d = x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
            assert!((scale.scale / d - 1.0).abs() < 1e-3);
            for (x, q) in x.iter().zip(codes) {
                assert!((x - d * f32::from(*q)).abs() <= d * 0.500_1);
            }
        }
        let by_256 = Blocks256::quantize(&x);
        let (codes, _) = by_256.codes.as_chunks::<UNITS>();
        for (x, (codes, scale)) in x.chunks(SUPER).zip(codes.iter().zip(&by_256.scales)) {
            for (x, q) in x.iter().zip(codes.as_flattened()) {
                let d = scale.scale;
                assert!((x - d * f32::from(*q)).abs() <= d * 0.500_1);
            }
            let sum = |codes: &[i8]| codes.iter().map(|&q| i16::from(q)).sum::<i16>();
            for (i, codes) in codes.as_flattened().chunks(16).enumerate() {
                assert_eq!(scale.sums16.as_flattened()[i], sum(codes));
            }
            for (i, codes) in codes.iter().enumerate() {
                assert_eq!(scale.sums32.as_flattened()[i], sum(codes));
            }
        }
    }

    #[test]
    fn both_instruction_sets_agree_to_the_last_bit() {
        let x = Random::new(4).values(8 * SUPER, 0.1);
        let best = Blocks32::quantize(&x);
        let mut portable = Blocks32::quantize(&vec![0.0; x.len()]);
        assert!(portable.codes.iter().flatten().all(|&q| q == 0));
        Quantize32 {
            x: &x,
            to: &mut portable,
        }
        .run::<Portable>();
        assert_eq!(best.codes, portable.codes);
        let mut portable = Blocks256::quantize(&vec![0.0; x.len()]);
        Quantize256 {
            x: &x,
            to: &mut portable,
        }
        .run::<Portable>();
        assert_eq!(Blocks256::quantize(&x).codes, portable.codes);
    }

    #[test]
    fn what_is_not_finite_shows_in_the_scale() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; SUPER];
            x[70] = bad;
            assert!(!Blocks32::quantize(&x).scales[2].scale.is_finite());
            assert!(Blocks32::quantize(&x).scales[1].scale.is_finite());
            assert!(!Blocks256::quantize(&x).scales[0].scale.is_finite());
        }
    }
}
