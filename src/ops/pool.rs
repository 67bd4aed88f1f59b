//! Pooling: from the tokens of each row of the batch to one vector.
//!
//! ```text
//! mean  y[r] = Σₜ x[t] / len(r)      t over the tokens of row r
//! cls   y[r] = x[first token of r]
//! last  y[r] = x[last token of r]
//! then  y[r] ← y[r][..dimension]      if a dimension is asked for
//! then  y[r] ← y[r] / max(‖y[r]‖₂, 1e-12)   if normalised
//!
//! x           [tokens, hidden]   f32      y  [rows, dimension or hidden]  f32
//! cu_seqlens  [rows + 1]         u32
//! ```
//! Truncation before normalisation is how Matryoshka embeddings are cut (Kusupati et al. 2022,
//! arXiv:2205.13147).

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::operand::{check_cu_seqlens, dims2, f32_values, u32_values};
use super::simd::{Arithmetic, Kernel, dispatch, sum_of};

/// Which tokens of a row make its vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all tokens.
    Mean,
    /// The first token, `[CLS]` or `<s>`.
    Cls,
    /// The last token.
    Last,
}

/// The op.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    /// Which tokens.
    pub pooling: Pooling,
    /// Keep only so many of the first values.
    pub dimension: Option<usize>,
    /// Divide by the L2 norm.
    pub normalize: bool,
}

impl Pool {
    /// The plain vectors of `pooling`: all values, not normalised.
    pub fn plain(pooling: Pooling) -> Self {
        Self {
            pooling,
            dimension: None,
            normalize: false,
        }
    }

    /// Pools `x`, `[tokens, hidden]`, to `[rows, dimension or hidden]`.
    ///
    /// # Errors
    /// If a row has no tokens, the dimension is 0 or above `hidden`, or shapes, dtypes or devices
    /// do not agree.
    pub fn apply(&self, x: &Tensor, cu_seqlens: &Tensor) -> Result<Tensor> {
        x.apply_op2_no_bwd(cu_seqlens, self)
    }
}

impl CustomOp2 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cu_seqlens: &CpuStorage,
        cu_seqlens_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, hidden) = dims2(x_layout, "x")?;
        let x = f32_values(x, x_layout, "x")?;
        let cu_seqlens = u32_values(cu_seqlens, cu_seqlens_layout, "cu_seqlens")?;
        check_cu_seqlens(cu_seqlens, tokens)?;
        let dimension = self.dimension.unwrap_or(hidden);
        if dimension == 0 || dimension > hidden {
            bail!("dimension {dimension} is not in 1..={hidden}");
        }
        if let Some(row) = cu_seqlens.windows(2).position(|row| row[0] == row[1]) {
            bail!("row {row} has no tokens to pool");
        }
        let rows = cu_seqlens.len() - 1;
        let mut out = vec![0f32; rows * dimension];
        dispatch(PoolRows {
            op: self,
            out: &mut out,
            x,
            cu_seqlens,
            hidden,
            dimension,
        });
        Ok((CpuStorage::F32(out), (rows, dimension).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        cu_seqlens: &CudaStorage,
        cu_seqlens_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::cuda::pool(*self, x, x_layout, cu_seqlens, cu_seqlens_layout)
    }
}

struct PoolRows<'a> {
    op: &'a Pool,
    out: &'a mut [f32],
    x: &'a [f32],
    cu_seqlens: &'a [u32],
    hidden: usize,
    dimension: usize,
}

impl Kernel for PoolRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let rows = self.cu_seqlens.windows(2);
        for (out, row) in self.out.chunks_exact_mut(self.dimension).zip(rows) {
            let (first, end) = (row[0] as usize, row[1] as usize);
            let token = |t: usize| &self.x[t * self.hidden..][..self.dimension];
            match self.op.pooling {
                Pooling::Cls => out.copy_from_slice(token(first)),
                Pooling::Last => out.copy_from_slice(token(end - 1)),
                Pooling::Mean => {
                    for t in first..end {
                        for (y, x) in out.iter_mut().zip(token(t)) {
                            *y += x;
                        }
                    }
                    scale(out, 1.0 / (end - first) as f32);
                }
            }
            if self.op.normalize {
                let norm = sum_of(out, |x| x * x).sqrt();
                scale(out, 1.0 / norm.max(1e-12));
            }
        }
    }
}

#[inline(always)]
fn scale(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, cu_seqlens, indices, max_error};
    use super::*;
    use candle_core::Device;

    fn reference(op: Pool, x: &[f32], lengths: &[usize], hidden: usize) -> Vec<f64> {
        let mut out = Vec::new();
        let mut begin = 0;
        for len in lengths {
            let tokens = match op.pooling {
                Pooling::Mean => begin..begin + len,
                Pooling::Cls => begin..begin + 1,
                Pooling::Last => begin + len - 1..begin + len,
            };
            begin += len;
            let y: Vec<f64> = (0..op.dimension.unwrap_or(hidden))
                .map(|c| {
                    let sum: f64 = tokens.clone().map(|t| f64::from(x[t * hidden + c])).sum();
                    sum / tokens.len() as f64
                })
                .collect();
            let norm = y.iter().map(|y| y * y).sum::<f64>().sqrt();
            out.extend(y.iter().map(|y| if op.normalize { y / norm } else { *y }));
        }
        out
    }

    #[test]
    fn equals_the_f64_reference() -> Result<()> {
        let lengths = [1, 9, 128, 2];
        let total = lengths.iter().sum::<usize>();
        for hidden in [1, 33, 384] {
            let x = Random::new(13).values(total * hidden, 2.0);
            let tensor = Tensor::from_slice(&x, (total, hidden), &Device::Cpu)?;
            for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
                for dimension in [None, Some(hidden.div_ceil(3))] {
                    for normalize in [false, true] {
                        let op = Pool {
                            pooling,
                            dimension,
                            normalize,
                        };
                        let y = op.apply(&tensor, &indices(&cu_seqlens(&lengths))?)?;
                        let expected = reference(op, &x, &lengths, hidden);
                        let error = max_error(&y.flatten_all()?.to_vec1()?, &expected);
                        assert!(error < 1e-6, "{op:?} hidden {hidden}: {error:e}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_zero_vector_normalises_to_zero() -> Result<()> {
        let x = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu)?;
        let op = Pool {
            normalize: true,
            ..Pool::plain(Pooling::Mean)
        };
        let y = op.apply(&x, &indices(&[0, 2])?)?;
        assert_eq!(y.to_vec2::<f32>()?, [[0f32; 4]]);
        Ok(())
    }

    #[test]
    fn an_empty_row_or_a_bad_dimension_is_an_error() -> Result<()> {
        let x = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu)?;
        let plain = Pool::plain(Pooling::Mean);
        assert!(plain.apply(&x, &indices(&[0, 2, 2])?).is_err());
        for dimension in [0, 5] {
            let op = Pool {
                dimension: Some(dimension),
                ..plain
            };
            assert!(op.apply(&x, &indices(&[0, 2])?).is_err());
        }
        Ok(())
    }
}
