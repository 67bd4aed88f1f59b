//! What sampling needs of a row of logits before it looks at single ones, and the soft cap that
//! some models put on them.
//!
//! ```text
//! logits [rows, vocabulary]  f32
//! argmax = first i with x[i] = max x        max = max x        log_sum_exp = ln Σ e^x[i]
//!
//! soft cap   x ← c · tanh(x / c)            Gemma 2 (arXiv:2408.00118)
//! ```
//! **Tiling.** A row is cut in chunks of `CHUNK` values, which are the tasks: a chunk's maximum,
//! then its sum against that maximum while it lies in L1. So memory is read once. The chunks of a
//! row are put together in their order, whichever thread had them.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::operand::{f32_values_mut, read};
use super::parallel::for_row_blocks;
use super::simd::{Arithmetic, Kernel, WIDTH, dispatch};
use super::vector_math::{exp, tanh};

/// Logits per task: 32 KiB, a few µs.
const CHUNK: usize = 8 * 1024;
/// Logits below which threads cost more than they bring.
const SERIAL: usize = 4 * CHUNK;

/// Statistics of one row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitStatistics {
    /// The first index of the largest logit.
    pub argmax: u32,
    /// The largest logit, NaN left out.
    pub max: f32,
    /// `ln Σ e^x`; NaN if any logit is NaN or +∞, −∞ if all are −∞.
    pub log_sum_exp: f32,
}

/// Statistics of each row of `logits`, `[rows, vocabulary]`.
///
/// # Errors
/// If `logits` is not a contiguous f32 matrix on the CPU, or its rows are empty.
pub fn logit_statistics(logits: &Tensor) -> Result<Vec<LogitStatistics>> {
    let (rows, vocabulary) = logits.dims2()?;
    if vocabulary == 0 || u32::try_from(vocabulary).is_err() {
        bail!("a row of logits cannot have {vocabulary} values");
    }
    let logits = read(logits, "logits");
    let logits = logits.values(rows * vocabulary)?;
    let chunks: Vec<&[f32]> = logits
        .chunks(vocabulary)
        .flat_map(|row| row.chunks(CHUNK))
        .collect();
    let summarize = |values: &&[f32]| dispatch(Summarize(values));
    let summaries: Vec<Summary> = if logits.len() <= SERIAL {
        chunks.iter().map(summarize).collect()
    } else {
        chunks.par_iter().map(summarize).collect()
    };
    let rows = logits.chunks(vocabulary);
    let summaries = summaries.chunks(vocabulary.div_ceil(CHUNK));
    Ok(rows.zip(summaries).map(combine).collect())
}

/// Overwrites each value of `x`, of any shape, with `cap · tanh(x / cap)`.
///
/// # Errors
/// If `cap` is not a positive number, or `x` is not a contiguous f32 tensor on the CPU.
pub fn soft_cap(x: &Tensor, cap: f32) -> Result<()> {
    if !(cap.is_finite() && cap > 0.0) {
        bail!("a soft cap must be positive, is {cap}");
    }
    x.inplace_op1(&SoftCap(cap))
}

/// Of one chunk.
struct Summary {
    max: f32,
    /// `Σ e^(x − max)`, or of `e^x` if all are −∞.
    sum: f32,
}

fn combine((row, summaries): (&[f32], &[Summary])) -> LogitStatistics {
    let mut best = 0;
    for (i, summary) in summaries.iter().enumerate() {
        if summary.max > summaries[best].max {
            best = i;
        }
    }
    let max = summaries[best].max;
    let chunk = &row[best * CHUNK..];
    let argmax = best * CHUNK + chunk.iter().position(|&x| x >= max).unwrap_or(0);
    let sum: f64 = summaries
        .iter()
        .map(|chunk| {
            if chunk.max == f32::NEG_INFINITY {
                // Nothing, unless it is NaN.
                0.0 * f64::from(chunk.sum)
            } else {
                f64::from(chunk.sum) * (f64::from(chunk.max) - f64::from(max)).exp()
            }
        })
        .sum();
    LogitStatistics {
        argmax: argmax as u32,
        max,
        log_sum_exp: if sum == 0.0 {
            f32::NEG_INFINITY
        } else {
            (f64::from(max) + sum.ln()) as f32
        },
    }
}

