//! Weights in blocks of 256, the K formats: an f16 scale for the block, and within it an integer
//! scale (and perhaps a minimum) for each 16 or 32 inputs.
//!
//! ```text
//! w = d·s·(c - o) - d_min·m              s, m per part of the block
//! x = e·q
//! y = Σ_blocks d·e·Σ_parts s·(Σ c·q - o·Σ q) - d_min·e·Σ_parts m·Σ q
//! ```
//! All within a block is exact, in integers; the blocks are added in their order, in f32. The
//! scales stay the bytes that they are in the file: as floats they would be a third more to read.

use half::f16;
use rayon::prelude::*;

use super::super::values::Values;
use super::activations::{Blocks256, SUPER, UNIT, UNITS};
use super::blocks::Block256;
use super::codes::{Codes, add_unit};
use super::layout::{Found, Sections};
use super::machine::{LANES, Machine};
use super::product::Weight;

/// Panels of blocks of 256; `SPLIT` if the scales are per 16 inputs, else they are per 32.
#[derive(Debug, Clone)]
pub(super) struct Super<C: Codes, const SPLIT: bool> {
    /// Blocks of a row.
    blocks: usize,
    /// `o`
    offset: i32,
    has_minima: bool,
    /// `[panels, in / 32]`
    codes: Values<C::Lines>,
    /// `[panels, pairs of parts, 1 or 2, LANES, 2]`: `s`, then `m` if there are minima.
    parts: Values<[i8; 2 * LANES]>,
    /// `[panels, in / 256, 1 or 2, LANES]`, the bits of f16: `d`, then `d_min`.
    factors: Values<[u16; LANES]>,
}

/// How a file has the blocks, and what they mean.
#[derive(Clone, Copy)]
pub(super) struct Format256 {
    /// Bytes of a block.
    pub size: usize,
    pub offset: i32,
    pub has_minima: bool,
    pub decode: fn(&[u8]) -> Block256,
}

impl<C: Codes, const SPLIT: bool> Super<C, SPLIT> {
    /// Pairs of parts in a block.
    const PAIRS: usize = if SPLIT { UNITS } else { UNITS / 2 };

    /// From the bytes of a file: rows of `blocks` blocks.
    pub fn new(bytes: &[u8], blocks: usize, format: Format256) -> Self {
        let row = blocks * format.size;
        let total = (bytes.len() / row).div_ceil(LANES) * blocks;
        let kinds = 1 + usize::from(format.has_minima);
        let mut codes = vec![C::ZERO; total * UNITS];
        let mut parts = vec![[0; 2 * LANES]; total * Self::PAIRS * kinds];
        let mut factors = vec![[0; LANES]; total * kinds];
        codes
            .par_chunks_mut(blocks * UNITS)
            .zip(parts.par_chunks_mut(blocks * Self::PAIRS * kinds))
            .zip(factors.par_chunks_mut(blocks * kinds))
            .zip(bytes.par_chunks(row * LANES))
            .for_each(|(((codes, parts), factors), rows)| {
                for (output, row) in rows.chunks_exact(row).enumerate() {
                    for (i, bytes) in row.chunks_exact(format.size).enumerate() {
                        let block = (format.decode)(bytes);
                        let units = codes[i * UNITS..].iter_mut();
                        for (unit, codes) in units.zip(block.codes.chunks_exact(UNIT)) {
                            C::pack(unit, output, codes);
                        }
                        let sources = [(block.scale, block.scales), (block.minimum, block.minima)];
                        for (kind, (factor, values)) in sources[..kinds].iter().enumerate() {
                            factors[i * kinds + kind][output] = *factor;
                            for pair in 0..Self::PAIRS {
                                let part = &mut parts[(i * Self::PAIRS + pair) * kinds + kind];
                                part[2 * output..][..2].copy_from_slice(&values[2 * pair..][..2]);
                            }
                        }
                    }
                }
            });
        Self {
            blocks,
            offset: format.offset,
            has_minima: format.has_minima,
            codes: codes.into(),
            parts: parts.into(),
            factors: factors.into(),
        }
    }

    /// As [`Super::new`] left it in a file, if that is what was found.
    pub fn found(
        mut found: Found<'_>,
        panels: usize,
        blocks: usize,
        format: Format256,
    ) -> Option<Self> {
        let total = panels * blocks;
        let kinds = 1 + usize::from(format.has_minima);
        Some(Self {
            blocks,
            offset: format.offset,
            has_minima: format.has_minima,
            codes: found.take(total * UNITS)?,
            parts: found.take(total * Self::PAIRS * kinds)?,
            factors: found.take(total * kinds)?,
        })
    }

