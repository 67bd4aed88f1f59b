//! `y = act(gate) · up`: the middle of a gated feed-forward block.
//!
//! ```text
//! gate_up  [tokens, 2n]  f32   of the fused projection: gate, then up
//! y        [tokens, n]   f32
//! ```
//! Shazeer 2020 (arXiv:2002.05202): `SwiGLU` with [`Activation::Silu`] (Llama), `GeGLU` with
//! [`Activation::GeluTanh`] (Gemma). A row is taken in pieces that stay in L1 between the
//! activation and the product.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::activation::{Activation, activate};
use super::operand::{dims2, f32_values};
use super::parallel::for_row_blocks;
use super::simd::{Arithmetic, Kernel, dispatch};

/// Values per piece of a row: 4 KiB of each of the three arrays.
const PIECE: usize = 1024;

/// The op: which activation the gate goes through.
#[derive(Debug, Clone, Copy)]
pub struct GatedActivation(pub Activation);

impl GatedActivation {
    /// `gate_up`, `[tokens, 2n]`, to `[tokens, n]`.
    ///
    /// # Errors
    /// If `gate_up` has not two dimensions, an odd width, or is not f32.
    pub fn apply(&self, gate_up: &Tensor) -> Result<Tensor> {
        gate_up.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for GatedActivation {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(&self, gate_up: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = dims2(layout, "gate_up")?;
        if width % 2 != 0 {
            bail!("gate_up of width {width} does not split in gate and up");
        }
        let gate_up = f32_values(gate_up, layout, "gate_up")?;
        let n = width / 2;
        let mut y = vec![0f32; tokens * n];
        for_row_blocks(&mut y, n, |first, y| {
            dispatch(GateRows {
                gate_up: &gate_up[first * width..][..2 * y.len()],
                activation: self.0,
                n,
                y,
            });
        });
        Ok((CpuStorage::F32(y), (tokens, n).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, gate_up: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::gated(*self, gate_up, layout)
    }
}

struct GateRows<'a> {
    gate_up: &'a [f32],
    activation: Activation,
    n: usize,
    y: &'a mut [f32],
}

impl Kernel for GateRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let rows = self.gate_up.chunks_exact(2 * self.n);
        for (row, y) in rows.zip(self.y.chunks_exact_mut(self.n)) {
            let (gate, up) = row.split_at(self.n);
            let pieces = y.chunks_mut(PIECE).zip(gate.chunks(PIECE));
            for ((y, gate), up) in pieces.zip(up.chunks(PIECE)) {
                y.copy_from_slice(gate);
                activate::<A>(self.activation, y);
                for (y, up) in y.iter_mut().zip(up) {
                    *y *= up;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::super::testing::{Random, max_error};
    use super::*;
    use candle_core::{DType, Device};

    fn reference(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            _ => x,
        }
    }

    #[test]
    fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
        let mut random = Random::new(6);
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Identity] {
            for (tokens, n) in [(1, 1), (1, 17), (33, 100), (3, 1536), (40, 1111)] {
                let gate_up = random.values(tokens * 2 * n, 4.0);
                let expected: Vec<f64> = gate_up
                    .chunks_exact(2 * n)
                    .flat_map(|row| (0..n).map(|i| (f64::from(row[i]), f64::from(row[n + i]))))
                    .map(|(gate, up)| reference(activation, gate) * up)
                    .collect();
                let gate_up = Tensor::from_vec(gate_up, (tokens, 2 * n), &Device::Cpu)?;
                let y = GatedActivation(activation).apply(&gate_up)?;
                assert_eq!(y.dims(), [tokens, n]);
                let error = max_error(&y.flatten_all()?.to_vec1()?, &expected);
                assert!(error < 4e-6, "{activation:?} {tokens}x{n}: {error:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn both_instruction_sets_agree() {
        let n = 333;
        let gate_up = Random::new(7).values(3 * 2 * n, 5.0);
        let mut outputs = [vec![0f32; 3 * n], vec![0f32; 3 * n]];
        for (i, y) in outputs.iter_mut().enumerate() {
            let kernel = GateRows {
                gate_up: &gate_up,
                activation: Activation::Silu,
                n,
                y,
            };
            if i == 0 {
                kernel.run::<Portable>();
            } else {
                dispatch(kernel);
            }
        }
        let portable: Vec<f64> = outputs[0].iter().map(|&x| f64::from(x)).collect();
        assert!(max_error(&outputs[1], &portable) < 5e-6);
    }

    #[test]
    fn a_wrong_shape_is_an_error() -> Result<()> {
        let op = GatedActivation(Activation::Silu);
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        assert!(op.apply(&zeros((2, 5))?).is_err());
        assert!(op.apply(&zeros((2, 4))?.t()?).is_err());
        assert!(op.apply(&zeros((2, 4))?.flatten_all()?).is_err());
        assert_eq!(op.apply(&zeros((0, 4))?)?.dims(), [0, 2]);
        Ok(())
    }
}
