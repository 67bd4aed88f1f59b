//! Root-mean-square normalization, alone and fused with the residual sums of a decoder layer.
//!
//! ```text
//! rms(x) = x / √(Σx²/n + ε) · w
//!
//! RmsNorm           y = rms(x)
//! ResidualRmsNorm   x ← x + delta              then  y = rms_next(x)
//!                   x ← x + rms_post(delta)    then  y = rms_next(x)
//!
//! x, delta, y  [tokens, n]   f32
//! w            [n]           f32   as multiplied: a model that stores w − 1 adds the 1 at load
//! ```
//! Zhang & Sennrich 2019 (arXiv:1910.07467). The second form is the joint of two halves of a
//! pre-norm layer (Llama), the third that of layers which also normalize what they add (Gemma 2
//! and 3): one read of `x` and of `delta` and one write of `x` and of `y`.
//!
//! A row is summed in an order that depends on `n` alone, so a token's result does not depend on
//! what it is batched with.

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, CustomOp2};
use rayon::prelude::*;

use super::operand::{dims2, f32_values, f32_values_mut, read};
use super::parallel::for_row_blocks;
use super::simd::{Arithmetic, Kernel, dispatch, sum_of};

/// Values of `x` per task of the residual form, which streams four arrays of that many.
const BLOCK_VALUES: usize = 8 * 1024;

/// The op with its weight.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    epsilon: f32,
}

impl RmsNorm {
    /// `weight`, `[n]`, f32, is multiplied as it is; `epsilon` is added under the root.
    pub fn new(weight: Tensor, epsilon: f32) -> Self {
        Self { weight, epsilon }
    }

    /// Normalizes each row of `x`, `[tokens, n]`, into a new tensor.
    ///
    /// # Errors
    /// If shapes, dtypes or devices do not agree.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(self)
    }

    /// The gain `w`.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `ε`.
    pub(crate) fn epsilon(&self) -> f32 {
        self.epsilon
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, n) = dims2(layout, "x")?;
        let x = f32_values(x, layout, "x")?;
        let weight = read(&self.weight, "norm weight");
        let gain = Gain {
            weight: weight.values(n)?,
            epsilon: self.epsilon,
        };
        let mut y = vec![0f32; tokens * n];
        for_row_blocks(&mut y, n, |first, y| {
            let x = &x[first * n..][..y.len()];
            dispatch(NormRows { x, gain, y });
        });
        Ok((CpuStorage::F32(y), (tokens, n).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::rms_norm(self, x, layout)
    }
}

/// The op that ends one half of a decoder layer and begins the next.
#[derive(Debug, Clone)]
pub struct ResidualRmsNorm {
    post: Option<RmsNorm>,
    next: RmsNorm,
}

impl ResidualRmsNorm {
    /// `post` normalizes what is added, if anything does; `next` normalizes the sum.
    pub fn new(post: Option<RmsNorm>, next: RmsNorm) -> Self {
        Self { post, next }
    }

    /// What normalizes what is added, and what normalizes the sum.
    #[cfg(feature = "cuda")]
    pub(super) fn norms(&self) -> (Option<&RmsNorm>, &RmsNorm) {
        (self.post.as_ref(), &self.next)
    }

    /// Adds `delta` (through `post`) to `x` in place, both `[tokens, n]`, and returns `next` of
    /// the sum.
    ///
    /// # Errors
    /// If shapes, dtypes or devices do not agree, or `x` and `delta` share their storage.
    pub fn apply(&self, x: &Tensor, delta: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return x.apply_op2_no_bwd(delta, self);
        }
        let op = AddThenNorm {
            norms: self,
            y: RefCell::default(),
        };
        x.inplace_op2(delta, &op)?;
        Tensor::from_vec(op.y.into_inner(), x.shape(), x.device())
    }
}

/// On a device the op has an output, and writes to `x` by its address: who else reads `x` does so in
/// the same stream.
#[cfg(feature = "cuda")]
impl CustomOp2 for ResidualRmsNorm {
    fn name(&self) -> &'static str {
        "residual-rms-norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("on the CPU this op is in place")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        delta: &CudaStorage,
        delta_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::cuda::residual_rms_norm(self, x, x_layout, delta, delta_layout)
    }
}

/// An in-place op has no output of its own, so this one carries it.
struct AddThenNorm<'a> {
    norms: &'a ResidualRmsNorm,
    y: RefCell<Vec<f32>>,
}