    pub fn sections(&self) -> Sections<'_> {
        vec![
            self.codes.as_bytes(),
            self.parts.as_bytes(),
            self.factors.as_bytes(),
        ]
    }

    /// A row of the weight, dequantized.
    pub fn row(&self, row: usize, values: &mut [f32]) {
        let (panel, output) = (row / LANES, row % LANES);
        let kinds = 1 + usize::from(self.has_minima);
        // Inputs of a part.
        let length = SUPER / (2 * Self::PAIRS);
        for (i, values) in values.chunks_exact_mut(UNIT).enumerate() {
            let block = panel * self.blocks + i / UNITS;
            let factor =
                |kind: usize| f16::from_bits(self.factors[block * kinds + kind][output]).to_f32();
            let codes = C::unpack(&self.codes[block * UNITS + i % UNITS], output);
            for (j, (value, code)) in values.iter_mut().zip(codes).enumerate() {
                let part = (i % UNITS * UNIT + j) / length;
                let of_part = |kind: usize| {
                    let pair = (block * Self::PAIRS + part / 2) * kinds + kind;
                    f32::from(self.parts[pair][2 * output + part % 2])
                };
                let code = (i32::from(code) - self.offset) as f32;
                *value = factor(0) * of_part(0) * code;
                if self.has_minima {
                    *value -= factor(1) * of_part(1);
                }
            }
        }
    }
}

impl<C: Codes, const SPLIT: bool> Weight<Blocks256> for Super<C, SPLIT> {
    fn inputs(&self) -> usize {
        self.blocks * SUPER
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "see simd.rs")]
    fn tile<M: Machine, const R: usize>(
        &self,
        panel: usize,
        x: &Blocks256,
        row: usize,
    ) -> [M::Floats; R] {
        let kinds = 1 + usize::from(self.has_minima);
        let blocks = self.blocks;
        let (codes, _) =
            self.codes[panel * blocks * UNITS..][..blocks * UNITS].as_chunks::<UNITS>();
        let per_block = Self::PAIRS * kinds;
        let parts = &self.parts[panel * blocks * per_block..][..blocks * per_block];
        let factors = &self.factors[panel * blocks * kinds..][..blocks * kinds];
        let mut x_codes = [&x.codes.as_chunks::<UNITS>().0[..0]; R];
        let mut x_scales = [&x.scales[..0]; R];
        for r in 0..R {
            x_codes[r] = &x.codes.as_chunks::<UNITS>().0[(row + r) * blocks..][..blocks];
            x_scales[r] = &x.scales[(row + r) * blocks..][..blocks];
        }

        let mut y = [M::splat(0.0); R];
        for b in 0..blocks {
            let parts = &parts[b * per_block..][..per_block];
            let mut sums = [M::splat_sums(0); R];
            for pair in 0..Self::PAIRS {
                let scales = M::scales(M::load_pairs(&parts[pair * kinds]));
                let mut unit = [&x_codes[0][b][0]; R];
                if SPLIT {
                    for r in 0..R {
                        unit[r] = &x_codes[r][b][pair];
                    }
                    add_unit::<M, C, R, true>(&mut sums, &codes[b][pair], unit, Some(scales));
                } else {
                    for half in 0..2 {
                        for r in 0..R {
                            unit[r] = &x_codes[r][b][2 * pair + half];
                        }
                        let scales = Some([scales[half]; 2]);
                        add_unit::<M, C, R, false>(
                            &mut sums,
                            &codes[b][2 * pair + half],
                            unit,
                            scales,
                        );
                    }
                }
            }

            // What the minima or the offset take off; with an offset, `m` is `s`.
            let mut minima = [M::splat_sums(0); R];
            for pair in 0..Self::PAIRS {
                let pairs = M::load_pairs(&parts[pair * kinds + kinds - 1]);
                for r in 0..R {
                    let x = &x_scales[r][b];
                    let x = if SPLIT {
                        x.sums16[pair]
                    } else {
                        x.sums32[pair]
                    };
                    minima[r] = M::add_pair_products(minima[r], pairs, x);
                }
            }
            let scale = M::load_f16(&factors[b * kinds]);
            if self.has_minima {
                let minimum = M::load_f16(&factors[b * kinds + 1]);
                for r in 0..R {
                    let e = M::splat(x_scales[r][b].scale);
                    y[r] = M::mul_add(M::to_floats(sums[r]), M::mul(scale, e), y[r]);
                    y[r] = M::mul_sub(M::to_floats(minima[r]), M::mul(minimum, e), y[r]);
                }
            } else {
                for r in 0..R {
                    let e = M::splat(x_scales[r][b].scale);
                    let sums = M::sub_scaled(sums[r], minima[r], self.offset);
                    y[r] = M::mul_add(M::to_floats(sums), M::mul(scale, e), y[r]);
                }
            }
        }
        y
    }
}