struct Summarize<'a>(&'a [f32]);

impl Kernel for Summarize<'_> {
    type Output = Summary;

    #[inline(always)]
    fn run<A: Arithmetic>(self) -> Summary {
        // Two vectors at a time, for two independent chains.
        let (pairs, rest) = self.0.as_chunks::<{ 2 * WIDTH }>();
        let mut last = [f32::NEG_INFINITY; 2 * WIDTH];
        last[..rest.len()].copy_from_slice(rest);

        let mut max = [A::splat(f32::NEG_INFINITY); 2];
        for pair in pairs.iter().chain([&last]) {
            let halves = pair.as_chunks::<WIDTH>().0;
            for v in 0..2 {
                max[v] = A::max(A::load(&halves[v]), max[v]);
            }
        }
        let max = lanes::<A>(A::max(max[0], max[1]))
            .into_iter()
            .fold(f32::NEG_INFINITY, f32::max);

        let base = A::splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
        let mut sum = [A::splat(0.0); 2];
        for pair in pairs {
            let halves = pair.as_chunks::<WIDTH>().0;
            for v in 0..2 {
                sum[v] = A::add(sum[v], exp::<A>(A::sub(A::load(&halves[v]), base)));
            }
        }
        if !rest.is_empty() {
            // The padding adds some 1e-38 per value, which a sum that is at least 1 does not see.
            let halves = last.as_chunks::<WIDTH>().0;
            for v in 0..2 {
                sum[v] = A::add(sum[v], exp::<A>(A::sub(A::load(&halves[v]), base)));
            }
        }
        Summary {
            max,
            sum: lanes::<A>(A::add(sum[0], sum[1])).into_iter().sum(),
        }
    }
}

#[inline(always)]
fn lanes<A: Arithmetic>(vector: A::Vector) -> [f32; WIDTH] {
    let mut lanes = [0f32; WIDTH];
    A::store(vector, &mut lanes);
    lanes
}

struct SoftCap(f32);

impl InplaceOp1 for SoftCap {
    fn name(&self) -> &'static str {
        "soft-cap"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let x = f32_values_mut(x, layout, "x")?;
        for_row_blocks(x, 1, |_, values| dispatch(CapValues(values, self.0)));
        Ok(())
    }
}

struct CapValues<'a>(&'a mut [f32], f32);

