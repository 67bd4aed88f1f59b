//! `y = x·Wᵀ (+ bias)`: the matrix product, with the weight laid out once, at load.
//!
//! ```text
//! x     [tokens, in]    f32
//! W     [out, in]       f32   as in the file
//! bias  [out]           f32   optional; mostly left to the op that comes after
//! y     [tokens, out]   f32
//! ```
//! The weight is kept transposed, `[in, out]`, which is how candle's CPU matmul reads it without
//! a strided copy per call.

use candle_core::{Result, Tensor};

use super::activation::{Activation, BiasActivation};

/// A linear layer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[in, out]`
    transposed: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From a weight `[out, in]`, as files have it, and a bias `[out]` for [`Linear::apply`] to
    /// add (`None` where the next op adds it).
    ///
    /// # Errors
    /// If the weight has not two dimensions.
    pub fn new(weight: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        weight.dims2()?;
        Ok(Self {
            transposed: weight.t()?.contiguous()?,
            bias,
        })
    }

    /// `[tokens, in]` to `[tokens, out]`.
    ///
    /// # Errors
    /// If shapes, dtypes or devices do not agree.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.transposed)?;
        if let Some(bias) = &self.bias {
            BiasActivation(Activation::Identity).apply(&y, bias)?;
        }
        Ok(y)
    }

    /// Number of output features.
    pub fn out_features(&self) -> usize {
        self.transposed.dims()[1]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, max_error};
    use super::*;
    use candle_core::Device;

    #[test]
    fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
        let mut random = Random::new(12);
        for (tokens, inputs, outputs) in [(1, 1, 1), (1, 384, 3), (7, 33, 65), (130, 384, 100)] {
            let x = random.values(tokens * inputs, 1.0);
            let w = random.values(outputs * inputs, 1.0);
            let b = random.values(outputs, 1.0);
            let mut expected = Vec::new();
            for x in x.chunks_exact(inputs) {
                for (w, b) in w.chunks_exact(inputs).zip(&b) {
                    let dot: f64 = x
                        .iter()
                        .zip(w)
                        .map(|(x, w)| f64::from(*x) * f64::from(*w))
                        .sum();
                    expected.push(dot + f64::from(*b));
                }
            }
            let w = Tensor::from_vec(w, (outputs, inputs), &Device::Cpu)?;
            let b = Tensor::from_vec(b, outputs, &Device::Cpu)?;
            let linear = Linear::new(&w, Some(b))?;
            assert_eq!(linear.out_features(), outputs);
            let x = Tensor::from_vec(x, (tokens, inputs), &Device::Cpu)?;
            let y = linear.apply(&x)?.flatten_all()?.to_vec1()?;
            let error = max_error(&y, &expected);
            assert!(error < 2e-5, "{tokens}x{inputs}x{outputs}: {error:e}");
        }
        Ok(())
    }
}
