//! `exp`, `tanh` and `erf` on vectors: a polynomial or two each, without branches or tables.
//!
//! Coefficients are those of Cephes (`exp`) and Eigen (`tanh`, `erf`). The error bounds in the docs
//! hold with and without FMA and are tested against f64.

use super::simd::{Arithmetic, WIDTH};

/// A function of a vector, value by value.
///
/// A trait and not a closure, because a closure that takes a vector might not be inlined into the
/// code that has the registers for it.
pub(crate) trait Map {
    fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector;
}

/// Applies a function to every value in place; a short last chunk is padded with zeros.
#[inline(always)]
pub(crate) fn map_in_place<A: Arithmetic, M: Map>(values: &mut [f32]) {
    let (chunks, rest) = values.as_chunks_mut::<WIDTH>();
    for chunk in chunks {
        A::store(M::apply::<A>(A::load(chunk)), chunk);
    }
    if !rest.is_empty() {
        let mut padded = [0f32; WIDTH];
        padded[..rest.len()].copy_from_slice(rest);
        A::store(M::apply::<A>(A::load(&padded)), &mut padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// `e^x` to about 2 ulp for `x ≤ 88`; below −87.3 it is a tiny positive number, not zero.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`; `e^r` by the degree-6 polynomial of Cephes `expf`;
/// `2^n` is put together in the exponent bits.
#[inline(always)]
pub(crate) fn exp<A: Arithmetic>(x: A::Vector) -> A::Vector {
    // Adding 1.5·2²³ rounds to the nearest integer, which is then in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has few bits, so that n times it is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = clamp::<A>(x, -87.3, 88.0);
    let shifted = A::mul_add_vector(x, A::splat(std::f32::consts::LOG2_E), A::splat(ROUND));
    let n = A::sub(shifted, A::splat(ROUND));
    let r = A::mul_add_vector(n, A::splat(-LN2_HIGH), x);
    let r = A::mul_add_vector(n, A::splat(-LN2_LOW), r);
    let p = polynomial::<A, 6>(
        r,
        [
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ],
    );
    // 2^n · (1 + r + r²·p)
    let power = A::power_of_two(shifted);
    let p = A::mul_add_vector(p, A::mul(r, r), r);
    A::mul_add_vector(p, power, power)
}

/// `e^x` to 8e-5 of it for `x ≤ 0`, for what is kept in bf16, whose digits end at 4e-3; below −87 it is
/// a tiny positive number.
///
/// `2^n · 2^f` with `n` the integer nearest to `x·log₂ e`; `2^f` by the minimax polynomial of degree 3.
#[inline(always)]
pub(crate) fn rough_exp<A: Arithmetic>(x: A::Vector) -> A::Vector {
    const ROUND: f32 = 12_582_912.0;
    let x = A::max(A::splat(-87.3), x);
    let log2_e = A::splat(std::f32::consts::LOG2_E);
    let shifted = A::mul_add_vector(x, log2_e, A::splat(ROUND));
    let n = A::sub(A::splat(ROUND), shifted);
    let f = A::mul_add_vector(x, log2_e, n);
    let p = polynomial::<A, 4>(f, [0.055_171_67, 0.242_611_14, 0.693_261, 0.999_928_06]);
    A::mul(p, A::power_of_two(shifted))
}

/// `tanh x` to 4e-7 absolute: the odd-over-even rational of Eigen's `ptanh`, which reaches ±1
/// at the clamp.
#[inline(always)]
pub(crate) fn tanh<A: Arithmetic>(x: A::Vector) -> A::Vector {
    let x = clamp::<A>(x, -7.905_311, 7.905_311);
    let s = A::mul(x, x);
    let p = polynomial::<A, 7>(
        s,
        [
            -2.760_768_5e-16,
            2.000_188e-13,
            -8.604_672e-11,
            5.122_297e-8,
            1.485_722_4e-5,
            6.372_619e-4,
            4.893_524_6e-3,
        ],
    );
    let q = polynomial::<A, 4>(
        s,
        [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3],
    );
    A::div(A::mul(x, p), q)
}

/// `erf x` to 5e-7 absolute: the odd-over-even rational of Eigen's `perf`, clamped to ±4, beyond
/// which `erf` is ±1 in f32.
#[inline(always)]
pub(crate) fn erf<A: Arithmetic>(x: A::Vector) -> A::Vector {
    let x = clamp::<A>(x, -4.0, 4.0);
    let s = A::mul(x, x);
    let p = polynomial::<A, 7>(
        s,
        [
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906_3e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let q = polynomial::<A, 5>(
        s,
        [
            -1.456_607_2e-5,
            -2.133_740_6e-4,
            -1.682_827e-3,
            -7.373_329e-3,
            -1.426_473_9e-2,
        ],
    );
    A::div(A::mul(x, p), q)
}

/// Bounds `x`; NaN stays NaN.
#[inline(always)]
fn clamp<A: Arithmetic>(x: A::Vector, low: f32, high: f32) -> A::Vector {
    A::min(A::splat(high), A::max(A::splat(low), x))
}

/// Horner's scheme; the coefficient of the highest power comes first.
#[inline(always)]
fn polynomial<A: Arithmetic, const N: usize>(x: A::Vector, coefficients: [f32; N]) -> A::Vector {
    let mut sum = A::splat(coefficients[0]);
    for coefficient in &coefficients[1..] {
        sum = A::mul_add_vector(sum, x, A::splat(*coefficient));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Kernel, Portable, dispatch};
    use super::super::testing::{erf_f64, max_error};
    use super::*;

    struct Mapped<'a, M>(&'a mut [f32], std::marker::PhantomData<M>);

    impl<M: Map> Kernel for Mapped<'_, M> {
        type Output = ();

        #[inline(always)]
        fn run<A: Arithmetic>(self) {
            map_in_place::<A, M>(self.0);
        }
    }

    /// The function's values by both instruction sets, for `inputs`.
    fn both<M: Map>(inputs: &[f32]) -> [Vec<f32>; 2] {
        let mut outputs = [inputs.to_vec(), inputs.to_vec()];
        Mapped::<M>(&mut outputs[0], std::marker::PhantomData).run::<Portable>();
        dispatch(Mapped::<M>(&mut outputs[1], std::marker::PhantomData));
        outputs
    }

    /// Evenly spaced values from `−range` to `range`.
    fn grid(range: f32) -> Vec<f32> {
        const STEPS: i32 = 200_000;
        (-STEPS..=STEPS)
            .map(|i| range * (i as f32 / STEPS as f32))
            .collect()
    }

    struct Exp;
    impl Map for Exp {
        #[inline(always)]
        fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector {
            exp::<A>(x)
        }
    }

    struct Tanh;
    impl Map for Tanh {
        #[inline(always)]
        fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector {
            tanh::<A>(x)
        }
    }

    struct Erf;
    impl Map for Erf {
        #[inline(always)]
        fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector {
            erf::<A>(x)
        }
    }

    struct RoughExp;
    impl Map for RoughExp {
        #[inline(always)]
        fn apply<A: Arithmetic>(x: A::Vector) -> A::Vector {
            rough_exp::<A>(x)
        }
    }

    #[test]
    fn the_rough_exp_is_within_a_fiftieth_of_what_bf16_keeps() {
        let inputs: Vec<f32> = grid(87.0).into_iter().filter(|x| *x <= 0.0).collect();
        for outputs in both::<RoughExp>(&inputs) {
            for (x, y) in inputs.iter().zip(&outputs) {
                let expected = f64::from(*x).exp();
                let error = (f64::from(*y) - expected).abs() / expected;
                assert!(error < 8e-5, "{x}: {error:e}");
            }
        }
        for outputs in both::<RoughExp>(&[f32::NEG_INFINITY, -1e30, f32::NAN]) {
            assert!(outputs[..2].iter().all(|y| (0.0..2e-38).contains(y)));
            assert!(outputs[2].is_nan());
        }
    }

    #[test]
    fn exp_is_within_two_ulp_of_f64() {
        let inputs = grid(87.0);
        for outputs in both::<Exp>(&inputs) {
            for (x, y) in inputs.iter().zip(outputs) {
                let error = f64::from(y) / f64::from(*x).exp() - 1.0;
                assert!(error.abs() < 2.5e-7, "exp {x}: {error:e}");
            }
        }
        for outputs in both::<Exp>(&[f32::NEG_INFINITY, 0.0]) {
            assert!(outputs[0] < 2e-38);
            assert!((outputs[1] - 1.0).abs() < f32::EPSILON);
        }
    }

    #[test]
    fn tanh_is_within_four_e_minus_seven() {
        let inputs = grid(20.0);
        let expected: Vec<f64> = inputs.iter().map(|x| f64::from(*x).tanh()).collect();
        for outputs in both::<Tanh>(&inputs) {
            let error = max_error(&outputs, &expected);
            assert!(error < 4e-7, "{error:e}");
        }
    }

    #[test]
    fn erf_is_within_five_e_minus_seven() {
        let inputs = grid(6.0);
        let expected: Vec<f64> = inputs.iter().map(|x| erf_f64(f64::from(*x))).collect();
        for outputs in both::<Erf>(&inputs) {
            let error = max_error(&outputs, &expected);
            assert!(error < 5e-7, "{error:e}");
        }
    }

    #[test]
    fn the_polynomials_carry_nan_through() {
        let nan = [f32::NAN];
        for outputs in [both::<Exp>(&nan), both::<Tanh>(&nan), both::<Erf>(&nan)] {
            assert!(outputs.iter().all(|output| output[0].is_nan()));
        }
    }
}