impl InplaceOp2 for AddThenNorm<'_> {
    fn name(&self) -> &'static str {
        "residual-rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        delta: &CpuStorage,
        delta_layout: &Layout,
    ) -> Result<()> {
        let (tokens, n) = dims2(x_layout, "x")?;
        if x_layout.shape() != delta_layout.shape() {
            bail!(
                "x {:?} and delta {:?} must have the same shape",
                x_layout.shape(),
                delta_layout.shape()
            );
        }
        let x = f32_values_mut(x, x_layout, "x")?;
        let delta = f32_values(delta, delta_layout, "delta")?;
        let ResidualRmsNorm { post, next } = self.norms;
        let next_weight = read(&next.weight, "norm weight");
        let next = Gain {
            weight: next_weight.values(n)?,
            epsilon: next.epsilon,
        };
        let post_weight = post.as_ref().map(|post| read(&post.weight, "post weight"));
        let post = match (post, &post_weight) {
            (Some(post), Some(weight)) => Some(Gain {
                weight: weight.values(n)?,
                epsilon: post.epsilon,
            }),
            _ => None,
        };

        let mut y = vec![0f32; tokens * n];
        let block = (BLOCK_VALUES / n.max(1)).max(1) * n.max(1);
        let rows = |((x, delta), y)| {
            dispatch(AddNormRows {
                x,
                delta,
                post,
                next,
                y,
            });
        };
        if x.len() <= block {
            rows(((x, delta), &mut y));
        } else {
            x.par_chunks_mut(block)
                .zip(delta.par_chunks(block))
                .zip(y.par_chunks_mut(block))
                .for_each(rows);
        }
        self.y.replace(y);
        Ok(())
    }
}

/// Gain `w` and `ε`.
#[derive(Clone, Copy)]
pub(crate) struct Gain<'a> {
    pub weight: &'a [f32],
    pub epsilon: f32,
}

impl Gain<'_> {
    /// What a row is multiplied by before its gains: `1 / √(Σx²/n + ε)`.
    #[inline(always)]
    fn inverse(self, row: &[f32]) -> f32 {
        let mean_square = sum_of(row, |x| x * x) / row.len() as f32;
        1.0 / (mean_square + self.epsilon).sqrt()
    }

    /// `y = rms(x)` of one row; all lengths are equal.
    #[inline(always)]
    fn normalize_into(self, row: &[f32], y: &mut [f32]) {
        let inverse = self.inverse(row);
        for ((y, x), w) in y.iter_mut().zip(row).zip(self.weight) {
            *y = x * inverse * w;
        }
    }

    /// `x ← rms(x)` of one row as long as the weight.
    #[inline(always)]
    pub fn normalize(self, row: &mut [f32]) {
        let inverse = self.inverse(row);
        for (x, w) in row.iter_mut().zip(self.weight) {
            *x = *x * inverse * w;
        }
    }
}

struct NormRows<'a> {
    x: &'a [f32],
    gain: Gain<'a>,
    y: &'a mut [f32],
}

impl Kernel for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let n = self.gain.weight.len();
        for (x, y) in self.x.chunks_exact(n).zip(self.y.chunks_exact_mut(n)) {
            self.gain.normalize_into(x, y);
        }
    }
}

struct AddNormRows<'a> {
    x: &'a mut [f32],
    delta: &'a [f32],
    post: Option<Gain<'a>>,
    next: Gain<'a>,
    y: &'a mut [f32],
}

