//! Run-time choice of the vector instruction set, and the few vectorized primitives that
//! the CPU kernels share.
//!
//! The build targets baseline x86-64, so a kernel is written once, generic over [`Arithmetic`],
//! and compiled twice: portably, and inlined into a function that may use AVX2 and FMA. There LLVM
//! turns sums and the like into 256-bit code by itself. Register tiles and polynomials, which it
//! leaves scalar or spills, are written with [`Arithmetic::Vector`].

/// Floats per step of the elementwise loops: two AVX2 registers, so that two independent
/// chains are in flight.
pub(crate) const LANES: usize = 16;

/// Floats in an [`Arithmetic::Vector`].
pub(crate) const WIDTH: usize = 8;

/// How `a·b + c` is computed, and on what.
pub(crate) trait Arithmetic: Copy {
    /// [`WIDTH`] floats, in one register where the machine has such.
    type Vector: Copy;
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
    fn splat(value: f32) -> Self::Vector;
    fn load(values: &[f32; WIDTH]) -> Self::Vector;
    fn store(vector: Self::Vector, values: &mut [f32; WIDTH]);
    fn mul_add_vector(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    fn mul(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn div(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `b` where `a` or `b` is NaN, so that a bound given as `a` lets NaN pass.
    fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// As for `max`.
    fn min(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `2^n` for an integer `n` in the low mantissa bits.
    fn power_of_two(n: Self::Vector) -> Self::Vector;
}

/// Multiply, then add: `f32::mul_add` would be a library call on a target without FMA.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Arithmetic for Portable {
    type Vector = [f32; WIDTH];

    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn splat(value: f32) -> [f32; WIDTH] {
        [value; WIDTH]
    }

    #[inline(always)]
    fn load(values: &[f32; WIDTH]) -> [f32; WIDTH] {
        *values
    }

    #[inline(always)]
    fn store(vector: [f32; WIDTH], values: &mut [f32; WIDTH]) {
        *values = vector;
    }

    #[inline(always)]
    fn mul_add_vector(a: [f32; WIDTH], b: [f32; WIDTH], c: [f32; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn mul(a: [f32; WIDTH], b: [f32; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn add(a: [f32; WIDTH], b: [f32; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(a: [f32; WIDTH], b: [f32; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn div(a: [f32; WIDTH], b: [f32; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn max(a: [f32; WIDTH], b: [f32; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(a: [f32; WIDTH], b: [f32; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn power_of_two(n: [f32; WIDTH]) -> [f32; WIDTH] {
        std::array::from_fn(|i| f32::from_bits(n[i].to_bits().wrapping_add(127) << 23))
    }
}

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;

/// AVX2 and FMA. Private to this file so that only [`run_avx2`], which has both features, can
/// name the type and thereby reach its methods.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Arithmetic, WIDTH};
    use std::arch::x86_64::{
        __m256, _mm256_add_epi32, _mm256_add_ps, _mm256_castps_si256, _mm256_castsi256_ps,
        _mm256_div_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps,
        _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
        _mm256_sub_ps,
    };

    #[derive(Clone, Copy)]
    pub(super) struct Avx2;

    impl Arithmetic for Avx2 {
        type Vector = __m256;

        #[inline(always)]
        fn mul_add(a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        fn splat(value: f32) -> __m256 {
            // SAFETY: AVX is there (see the module).
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        fn load(values: &[f32; WIDTH]) -> __m256 {
            // SAFETY: AVX is there; the array is as long as the register, and need not be aligned.
            unsafe { _mm256_loadu_ps(values.as_ptr()) }
        }

        #[inline(always)]
        fn store(vector: __m256, values: &mut [f32; WIDTH]) {
            // SAFETY: as for `load`.
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), vector) }
        }

        #[inline(always)]
        fn mul_add_vector(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: FMA is there.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn mul(a: __m256, b: __m256) -> __m256 {
            // SAFETY: AVX is there.
            unsafe { _mm256_mul_ps(a, b) }
        }

        #[inline(always)]
        fn add(a: __m256, b: __m256) -> __m256 {
            // SAFETY: AVX is there.
            unsafe { _mm256_add_ps(a, b) }
        }

        #[inline(always)]
        fn sub(a: __m256, b: __m256) -> __m256 {
            // SAFETY: AVX is there.
            unsafe { _mm256_sub_ps(a, b) }
        }

        #[inline(always)]
        fn div(a: __m256, b: __m256) -> __m256 {
            // SAFETY: AVX is there.
            unsafe { _mm256_div_ps(a, b) }
        }

        #[inline(always)]
        fn max(a: __m256, b: __m256) -> __m256 {
            // SAFETY: AVX is there.
            unsafe { _mm256_max_ps(a, b) }
        }

        #[inline(always)]
        fn min(a: __m256, b: __m256) -> __m256 {
            // SAFETY: AVX is there.
            unsafe { _mm256_min_ps(a, b) }
        }

        #[inline(always)]
        fn power_of_two(n: __m256) -> __m256 {
            // SAFETY: AVX2 is there.
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_castps_si256(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            }
        }
    }
}

/// A piece of work over slices that [`dispatch`] runs with the best instructions there are.
///
/// `run` must be `#[inline(always)]`, and so must all that it calls in its hot loops: only
/// what is inlined into the AVX2 function is compiled for AVX2.
pub(crate) trait Kernel {
    type Output;
    fn run<A: Arithmetic>(self) -> Self::Output;
}

/// Runs `kernel` with AVX2 and FMA if this machine has them, else portably.
///
/// The check is an atomic load; still, call this once per block of rows, not once per value.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: both features that the function enables were just detected.
            return unsafe { run_avx2(kernel) };
        }
        kernel.run::<Portable>()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        kernel.run::<Portable>()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

/// A register tile of a matrix product: `ROWS` rows of `VECTORS · WIDTH` sums.
pub(crate) struct Tile<A: Arithmetic, const ROWS: usize, const VECTORS: usize>(
    [[A::Vector; VECTORS]; ROWS],
);

#[allow(
    clippy::needless_range_loop,
    reason = "iterators over vectors might not be inlined, and the tile would go through memory"
)]
impl<A: Arithmetic, const ROWS: usize, const VECTORS: usize> Tile<A, ROWS, VECTORS> {
    #[inline(always)]
    pub fn zero() -> Self {
        Self([[A::splat(0.0); VECTORS]; ROWS])
    }

    /// Adds the outer product of a column of the left matrix and a row of the right one.
    #[inline(always)]
    pub fn add(&mut self, left: [f32; ROWS], right: &[[f32; WIDTH]; VECTORS]) {
        for i in 0..ROWS {
            let left = A::splat(left[i]);
            for v in 0..VECTORS {
                self.0[i][v] = A::mul_add_vector(left, A::load(&right[v]), self.0[i][v]);
            }
        }
    }

    /// The sums of a row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> [[f32; WIDTH]; VECTORS] {
        let mut values = [[0f32; WIDTH]; VECTORS];
        for v in 0..VECTORS {
            A::store(self.0[row][v], &mut values[v]);
        }
        values
    }
}

/// `Σ f(x)`, in `LANES` partial sums so that the additions vectorize.
#[inline(always)]
pub(crate) fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut partial = [0f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (p, x) in partial.iter_mut().zip(chunk) {
            *p += f(*x);
        }
    }
    for (p, x) in partial.iter_mut().zip(rest) {
        *p += f(*x);
    }
    fold(partial, |a, b| a + b)
}

/// Combines the lanes pairwise.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TwiceTheSum<'a>(&'a [f32]);

    impl Kernel for TwiceTheSum<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<A: Arithmetic>(self) -> f32 {
            sum_of(self.0, |x| 2.0 * x)
        }
    }

    #[test]
    fn sums_take_the_values_past_the_last_chunk() {
        for len in [0u16, 1, 15, 16, 17, 100] {
            let values: Vec<f32> = (0..len).map(f32::from).collect();
            let expected = f32::from(len) * (f32::from(len) - 1.0);
            for got in [
                dispatch(TwiceTheSum(&values)),
                TwiceTheSum(&values).run::<Portable>(),
            ] {
                assert!((got - expected.max(0.0)).abs() < 1e-3, "{len}: {got}");
            }
        }
    }
}
