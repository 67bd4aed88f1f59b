//! Run-time choice of the vector instruction set, and the few vectorized primitives that
//! the CPU kernels share.
//!
//! The build targets baseline x86-64, so a kernel is written once as plain loops over
//! fixed-size arrays, generic over [`Arithmetic`], and compiled twice: as it is, and inlined
//! into a function that may use AVX2 and FMA, where LLVM turns the same loops into 256-bit code.

/// Floats per step of the elementwise loops: two AVX2 registers, so that two independent
/// chains are in flight.
pub(crate) const LANES: usize = 16;

/// How `a·b + c` is computed.
pub(crate) trait Arithmetic: Copy {
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// Multiply, then add: `f32::mul_add` would be a library call on a target without FMA.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Arithmetic for Portable {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// One fused instruction; only for code that runs where the target has it.
#[derive(Clone, Copy)]
pub(crate) struct Fused;

impl Arithmetic for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
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
    #[cfg(target_arch = "aarch64")]
    {
        kernel.run::<Fused>()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        kernel.run::<Portable>()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Fused>()
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
        let e = worst(-87.0..88.0, exp::<Portable>, exp::<Fused>, f64::exp, true);
        assert!(e < 2.5e-7, "relative error {e:e}");
        assert!(exp::<Fused>(f32::NEG_INFINITY) < 2e-38);
        assert!((exp::<Fused>(0.0) - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn tanh_is_within_four_e_minus_seven() {
        let e = worst(
            -20.0..20.0,
            tanh::<Portable>,
            tanh::<Fused>,
            f64::tanh,
            false,
        );
        assert!(e < 4e-7, "absolute error {e:e}");
    }

    #[test]
    fn erf_is_within_five_e_minus_seven() {
        let e = worst(-6.0..6.0, erf::<Portable>, erf::<Fused>, erf_f64, false);
        assert!(e < 5e-7, "absolute error {e:e}");
    }

    #[test]
    fn the_polynomials_carry_nan_through() {
        for f in [exp::<Fused>, tanh::<Fused>, erf::<Fused>] {
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
