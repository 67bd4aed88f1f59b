//! Rotary position embedding: rotates pairs of a head's dimensions by angles that grow with the
//! position.
//!
//! ```text
//! θᵢ = position · fᵢ                                 i < rotary / 2
//! (a, b) ← m · (a·cos θᵢ − b·sin θᵢ,  b·cos θᵢ + a·sin θᵢ)
//!
//! (a, b) = (x[i], x[i + rotary/2])   half split: GPT-NeoX, transformers
//!          (x[2i], x[2i + 1])        interleaved: as published; GGUF files of Llama
//! ```
//! Su et al. 2021 (arXiv:2104.09864). The caller brings the inverse frequencies `fᵢ` (base and
//! scaling already in them) and the factor `m` that `YaRN` (arXiv:2309.00071) and `LongRoPE`
//! (arXiv:2402.13753) put on the result. Dimensions past `rotary` stay as they are.
//!
//! The angle is the f32 product `position · fᵢ`, as transformers computes it; its sine and cosine
//! are taken in f64 and rounded. They are kept in tables of `CHUNK` positions, each filled when
//! a position in it is first used, so that a long context costs memory only when it comes.

use std::sync::OnceLock;

use candle_core::{Result, bail};

/// Positions per table: 64 KiB for a rotary dimension of 64.
const CHUNK: usize = 256;

/// Which dimensions of a head form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `x[i]` with `x[i + rotary/2]`.
    HalfSplit,
    /// `x[2i]` with `x[2i + 1]`.
    Interleaved,
}

/// The rotations of all positions that a model may see.
#[derive(Debug)]
pub struct Rope {
    style: RopeStyle,
    inverse_frequencies: Vec<f32>,
    magnitude: f32,
    max_positions: usize,
    /// Per position the cosines of all pairs, then the sines, both times `m`.
    chunks: Box<[OnceLock<Box<[f32]>>]>,
    /// The frequencies on the model's device.
    #[cfg(feature = "cuda")]
    on_device: OnceLock<candle_core::Tensor>,
}

impl Rope {
    /// `inverse_frequencies` has one value per pair, so half as many as dimensions rotate;
    /// `magnitude` multiplies what is rotated (1 without `YaRN` or `LongRoPE`); positions go up
    /// to, not including, `max_positions`.
    ///
    /// # Errors
    /// If there are no frequencies, or one of the numbers is not finite.
    pub fn new(
        style: RopeStyle,
        inverse_frequencies: Vec<f32>,
        magnitude: f32,
        max_positions: usize,
    ) -> Result<Self> {
        if inverse_frequencies.is_empty() {
            bail!("rope needs at least one frequency");
        }
        if !magnitude.is_finite() || inverse_frequencies.iter().any(|f| !f.is_finite()) {
            bail!("rope's frequencies and magnitude must be finite");
        }
        let chunks = max_positions.div_ceil(CHUNK);
        Ok(Self {
            style,
            inverse_frequencies,
            magnitude,
            max_positions,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            #[cfg(feature = "cuda")]
            on_device: OnceLock::new(),
        })
    }

    /// Dimensions of a head that rotate; it may have more.
    pub fn rotary_dims(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    /// Positions are below this.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// Which dimensions make a pair.
    #[cfg(feature = "cuda")]
    pub(crate) fn style(&self) -> RopeStyle {
        self.style
    }

    /// `m`
    #[cfg(feature = "cuda")]
    pub(crate) fn magnitude(&self) -> f32 {
        self.magnitude
    }

    /// The frequencies in the memory of the device that asks first, which is the model's.
    #[cfg(feature = "cuda")]
    pub(crate) fn frequencies_on(
        &self,
        device: &candle_core::CudaDevice,
    ) -> Result<&candle_core::Tensor> {
        if let Some(found) = self.on_device.get() {
            return Ok(found);
        }
        let device = candle_core::Device::Cuda(device.clone());
        let frequencies = self.inverse_frequencies.as_slice();
        let made = candle_core::Tensor::from_slice(frequencies, frequencies.len(), &device)?;
        Ok(self.on_device.get_or_init(|| made))
    }

    /// The rotation for `position`, which the op has checked to be below
    /// [`Rope::max_positions`].
    pub(crate) fn at(&self, position: usize) -> Rotation<'_> {
        let pairs = self.inverse_frequencies.len();
        let table = self.chunks[position / CHUNK].get_or_init(|| self.table(position / CHUNK));
        let (cosines, sines) = table[position % CHUNK * 2 * pairs..][..2 * pairs].split_at(pairs);
        Rotation {
            style: self.style,
            cosines,
            sines,
        }
    }

