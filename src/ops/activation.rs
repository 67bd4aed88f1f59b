//! `x ← act(x + bias)`, in place: the end of the first linear of a feed-forward block.
//!
//! ```text
//! x     [tokens, features]  f32
//! bias  [features]          f32
//! ```

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor, bail};

use super::operand::{dims2, f32_values, f32_values_mut};
use super::parallel::for_row_blocks;
use super::simd::{Arithmetic, Kernel, dispatch};
use super::vector_math::{Map, erf, exp, map_in_place, tanh};

/// Activation functions of encoders and decoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// No activation: adds the bias only.
    Identity,
    /// `½x·(1 + erf(x/√2))`, the exact form of Hendrycks & Gimpel 2016 (arXiv:1606.08415), to
    /// 1.5e-6 absolute (1e-6 with FMA), worst where `x` is about −5.
    Gelu,
    /// `½x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, the approximation of the same paper.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `tanh x`
    Tanh,
    /// `x / (1 + e^−x)`, of the same paper; the gate of most decoders.
    Silu,
}

/// The op: adds a bias and applies an activation, in place.
#[derive(Debug, Clone, Copy)]
pub struct BiasActivation(pub Activation);

impl BiasActivation {
    /// Overwrites `x`, `[tokens, features]`, with `act(x + bias)`; `bias` is `[features]`.
    ///
    /// # Errors
    /// If shapes, dtypes or devices do not agree.
    pub fn apply(&self, x: &Tensor, bias: &Tensor) -> Result<()> {
        x.inplace_op2(bias, self)
    }
}

impl InplaceOp2 for BiasActivation {
    fn name(&self) -> &'static str {
        "bias-activation"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        let (_, features) = dims2(x_layout, "x")?;
        let x = f32_values_mut(x, x_layout, "x")?;
        let bias = f32_values(bias, bias_layout, "bias")?;
        if bias.len() != features {
            bail!("bias must have {features} values, has {}", bias.len());
        }
        let activation = self.0;
        for_row_blocks(x, features, |_, rows| {
            dispatch(ActivateRows {
                rows,
                bias,
                activation,
            });
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        x_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<()> {
        super::cuda::bias_activation(*self, x, x_layout, bias, bias_layout)
    }
}

/// `rows ← act(rows + bias)`, on this thread.
pub(crate) fn activate_rows(rows: &mut [f32], bias: &[f32], activation: Activation) {
    dispatch(ActivateRows {
        rows,
        bias,
        activation,
    });
}

struct ActivateRows<'a> {
    rows: &'a mut [f32],
    bias: &'a [f32],
    activation: Activation,
}

impl Kernel for ActivateRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        for row in self.rows.chunks_exact_mut(self.bias.len()) {
            for (x, b) in row.iter_mut().zip(self.bias) {
                *x += b;
            }
            // The row lies in L1 now.
            activate::<A>(self.activation, row);
        }
    }
}

/// `x ← act(x)`. Chosen here, not per value, so that each loop is vector code.
#[inline(always)]
pub(crate) fn activate<A: Arithmetic>(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Gelu => map_in_place::<A, Gelu>(values),
        Activation::GeluTanh => map_in_place::<A, GeluTanh>(values),
        Activation::Relu => map_in_place::<A, Relu>(values),
        Activation::Tanh => map_in_place::<A, Tanh>(values),
        Activation::Silu => map_in_place::<A, Silu>(values),
    }
}

struct Gelu;

impl Map for Gelu {
    #[inline(always)]
    fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector {
        let half = A::mul(x, A::splat(0.5));
        let erf = erf::<A>(A::mul(x, A::splat(std::f32::consts::FRAC_1_SQRT_2)));
        A::mul_add_vector(half, erf, half)
    }
}

struct GeluTanh;

impl Map for GeluTanh {
    #[inline(always)]
    fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        let half = A::mul(x, A::splat(0.5));
        let square = A::mul(x, x);
        // √(2/π)·x·(1 + 0.044715·x²)
        let inner = A::mul_add_vector(
            square,
            A::splat(0.044_715 * SQRT_2_OVER_PI),
            A::splat(SQRT_2_OVER_PI),
        );
        A::mul_add_vector(half, tanh::<A>(A::mul(x, inner)), half)
    }
}

struct Relu;

impl Map for Relu {
    #[inline(always)]
    fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector {
        A::max(A::splat(0.0), x)
    }
}

struct Tanh;

impl Map for Tanh {
    #[inline(always)]
    fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector {
        tanh::<A>(x)
    }
}

struct Silu;

impl Map for Silu {
    #[inline(always)]
    fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector {
        let exp = exp::<A>(A::sub(A::splat(0.0), x));
        A::div(x, A::add(A::splat(1.0), exp))
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::super::testing::{Random, erf_f64, max_error};
    use super::*;
    use candle_core::Device;

    fn reference(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Identity => x,
            Activation::Gelu => 0.5 * x * (1.0 + erf_f64(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::Relu => x.max(0.0),
            Activation::Tanh => x.tanh(),
            Activation::Silu => x / (1.0 + (-x).exp()),
        }
    }

    const ALL: [Activation; 6] = [
        Activation::Identity,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Tanh,
        Activation::Silu,
    ];

    #[test]
    fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
        let mut random = Random::new(3);
        for activation in ALL {
            for (tokens, features) in [(1, 1), (1, 17), (33, 100), (3, 1536), (40, 1111)] {
                let x = random.values(tokens * features, 6.0);
                let bias = random.values(features, 1.0);
                let expected: Vec<f64> = x
                    .iter()
                    .enumerate()
                    .map(|(i, x)| reference(activation, f64::from(x + bias[i % features])))
                    .collect();
                let x = Tensor::from_vec(x, (tokens, features), &Device::Cpu)?;
                let bias = Tensor::from_vec(bias, features, &Device::Cpu)?;
                BiasActivation(activation).apply(&x, &bias)?;
                let error = max_error(&x.flatten_all()?.to_vec1()?, &expected);
                assert!(
                    error < 1e-6,
                    "{activation:?} {tokens}x{features}: {error:e}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn both_instruction_sets_agree() {
        let bias = Random::new(4).values(333, 1.0);
        for activation in ALL {
            let mut portable = Random::new(5).values(3 * 333, 8.0);
            let mut best = portable.clone();
            let kernel = |rows| ActivateRows {
                rows,
                bias: &bias,
                activation,
            };
            kernel(&mut portable).run::<Portable>();
            dispatch(kernel(&mut best));
            let reference: Vec<f64> = portable.iter().map(|&x| f64::from(x)).collect();
            assert!(max_error(&best, &reference) < 2e-6, "{activation:?}");
        }
    }

    #[test]
    fn nan_and_infinity_are_not_hidden() -> Result<()> {
        for activation in ALL {
            let x = Tensor::new(&[[f32::NAN, f32::INFINITY]], &Device::Cpu)?;
            let bias = Tensor::new(&[0f32, 0.0], &Device::Cpu)?;
            BiasActivation(activation).apply(&x, &bias)?;
            let y = x.to_vec2::<f32>()?[0].clone();
            assert!(y[0].is_nan(), "{activation:?}");
            assert!(y[1] >= 1.0 - 1e-6, "{activation:?}");
        }
        Ok(())
    }
}
