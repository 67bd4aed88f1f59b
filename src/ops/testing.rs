//! What the ops' unit tests share: reproducible random values and f64 references.

use candle_core::{Device, Result, Tensor};

/// Xorshift: the same numbers on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// `count` values, uniform in ±`range`.
    pub fn values(&mut self, count: usize, range: f32) -> Vec<f32> {
        (0..count)
            .map(|_| ((self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * range)
            .collect()
    }

    /// `count` indices below `bound`.
    pub fn indices(&mut self, count: usize, bound: usize) -> Vec<u32> {
        (0..count)
            .map(|_| ((self.next() >> 33) % bound as u64) as u32)
            .collect()
    }
}

/// Largest absolute difference; NaN counts as infinite.
pub(crate) fn max_error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter()
        .zip(expected)
        .map(|(&g, &e)| (f64::from(g) - e).abs())
        .map(|e| if e.is_nan() { f64::INFINITY } else { e })
        .fold(0.0, f64::max)
}

/// Layer norm of rows of `weight.len()` values.
pub(crate) fn layer_norm_f64(x: &[f64], weight: &[f32], bias: &[f32], epsilon: f64) -> Vec<f64> {
    let n = weight.len();
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(n) {
        let mean = row.iter().sum::<f64>() / n as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        for (i, x) in row.iter().enumerate() {
            let y = (x - mean) / (variance + epsilon).sqrt();
            out.push(y * f64::from(weight[i]) + f64::from(bias[i]));
        }
    }
    out
}

/// `[0, l₀, l₀ + l₁, …]`.
pub(crate) fn cu_seqlens(lengths: &[usize]) -> Vec<u32> {
    let mut ends = vec![0u32];
    for length in lengths {
        ends.push(ends.last().copied().unwrap_or(0) + *length as u32);
    }
    ends
}

/// A one-dimensional u32 tensor on the CPU.
pub(crate) fn indices(values: &[u32]) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), &Device::Cpu)
}

/// `erf` by its Taylor series near 0, where that loses no digits, else by the continued fraction
/// of `erfc`.
pub(crate) fn erf_f64(x: f64) -> f64 {
    if x.abs() > 3.0 {
        // Continued fraction of erfc (Lentz from the tail).
        let a = x.abs();
        let mut f = 0.0;
        for k in (1..=60).rev() {
            f = f64::from(k) / 2.0 / (a + f);
        }
        let erfc = (-a * a).exp() / ((a + f) * std::f64::consts::PI.sqrt());
        return (1.0 - erfc).copysign(x);
    }
    let (mut sum, mut term) = (x, x);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Bytes as an unnamed file, mapped.
pub(crate) fn map_of(bytes: &[u8]) -> std::sync::Arc<memmap2::Mmap> {
    use std::io::Write;
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("the file is written");
    // SAFETY: the file has no name, and nobody writes to it any more.
    std::sync::Arc::new(unsafe { memmap2::Mmap::map(&file) }.expect("the file is mapped"))
}
