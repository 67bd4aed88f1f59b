//! Weights that are not quantized, f32, f16 or bf16, in panels like the others: read as they are
//! in the file, and multiplied in f32 with the activations as they come.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};
use rayon::prelude::*;

use super::super::values::Values;
use super::layout::{Found, Sections};
use super::machine::{LANES, Machine};
use super::product::Weight;

/// A float in a file.
pub(super) trait Element: std::fmt::Debug + Default + Pod + Send + Sync {
    fn from_bytes(bytes: &[u8]) -> Self;
    fn to_f32(self) -> f32;
    fn load<M: Machine>(values: &[Self; LANES]) -> M::Floats;
}

/// The bits of an f16.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(transparent)]
pub(super) struct F16(u16);

/// The bits of a bf16.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(transparent)]
pub(super) struct Bf16(u16);

impl Element for f32 {
    fn from_bytes(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<M: Machine>(values: &[Self; LANES]) -> M::Floats {
        M::load_f32(values)
    }
}

impl Element for F16 {
    fn from_bytes(bytes: &[u8]) -> Self {
        Self(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn to_f32(self) -> f32 {
        f16::from_bits(self.0).to_f32()
    }

    #[inline(always)]
    fn load<M: Machine>(values: &[Self; LANES]) -> M::Floats {
        M::load_f16(&values.map(|value| value.0))
    }
}

impl Element for Bf16 {
    fn from_bytes(bytes: &[u8]) -> Self {
        Self(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn to_f32(self) -> f32 {
        bf16::from_bits(self.0).to_f32()
    }

    #[inline(always)]
    fn load<M: Machine>(values: &[Self; LANES]) -> M::Floats {
        M::load_bf16(&values.map(|value| value.0))
    }
}

/// Panels of floats.
#[derive(Debug, Clone)]
pub(super) struct Plain<E: Element> {
    inputs: usize,
    /// `[panels, in, LANES]`
    values: Values<[E; LANES]>,
}

impl<E: Element> Plain<E> {
    /// From the bytes of a file: rows of `inputs` values.
    pub fn new(bytes: &[u8], inputs: usize) -> Self {
        let row = inputs * size_of::<E>();
        let panels = (bytes.len() / row).div_ceil(LANES);
        let mut values = vec![[E::default(); LANES]; panels * inputs];
        values
            .par_chunks_mut(inputs)
            .zip(bytes.par_chunks(row * LANES))
            .for_each(|(panel, rows)| {
                for (output, row) in rows.chunks_exact(row).enumerate() {
                    for (to, from) in panel.iter_mut().zip(row.chunks_exact(size_of::<E>())) {
                        to[output] = E::from_bytes(from);
                    }
                }
            });
        let values = values.into();
        Self { inputs, values }
    }

    /// As [`Plain::new`] left it in a file, if that is what was found.
    pub fn found(mut found: Found<'_>, panels: usize, inputs: usize) -> Option<Self> {
        let values = found.take(panels * inputs)?;
        Some(Self { inputs, values })
    }

    pub fn sections(&self) -> Sections<'_> {
        vec![self.values.as_bytes()]
    }

    /// A row of the weight.
    pub fn row(&self, row: usize, values: &mut [f32]) {
        let panel = &self.values[row / LANES * self.inputs..][..self.inputs];
        for (to, from) in values.iter_mut().zip(panel) {
            *to = from[row % LANES].to_f32();
        }
    }
}

impl<E: Element> Weight<[f32]> for Plain<E> {
    fn inputs(&self) -> usize {
        self.inputs
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "see simd.rs")]
    fn tile<M: Machine, const R: usize>(
        &self,
        panel: usize,
        x: &[f32],
        row: usize,
    ) -> [M::Floats; R] {
        let inputs = self.inputs;
        let panel = &self.values[panel * inputs..][..inputs];
        let mut rows = [x; R];
        for r in 0..R {
            rows[r] = &x[(row + r) * inputs..][..inputs];
        }
        let mut y = [M::splat(0.0); R];
        for i in 0..inputs {
            let w = E::load::<M>(&panel[i]);
            for r in 0..R {
                y[r] = M::mul_add(w, M::splat(rows[r][i]), y[r]);
            }
        }
        y
    }
}