impl Kernel for AddNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let n = self.next.weight.len();
        if n == 0 {
            return;
        }
        let rows = self.x.chunks_exact_mut(n).zip(self.delta.chunks_exact(n));
        for ((x, delta), y) in rows.zip(self.y.chunks_exact_mut(n)) {
            if let Some(post) = self.post {
                let inverse = post.inverse(delta);
                for ((x, d), w) in x.iter_mut().zip(delta).zip(post.weight) {
                    *x += d * inverse * w;
                }
            } else {
                for (x, d) in x.iter_mut().zip(delta) {
                    *x += d;
                }
            }
            self.next.normalize_into(x, y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::super::testing::{Random, max_error};
    use super::*;
    use candle_core::{DType, Device};

    fn rms_f64(x: &[f64], weight: &[f32], epsilon: f64) -> Vec<f64> {
        let n = weight.len();
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(n) {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / n as f64;
            let row = row.iter().zip(weight);
            out.extend(row.map(|(x, w)| x / (mean + epsilon).sqrt() * f64::from(*w)));
        }
        out
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&x| f64::from(x)).collect()
    }

    fn norm(weight: &[f32], epsilon: f32) -> Result<RmsNorm> {
        let weight = Tensor::from_slice(weight, weight.len(), &Device::Cpu)?;
        Ok(RmsNorm::new(weight, epsilon))
    }

    const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 16), (3, 7), (70, 576), (5, 769), (200, 33)];

    #[test]
    fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
        let mut random = Random::new(1);
        for (tokens, n) in SHAPES {
            let x = random.values(tokens * n, 3.0);
            let weight = random.values(n, 2.0);
            let expected = rms_f64(&wide(&x), &weight, 1e-5);
            let x = Tensor::from_vec(x, (tokens, n), &Device::Cpu)?;
            let y = norm(&weight, 1e-5)?.apply(&x)?;
            let error = max_error(&y.flatten_all()?.to_vec1()?, &expected);
            assert!(error < 2e-6, "{tokens}x{n}: {error:e}");
        }
        Ok(())
    }

    #[test]
    fn the_residual_form_adds_in_place_and_normalizes_the_sum() -> Result<()> {
        let mut random = Random::new(2);
        for (tokens, n) in SHAPES {
            for with_post in [false, true] {
                let [x, delta] = [(); 2].map(|()| random.values(tokens * n, 3.0));
                let [post, next] = [(); 2].map(|()| random.values(n, 1.0));
                let added = if with_post {
                    rms_f64(&wide(&delta), &post, 1e-6)
                } else {
                    wide(&delta)
                };
                let sum: Vec<f64> = wide(&x).iter().zip(added).map(|(x, d)| x + d).collect();
                let expected = rms_f64(&sum, &next, 1e-6);

                let post = with_post.then(|| norm(&post, 1e-6)).transpose()?;
                let op = ResidualRmsNorm::new(post, norm(&next, 1e-6)?);
                let x = Tensor::from_vec(x, (tokens, n), &Device::Cpu)?;
                let delta = Tensor::from_vec(delta, (tokens, n), &Device::Cpu)?;
                let y = op.apply(&x, &delta)?;
                assert_eq!(y.dims(), [tokens, n]);
                let error = max_error(&x.flatten_all()?.to_vec1()?, &sum);
                assert!(error < 2e-6, "{tokens}x{n} {with_post}: {error:e}");
                let error = max_error(&y.flatten_all()?.to_vec1()?, &expected);
                assert!(error < 4e-6, "{tokens}x{n} {with_post}: {error:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() -> Result<()> {
        let (tokens, n) = (60, 641);
        let mut random = Random::new(3);
        let [x, delta] = [(); 2]
            .map(|()| Tensor::from_vec(random.values(tokens * n, 2.0), (tokens, n), &Device::Cpu));
        let (x, delta) = (x?, delta?);
        let op = ResidualRmsNorm::new(
            Some(norm(&random.values(n, 1.0), 1e-6)?),
            norm(&random.values(n, 1.0), 1e-6)?,
        );
        let lone = (0..tokens)
            .map(|i| {
                let row = x.narrow(0, i, 1)?.copy()?;
                op.apply(&row, &delta.narrow(0, i, 1)?)?
                    .flatten_all()?
                    .to_vec1::<f32>()
            })
            .collect::<Result<Vec<_>>>()?;
        assert_eq!(op.apply(&x, &delta)?.to_vec2::<f32>()?, lone);
        Ok(())
    }

    #[test]
    fn both_instruction_sets_agree() {
        let n = 37;
        let mut random = Random::new(4);
        let [weight, delta, x] = [1, 4, 4].map(|rows| random.values(rows * n, 1.0));
        let gain = Gain {
            weight: &weight,
            epsilon: 1e-6,
        };
        let mut outputs = [(x.clone(), x.clone()), (x.clone(), x)];
        for (i, (x, y)) in outputs.iter_mut().enumerate() {
            let kernel = AddNormRows {
                x,
                delta: &delta,
                post: Some(gain),
                next: gain,
                y,
            };
            if i == 0 {
                kernel.run::<Portable>();
            } else {
                dispatch(kernel);
            }
        }
        assert!(max_error(&outputs[1].0, &wide(&outputs[0].0)) < 1e-6);
        assert!(max_error(&outputs[1].1, &wide(&outputs[0].1)) < 1e-6);
    }

    #[test]
    fn a_wrong_shape_is_an_error() -> Result<()> {
        let op = norm(&[1.0; 4], 1e-5)?;
        let x = Tensor::zeros((2, 5), DType::F32, &Device::Cpu)?;
        assert!(op.apply(&x).is_err());
        let residual = ResidualRmsNorm::new(None, op.clone());
        assert!(residual.apply(&x, &x.copy()?).is_err());
        let x = Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?;
        assert!(residual.apply(&x, &x.narrow(0, 0, 1)?.copy()?).is_err());
        assert!(residual.apply(&x, &x).is_err());
        assert!(
            op.apply(&Tensor::zeros((2, 4), DType::F16, &Device::Cpu)?)
                .is_err()
        );
        let none = Tensor::zeros((0, 4), DType::F32, &Device::Cpu)?;
        assert_eq!(op.apply(&none)?.dims(), [0, 4]);
        assert_eq!(residual.apply(&none, &none.copy()?)?.dims(), [0, 4]);
        Ok(())
    }
}