impl Kernel for CapValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (chunks, rest) = self.0.as_chunks_mut::<WIDTH>();
        for chunk in chunks {
            A::store(cap::<A>(A::load(chunk), self.1), chunk);
        }
        let mut last = [0f32; WIDTH];
        last[..rest.len()].copy_from_slice(rest);
        A::store(cap::<A>(A::load(&last), self.1), &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// `cap · tanh(x / cap)`.
#[inline(always)]
pub(crate) fn cap<A: Arithmetic>(x: A::Vector, cap: f32) -> A::Vector {
    A::mul(tanh::<A>(A::mul(x, A::splat(1.0 / cap))), A::splat(cap))
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::super::testing::{Random, max_error};
    use super::*;
    use candle_core::{DType, Device};

    fn statistics(row: &[f32]) -> Result<LogitStatistics> {
        let logits = Tensor::from_slice(row, (1, row.len()), &Device::Cpu)?;
        Ok(logit_statistics(&logits)?[0])
    }

    #[test]
    fn equal_the_f64_reference_on_odd_shapes() -> Result<()> {
        let mut random = Random::new(12);
        let shapes = [
            (1, 1),
            (3, 7),
            (2, 16),
            (5, 8191),
            (2, 8193),
            (17, 2049),
            (2, 50_001),
        ];
        for (rows, vocabulary) in shapes {
            let logits = random.values(rows * vocabulary, 30.0);
            let tensor = Tensor::from_slice(&logits, (rows, vocabulary), &Device::Cpu)?;
            let got = logit_statistics(&tensor)?;
            assert_eq!(got.len(), rows);
            for (row, got) in logits.chunks(vocabulary).zip(got) {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let first = row.iter().position(|&x| x >= max);
                let log_sum_exp = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
                assert_eq!(Some(got.argmax as usize), first);
                assert_eq!(got.max.to_bits(), max.to_bits());
                let error = (f64::from(got.log_sum_exp) - log_sum_exp).abs();
                assert!(error < 4e-6, "{rows}x{vocabulary}: {error:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() -> Result<()> {
        let logits = Random::new(13).values(5 * 20_011, 9.0);
        let tensor = Tensor::from_slice(&logits, (5, 20_011), &Device::Cpu)?;
        let lone = logits
            .chunks(20_011)
            .map(statistics)
            .collect::<Result<Vec<_>>>()?;
        assert_eq!(logit_statistics(&tensor)?, lone);
        Ok(())
    }

    #[test]
    fn the_first_of_equal_maxima_wins() -> Result<()> {
        let mut row = vec![0f32; 30_000];
        let ties: [(usize, &[usize]); 3] = [(29_999, &[]), (20_000, &[29_000]), (9, &[10, 8192])];
        for (first, others) in ties {
            row[first] = 5.0;
            for &other in others {
                row[other] = 5.0;
            }
            assert_eq!(statistics(&row)?.argmax as usize, first);
        }
        assert_eq!(statistics(&[-0.0, 0.0])?.argmax, 0);
        Ok(())
    }

    #[test]
    fn nan_and_infinities_show() -> Result<()> {
        for place in [0, 7, 8192, 19_999] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut row = vec![1f32; 20_000];
                row[place] = bad;
                assert!(statistics(&row)?.log_sum_exp.is_nan(), "{bad} at {place}");
            }
        }
        assert!(statistics(&[f32::NAN; 3])?.log_sum_exp.is_nan());
        assert!(
            statistics(&[f32::NEG_INFINITY, f32::NAN])?
                .log_sum_exp
                .is_nan()
        );
        let none = statistics(&[f32::NEG_INFINITY; 9])?;
        assert_eq!((none.argmax, none.log_sum_exp), (0, f32::NEG_INFINITY));

        let mut row = vec![f32::NEG_INFINITY; 20_000];
        row[10_000] = -3.0;
        let one = statistics(&row)?;
        assert_eq!((one.argmax, one.max), (10_000, -3.0));
        assert!((one.log_sum_exp + 3.0).abs() < 1e-6);
        Ok(())
    }

    #[test]
    fn both_instruction_sets_agree() {
        let values = Random::new(14).values(4099, 20.0);
        let portable = Summarize(&values).run::<Portable>();
        let best = dispatch(Summarize(&values));
        assert_eq!(portable.max.to_bits(), best.max.to_bits());
        assert!((portable.sum / best.sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_soft_cap_equals_the_f64_reference() -> Result<()> {
        let x = Random::new(15).values(3 * 7001, 100.0);
        let expected: Vec<f64> = x
            .iter()
            .map(|&x| 30.0 * (f64::from(x) / 30.0).tanh())
            .collect();
        let tensor = Tensor::from_slice(&x, (3, 7001), &Device::Cpu)?;
        soft_cap(&tensor, 30.0)?;
        let error = max_error(&tensor.flatten_all()?.to_vec1()?, &expected);
        assert!(error < 1.5e-5, "{error:e}");
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_an_error() -> Result<()> {
        let zeros = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
        for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(soft_cap(&zeros, cap).is_err());
        }
        assert!(logit_statistics(&zeros.t()?).is_err());
        assert!(logit_statistics(&zeros.to_dtype(DType::F16)?).is_err());
        assert!(logit_statistics(&Tensor::zeros((2, 0), DType::F32, &Device::Cpu)?).is_err());
        let none = Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?;
        assert!(logit_statistics(&none)?.is_empty());
        Ok(())
    }
}
