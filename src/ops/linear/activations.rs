//! The activation in the precision of the product: a row of 32-bit words, as
//! [`Compute::words`] orders them, in tiles of rows.
//!
//! A tile is [`TILE_ROWS`] rows, the last one what is left. It lies as `[words / WIDTH, rows]` of
//! [`Words`]: a register tile reads its rows side by side, at distances that are known when it is
//! compiled, from one end of the tile to the other.

#![allow(
    clippy::needless_range_loop,
    reason = "iterators over vectors might not be inlined, and they would go through memory"
)]

use bytemuck::{Pod, Zeroable};

use super::super::simd::{Arithmetic, Kernel, WIDTH, dispatch};
use super::Compute;

/// Rows of a tile: as many as a register tile has at most.
pub(super) const TILE_ROWS: usize = 12;

/// Some words of a row, one after the other: a cache line.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Words(pub [u32; WIDTH]);

/// A row in bytes: `x ≈ scale · (byte − zero)`. The range of the row's values, widened to have 0
/// in it, is cut in 255 steps: rows that a GELU has made have few values below 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct RowScale {
    pub scale: f32,
    pub zero: i32,
}

/// Converts rows of `inputs` values to tiles; `words` has room for [`Compute::words`] of each, rounded
/// up, and `scales` one per row where the words are bytes.
pub(super) fn convert(
    words: &mut [Words],
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

/// Converts `count` values of each row, which begin at the `at`-th [`Words`] of rows of `per_row`. Not to
/// bytes, which take whole rows.
pub(super) fn convert_part(
    words: &mut [Words],
    per_row: usize,
    at: usize,
    x: &[f32],
    count: usize,
    compute: Compute,
) {
    dispatch(ConvertPart {
        words,
        per_row,
        at,
        x,
        count,
        compute,
    });
}

struct ConvertPart<'a> {
    words: &'a mut [Words],
    per_row: usize,
    at: usize,
    x: &'a [f32],
    count: usize,
    compute: Compute,
}

impl Kernel for ConvertPart<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        debug_assert_ne!(self.compute, Compute::Int8);
        let some = self.compute.words(self.count).div_ceil(WIDTH);
        let tiles = self.words.chunks_mut(TILE_ROWS * self.per_row);
        for (words, x) in tiles.zip(self.x.chunks(TILE_ROWS * self.count)) {
            let rows = x.len() / self.count;
            for (row, x) in x.chunks_exact(self.count).enumerate() {
                let words = words[self.at * rows + row..].iter_mut().step_by(rows);
                let words = words.take(some).map(|words| &mut words.0);
                match self.compute {
                    Compute::Bf16 => to_pairs(words, x),
                    _ => copy(words, x),
                }
            }
        }
    }
}

struct Convert<'a> {
    words: &'a mut [Words],
    scales: &'a mut [RowScale],
    x: &'a [f32],
    inputs: usize,
    compute: Compute,
}

impl Kernel for Convert<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let per_row = self.compute.words(self.inputs).div_ceil(WIDTH);
        let tiles = self.words.chunks_mut(TILE_ROWS * per_row);
        for (t, (words, x)) in tiles
            .zip(self.x.chunks(TILE_ROWS * self.inputs))
            .enumerate()
        {
            let rows = x.len() / self.inputs;
            for (row, x) in x.chunks_exact(self.inputs).enumerate() {
                let words = words[row..]
                    .iter_mut()
                    .step_by(rows)
                    .map(|words| &mut words.0);
                match self.compute {
                    Compute::F32 => copy(words, x),
                    Compute::Bf16 => to_pairs(words, x),
                    Compute::Int8 => self.scales[t * TILE_ROWS + row] = to_bytes::<A>(words, x),
                }
            }
        }
    }
}

#[inline(always)]
fn copy<'a>(words: impl Iterator<Item = &'a mut [u32; WIDTH]>, x: &[f32]) {
    let (runs, rest) = x.as_chunks::<WIDTH>();
    let mut last = [0f32; WIDTH];
    last[..rest.len()].copy_from_slice(rest);
    for (x, words) in runs.iter().chain([&last]).zip(words) {
        *words = bytemuck::cast(*x);
    }
}

#[inline(always)]
fn to_pairs<'a>(words: impl Iterator<Item = &'a mut [u32; WIDTH]>, x: &[f32]) {
    let (runs, rest) = x.as_chunks::<{ 2 * WIDTH }>();
    let mut last = [0f32; 2 * WIDTH];
    last[..rest.len()].copy_from_slice(rest);
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
fn to_bytes<'a, A: Arithmetic>(
    words: impl Iterator<Item = &'a mut [u32; WIDTH]>,
    x: &[f32],
) -> RowScale {
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
