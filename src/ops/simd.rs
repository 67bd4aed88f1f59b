//! Run-time choice of the vector instruction set, and the few vectorized primitives that
//! the CPU kernels share.
//!
//! The build targets baseline x86-64, so a kernel is written once, generic over [`Arithmetic`],
//! and compiled twice: portably, and inlined into a function that may use AVX2 and FMA. There LLVM
//! turns plain elementwise loops into 256-bit code by itself. Register tiles, which it would
//! spill, are written with [`Arithmetic::Vector`].

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
}

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;

/// AVX2 and FMA. Private to this file so that only [`run_avx2`], which has both features, can
/// name the type and thereby reach its methods.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Arithmetic, WIDTH};
    use std::arch::x86_64::{
        __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
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

impl<A: Arithmetic, const ROWS: usize, const VECTORS: usize> Tile<A, ROWS, VECTORS> {
    #[inline(always)]
    pub fn zero() -> Self {
        Self([[A::splat(0.0); VECTORS]; ROWS])
    }

    /// Adds the outer product of a column of the left matrix and a row of the right one.
    #[inline(always)]
    pub fn add(&mut self, left: [f32; ROWS], right: &[[f32; WIDTH]; VECTORS]) {
        let right: [A::Vector; VECTORS] = std::array::from_fn(|v| A::load(&right[v]));
        for (sums, left) in self.0.iter_mut().zip(left) {
            let left = A::splat(left);
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = A::mul_add_vector(left, right, *sum);
            }
        }
    }

    /// The sums of a row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> [[f32; WIDTH]; VECTORS] {
        let mut values = [[0f32; WIDTH]; VECTORS];
        for (values, sum) in values.iter_mut().zip(self.0[row]) {
            A::store(sum, values);
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

/// Applies `f` to every value in place; a short last chunk is padded, so that `f` is only ever
/// compiled as vector code.
#[inline(always)]
pub(crate) fn map_in_place(values: &mut [f32], f: impl Fn(f32) -> f32) {
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for x in chunk {
            *x = f(*x);
        }
    }
    if !rest.is_empty() {
        let mut padded = [0f32; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        for x in &mut padded {
            *x = f(*x);
        }
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// `e^x` to about 2 ulp for `x ≤ 88`; below −87.3 it is a tiny positive number, not zero.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; `e^r` by the degree-6 polynomial of Cephes `expf`;
/// `2^n` is put together in the exponent bits. No branch and no table, so loops over it
/// vectorize.
#[inline(always)]
pub(crate) fn exp<A: Arithmetic>(x: f32) -> f32 {
    // Adding 1.5·2²³ rounds to the nearest integer, which is then in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has few bits, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.0);
    let shifted = A::mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = A::mul_add(n, -LN2_HIGH, x);
    let r = A::mul_add(n, -LN2_LOW, r);
    let mut p = 1.987_569_1e-4;
    p = A::mul_add(p, r, 1.398_199_9e-3);
    p = A::mul_add(p, r, 8.333_452e-3);
    p = A::mul_add(p, r, 4.166_579_6e-2);
    p = A::mul_add(p, r, 1.666_666_5e-1);
    p = A::mul_add(p, r, 0.5);
    p = A::mul_add(p, r * r, r) + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    p * power
}

/// `tanh x` to 4e-7 absolute: the odd-over-even rational of Eigen's `ptanh`, which reaches ±1
/// at the clamp.
#[inline(always)]
pub(crate) fn tanh<A: Arithmetic>(x: f32) -> f32 {
    let x = x.clamp(-7.905_311, 7.905_311);
    let s = x * x;
    let mut p = -2.760_768_5e-16;
    p = A::mul_add(p, s, 2.000_188e-13);
    p = A::mul_add(p, s, -8.604_672e-11);
    p = A::mul_add(p, s, 5.122_297e-8);
    p = A::mul_add(p, s, 1.485_722_4e-5);
    p = A::mul_add(p, s, 6.372_619e-4);
    p = A::mul_add(p, s, 4.893_524_6e-3);
    let mut q = 1.198_258_4e-6;
    q = A::mul_add(q, s, 1.185_347_1e-4);
    q = A::mul_add(q, s, 2.268_434_6e-3);
    q = A::mul_add(q, s, 4.893_525e-3);
    x * p / q
}

/// `erf x` to 5e-7 absolute: the odd-over-even rational of Eigen's `perf`, clamped to ±4, beyond
/// which `erf` is ±1 in f32.
#[inline(always)]
pub(crate) fn erf<A: Arithmetic>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let mut p = -2.726_142_3e-10;
    p = A::mul_add(p, s, 2.770_681_4e-8);
    p = A::mul_add(p, s, -2.101_024e-6);
    p = A::mul_add(p, s, -5.692_506_4e-5);
    p = A::mul_add(p, s, -7.349_906_3e-4);
    p = A::mul_add(p, s, -2.954_599_8e-3);
    p = A::mul_add(p, s, -1.609_603_3e-2);
    let mut q = -1.456_607_2e-5;
    q = A::mul_add(q, s, -2.133_740_6e-4);
    q = A::mul_add(q, s, -1.682_827e-3);
    q = A::mul_add(q, s, -7.373_329e-3);
    q = A::mul_add(q, s, -1.426_473_9e-2);
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::super::testing::erf_f64;
    use super::*;

    /// Only for the scalar functions: outside of [`run_avx2`] there are no vectors.
    #[cfg(target_arch = "x86_64")]
    use Avx2 as Best;
    #[cfg(not(target_arch = "x86_64"))]
    use Portable as Best;

    struct TwiceTheSum<'a>(&'a [f32]);

    impl Kernel for TwiceTheSum<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<A: Arithmetic>(self) -> f32 {
            sum_of(self.0, |x| 2.0 * x)
        }
    }

    /// Largest `|f(x) − reference(x)| / scale(reference)` over a grid, both code paths.
    fn worst(
        range: std::ops::Range<f32>,
        portable: fn(f32) -> f32,
        fused: fn(f32) -> f32,
        reference: fn(f64) -> f64,
        relative: bool,
    ) -> f64 {
        let steps = 400_001;
        (0..steps)
            .map(|i| range.start + (range.end - range.start) * (i as f32 / (steps - 1) as f32))
            .flat_map(|x| [(x, portable(x)), (x, fused(x))])
            .map(|(x, y)| {
                let expected = reference(f64::from(x));
                let error = (f64::from(y) - expected).abs();
                if relative { error / expected } else { error }
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_within_two_ulp_of_f64() {
        let e = worst(-87.0..88.0, exp::<Portable>, exp::<Best>, f64::exp, true);
        assert!(e < 2.5e-7, "relative error {e:e}");
        assert!(exp::<Best>(f32::NEG_INFINITY) < 2e-38);
        assert!((exp::<Best>(0.0) - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn tanh_is_within_four_e_minus_seven() {
        let e = worst(
            -20.0..20.0,
            tanh::<Portable>,
            tanh::<Best>,
            f64::tanh,
            false,
        );
        assert!(e < 4e-7, "absolute error {e:e}");
    }

    #[test]
    fn erf_is_within_five_e_minus_seven() {
        let e = worst(-6.0..6.0, erf::<Portable>, erf::<Best>, erf_f64, false);
        assert!(e < 5e-7, "absolute error {e:e}");
    }

    #[test]
    fn the_polynomials_carry_nan_through() {
        for f in [exp::<Best>, tanh::<Best>, erf::<Best>] {
            assert!(f(f32::NAN).is_nan());
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
