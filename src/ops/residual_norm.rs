//! `y = LayerNorm(x + bias + residual)`: the end of each half of a post-norm encoder layer.
//!
//! ```text
//! x, residual  [tokens, hidden]   f32     y overwrites x
//! bias, γ, β   [hidden]           f32     the bias is that of the linear that made x
//! ```
//! One read of `x` and of `residual` and one write of `y`; as separate ops it would be four of
//! each (`BertSelfOutput` and `BertOutput` of Devlin et al. 2018, arXiv:1810.04805).

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};

use super::layer_norm::{NormWeights, normalize_row};
use super::operand::{dims2, f32_values, f32_values_mut, read};
use super::parallel::for_row_blocks;
use super::simd::{Arithmetic, Kernel, dispatch};

/// The op with its weights, each `[hidden]`, f32.
#[derive(Debug, Clone)]
pub struct ResidualNorm {
    /// Bias of the linear whose output is normalised.
    pub bias: Tensor,
    /// Gain `γ`.
    pub weight: Tensor,
    /// Offset `β`.
    pub norm_bias: Tensor,
    /// `ε` under the root.
    pub epsilon: f32,
}

impl ResidualNorm {
    /// Overwrites `x` with `LayerNorm(x + bias + residual)`; both are `[tokens, hidden]`.
    ///
    /// # Errors
    /// If shapes, dtypes or devices do not agree.
    pub fn apply(&self, x: &Tensor, residual: &Tensor) -> Result<()> {
        x.inplace_op2(residual, self)
    }

    /// As [`ResidualNorm::apply`], of the values of rows on the CPU.
    ///
    /// # Errors
    /// If shapes do not agree, or the weights are on another device.
    pub fn apply_rows(&self, x: &mut [f32], residual: &[f32]) -> Result<()> {
        let hidden = self.bias.elem_count();
        if x.len() != residual.len() || !x.len().is_multiple_of(hidden.max(1)) {
            let (x, residual) = (x.len(), residual.len());
            bail!("{x} values and {residual} of the residual are not rows of {hidden}");
        }
        self.on_values(x, residual, hidden)
    }

    fn on_values(&self, x: &mut [f32], residual: &[f32], hidden: usize) -> Result<()> {
        let bias = read(&self.bias, "bias");
        let bias = bias.values(hidden)?;
        let weight = read(&self.weight, "norm weight");
        let norm_bias = read(&self.norm_bias, "norm bias");
        let norm = NormWeights {
            weight: weight.values(hidden)?,
            bias: norm_bias.values(hidden)?,
            epsilon: self.epsilon,
        };
        for_row_blocks(x, hidden, |first, rows| {
            let residual = &residual[first * hidden..][..rows.len()];
            dispatch(AddNormRows {
                rows,
                residual,
                bias,
                norm,
            });
        });
        Ok(())
    }
}

impl InplaceOp2 for ResidualNorm {
    fn name(&self) -> &'static str {
        "residual-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<()> {
        let (_, hidden) = dims2(x_layout, "x")?;
        if x_layout.shape() != residual_layout.shape() {
            bail!(
                "x {:?} and residual {:?} must have the same shape",
                x_layout.shape(),
                residual_layout.shape()
            );
        }
        let x = f32_values_mut(x, x_layout, "x")?;
        let residual = f32_values(residual, residual_layout, "residual")?;
        self.on_values(x, residual, hidden)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        x_layout: &Layout,
        residual: &CudaStorage,
        residual_layout: &Layout,
    ) -> Result<()> {
        super::cuda::residual_norm(self, x, x_layout, residual, residual_layout)
    }
}

struct AddNormRows<'a> {
    rows: &'a mut [f32],
    residual: &'a [f32],
    bias: &'a [f32],
    norm: NormWeights<'a>,
}

impl Kernel for AddNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let hidden = self.bias.len();
        let rows = self.rows.chunks_exact_mut(hidden);
        for (row, residual) in rows.zip(self.residual.chunks_exact(hidden)) {
            for ((x, r), b) in row.iter_mut().zip(residual).zip(self.bias) {
                *x += r + b;
            }
            normalize_row::<A>(row, self.norm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, layer_norm_f64, max_error};
    use super::*;
    use candle_core::Device;

    #[test]
    fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
        let mut random = Random::new(1);
        for (tokens, hidden) in [(1, 1), (1, 16), (3, 7), (70, 384), (5, 769), (200, 33)] {
            let x = random.values(tokens * hidden, 3.0);
            let residual = random.values(tokens * hidden, 3.0);
            let [bias, weight, norm_bias] = [(); 3].map(|()| random.values(hidden, 1.0));
            let sum: Vec<f64> = (0..tokens * hidden)
                .map(|i| f64::from(x[i]) + f64::from(residual[i]) + f64::from(bias[i % hidden]))
                .collect();
            let expected = layer_norm_f64(&sum, &weight, &norm_bias, 1e-5);

            let vector = |v: Vec<f32>| Tensor::from_vec(v, hidden, &Device::Cpu);
            let op = ResidualNorm {
                bias: vector(bias)?,
                weight: vector(weight)?,
                norm_bias: vector(norm_bias)?,
                epsilon: 1e-5,
            };
            let x = Tensor::from_vec(x, (tokens, hidden), &Device::Cpu)?;
            let residual = Tensor::from_vec(residual, (tokens, hidden), &Device::Cpu)?;
            op.apply(&x, &residual)?;
            let error = max_error(&x.flatten_all()?.to_vec1()?, &expected);
            assert!(error < 4e-6, "{tokens}x{hidden}: {error:e}");
        }
        Ok(())
    }

    #[test]
    fn both_instruction_sets_agree() {
        let mut random = Random::new(2);
        let hidden = 37;
        let [bias, weight, norm_bias] = [(); 3].map(|()| random.values(hidden, 1.0));
        let residual = random.values(4 * hidden, 1.0);
        let x = random.values(4 * hidden, 1.0);
        let norm = NormWeights {
            weight: &weight,
            bias: &norm_bias,
            epsilon: 1e-12,
        };
        let kernel = |rows| AddNormRows {
            rows,
            residual: &residual,
            bias: &bias,
            norm,
        };
        let (mut portable, mut best) = (x.clone(), x);
        kernel(&mut portable).run::<super::super::simd::Portable>();
        dispatch(kernel(&mut best));
        let reference: Vec<f64> = portable.iter().map(|&x| f64::from(x)).collect();
        assert!(max_error(&best, &reference) < 2e-6);
    }

    #[test]
    fn a_wrong_shape_is_an_error() -> Result<()> {
        let ones = Tensor::ones(4, candle_core::DType::F32, &Device::Cpu)?;
        let op = ResidualNorm {
            bias: ones.clone(),
            weight: ones.clone(),
            norm_bias: ones,
            epsilon: 1e-5,
        };
        let x = Tensor::zeros((2, 5), candle_core::DType::F32, &Device::Cpu)?;
        assert!(op.apply(&x, &x.copy()?).is_err());
        Ok(())
    }
}
