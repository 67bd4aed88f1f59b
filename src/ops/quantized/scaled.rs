//! Weights in blocks of 32 with an f16 scale each: `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`.
//!
//! ```text
//! w = d·(c - o) + m                      a block's scale, code, offset and minimum
//! x = e·q                                the activation's scale and code
//! y = Σ_blocks d·e·(Σ c·q - o·Σ q) + m·e·Σ q
//! ```
//! The inner sums are exact, in integers; the blocks are added in their order, in f32.

use half::f16;
use rayon::prelude::*;

use super::super::values::Values;
use super::activations::{Blocks32, UNIT};
use super::blocks::Block32;
use super::codes::{Codes, add_unit};
use super::layout::{Found, Sections};
use super::machine::{LANES, Machine};
use super::product::Weight;

/// Panels of blocks of 32.
#[derive(Debug, Clone)]
pub(super) struct Scaled<C: Codes> {
    /// Blocks of a row.
    blocks: usize,
    /// `o`; 0 if the codes are signed.
    offset: i32,
    /// `[panels, in / 32]`
    codes: Values<C::Lines>,
    /// 2 if there are minima, else 1.
    factors_per_block: usize,
    /// `[panels, in / 32, factors_per_block, LANES]`, the bits of f16: `d`, then `m`.
    factors: Values<[u16; LANES]>,
}

/// How a file has the blocks, and what they mean.
#[derive(Clone, Copy)]
pub(super) struct Format32 {
    /// Bytes of a block.
    pub size: usize,
    pub offset: i32,
    pub has_minima: bool,
    pub decode: fn(&[u8]) -> Block32,
}

impl<C: Codes> Scaled<C> {
    /// From the bytes of a file: rows of `blocks` blocks.
    pub fn new(bytes: &[u8], blocks: usize, format: Format32) -> Self {
        let row = blocks * format.size;
        let total = (bytes.len() / row).div_ceil(LANES) * blocks;
        let per_block = 1 + usize::from(format.has_minima);
        let mut codes = vec![C::ZERO; total];
        let mut factors = vec![[0; LANES]; total * per_block];
        codes
            .par_chunks_mut(blocks)
            .zip(factors.par_chunks_mut(blocks * per_block))
            .zip(bytes.par_chunks(row * LANES))
            .for_each(|((codes, factors), rows)| {
                for (output, row) in rows.chunks_exact(row).enumerate() {
                    for (i, bytes) in row.chunks_exact(format.size).enumerate() {
                        let block = (format.decode)(bytes);
                        C::pack(&mut codes[i], output, &block.codes);
                        factors[i * per_block][output] = block.scale;
                        if format.has_minima {
                            factors[i * per_block + 1][output] = block.minimum;
                        }
                    }
                }
            });
        Self {
            blocks,
            offset: format.offset,
            codes: codes.into(),
            factors_per_block: per_block,
            factors: factors.into(),
        }
    }

    /// As [`Scaled::new`] left it in a file, if that is what was found.
    pub fn found(
        mut found: Found<'_>,
        panels: usize,
        blocks: usize,
        format: Format32,
    ) -> Option<Self> {
        let factors_per_block = 1 + usize::from(format.has_minima);
        Some(Self {
            blocks,
            offset: format.offset,
            codes: found.take(panels * blocks)?,
            factors_per_block,
            factors: found.take(panels * blocks * factors_per_block)?,
        })
    }

    pub fn sections(&self) -> Sections<'_> {
        vec![self.codes.as_bytes(), self.factors.as_bytes()]
    }

    /// A row of the weight, dequantized.
    pub fn row(&self, row: usize, values: &mut [f32]) {
        let (panel, output) = (row / LANES, row % LANES);
        let signed = C::BITS == 8;
        for (i, values) in values.chunks_exact_mut(UNIT).enumerate() {
            let block = panel * self.blocks + i;
            let factor = |which: usize| {
                f16::from_bits(self.factors[block * self.factors_per_block + which][output])
                    .to_f32()
            };
            let scale = factor(0);
            let minimum = (self.factors_per_block == 2).then(|| factor(1));
            let codes = C::unpack(&self.codes[block], output);
            for (value, code) in values.iter_mut().zip(codes) {
                let code = if signed {
                    i32::from(code.cast_signed())
                } else {
                    i32::from(code) - self.offset
                };
                *value = scale * code as f32 + minimum.unwrap_or(0.0);
            }
        }
    }
}

impl<C: Codes> Weight<Blocks32> for Scaled<C> {
    fn inputs(&self) -> usize {
        self.blocks * UNIT
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "see simd.rs")]
    fn tile<M: Machine, const R: usize>(
        &self,
        panel: usize,
        x: &Blocks32,
        row: usize,
    ) -> [M::Floats; R] {
        let blocks = self.blocks;
        let codes = &self.codes[panel * blocks..][..blocks];
        let per_block = self.factors_per_block;
        let factors = &self.factors[panel * blocks * per_block..][..blocks * per_block];
        let mut x_codes = [&x.codes[..0]; R];
        let mut x_scales = [&x.scales[..0]; R];
        for r in 0..R {
            x_codes[r] = &x.codes[(row + r) * blocks..][..blocks];
            x_scales[r] = &x.scales[(row + r) * blocks..][..blocks];
        }
        let offset = if C::BITS == 8 {
            M::BYTE_OFFSET
        } else {
            self.offset
        };

        let mut y = [M::splat(0.0); R];
        for b in 0..blocks {
            let mut sums = [M::splat_sums(0); R];
            let mut unit = [&x_codes[0][b]; R];
            for r in 0..R {
                unit[r] = &x_codes[r][b];
                sums[r] = M::splat_sums(-offset * x_scales[r][b].sum);
            }
            add_unit::<M, C, R, false>(&mut sums, &codes[b], unit, None);
            let scale = M::load_f16(&factors[b * per_block]);
            for r in 0..R {
                let scale = M::mul(scale, M::splat(x_scales[r][b].scale));
                y[r] = M::mul_add(M::to_floats(sums[r]), scale, y[r]);
            }
            if per_block == 2 {
                let minimum = M::load_f16(&factors[b * per_block + 1]);
                for r in 0..R {
                    y[r] = M::mul_add(minimum, M::splat(x_scales[r][b].scaled_sum), y[r]);
                }
            }
        }
        y
    }
}