    fn table(&self, chunk: usize) -> Box<[f32]> {
        let pairs = self.inverse_frequencies.len();
        let mut table = vec![0f32; CHUNK * 2 * pairs];
        for (i, row) in table.chunks_exact_mut(2 * pairs).enumerate() {
            let position = (chunk * CHUNK + i) as f32;
            let (cosines, sines) = row.split_at_mut(pairs);
            for ((cosine, sine), f) in cosines.iter_mut().zip(sines).zip(&self.inverse_frequencies)
            {
                let (sin, cos) = f64::from(position * f).sin_cos();
                *cosine = (cos * f64::from(self.magnitude)) as f32;
                *sine = (sin * f64::from(self.magnitude)) as f32;
            }
        }
        table.into()
    }
}

/// What one position does to a head.
#[derive(Clone, Copy)]
pub(crate) struct Rotation<'a> {
    style: RopeStyle,
    cosines: &'a [f32],
    sines: &'a [f32],
}

impl Rotation<'_> {
    /// Rotates the first dimensions of `head`, which has at least as many as rotate.
    #[inline(always)]
    pub fn apply(self, head: &mut [f32]) {
        let rotations = self.cosines.iter().zip(self.sines);
        match self.style {
            RopeStyle::HalfSplit => {
                let (low, rest) = head.split_at_mut(self.cosines.len());
                for ((a, b), (cos, sin)) in low.iter_mut().zip(rest).zip(rotations) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
            RopeStyle::Interleaved => {
                let pairs = head.as_chunks_mut::<2>().0;
                for ([a, b], (cos, sin)) in pairs.iter_mut().zip(rotations) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, max_error};
    use super::*;

    fn frequencies(rotary: usize, base: f64) -> Vec<f32> {
        (0..rotary / 2)
            .map(|i| base.powf(-2.0 * i as f64 / rotary as f64) as f32)
            .collect()
    }

    #[test]
    fn both_styles_rotate_their_pairs_and_leave_the_rest() -> Result<()> {
        let (rotary, dim, magnitude) = (12, 20, 1.25);
        let f = frequencies(rotary, 10_000.0);
        for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
            let rope = Rope::new(style, f.clone(), magnitude, 5000)?;
            assert_eq!((rope.rotary_dims(), rope.max_positions()), (rotary, 5000));
            for position in [0, 1, 255, 256, 4999] {
                let mut head = Random::new(9).values(dim, 2.0);
                let mut expected: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
                for (i, f) in f.iter().enumerate() {
                    let (first, second) = match style {
                        RopeStyle::HalfSplit => (i, i + rotary / 2),
                        RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                    };
                    let (sin, cos) = f64::from(position as f32 * f).sin_cos();
                    let (a, b) = (expected[first], expected[second]);
                    expected[first] = (a * cos - b * sin) * f64::from(magnitude);
                    expected[second] = (b * cos + a * sin) * f64::from(magnitude);
                }
                rope.at(position).apply(&mut head);
                let error = max_error(&head, &expected);
                assert!(error < 1e-6, "{style:?} {position}: {error:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_product_of_rotated_vectors_depends_on_their_distance_only() -> Result<()> {
        let rope = Rope::new(RopeStyle::HalfSplit, frequencies(64, 10_000.0), 1.0, 1000)?;
        let mut random = Random::new(10);
        let [q, k] = [(); 2].map(|()| random.values(64, 1.0));
        let product = |i, j| {
            let (mut q, mut k) = (q.clone(), k.clone());
            rope.at(i).apply(&mut q);
            rope.at(j).apply(&mut k);
            q.iter().zip(&k).map(|(q, k)| q * k).sum::<f32>()
        };
        assert!((product(30, 10) - product(700, 680)).abs() < 1e-3);
        Ok(())
    }

    #[test]
    fn numbers_that_are_none_are_errors() {
        let style = RopeStyle::HalfSplit;
        assert!(Rope::new(style, vec![], 1.0, 10).is_err());
        assert!(Rope::new(style, vec![f32::NAN], 1.0, 10).is_err());
        assert!(Rope::new(style, vec![1.0], f32::INFINITY, 10).is_err());
        assert!(Rope::new(style, vec![1.0], 1.0, 0).is_ok());
    }
}
