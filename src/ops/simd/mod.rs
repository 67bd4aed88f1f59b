//! Run-time choice of the vector instruction set, and the few vectorized primitives that
//! the CPU kernels share.
//!
//! The build targets baseline x86-64, so a kernel is written once, generic over [`Arithmetic`],
//! and compiled once per instruction set: portably, and inlined into functions that may use AVX2
//! and FMA, or AVX-512. There LLVM turns sums and the like into vector code by itself. Register
//! tiles and polynomials, which it leaves scalar or spills, are written with
//! [`Arithmetic::Vector`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;
pub(crate) use portable::Portable;

/// Floats per step of the elementwise loops.
pub(crate) const LANES: usize = 16;

/// Floats in an [`Arithmetic::Vector`]: one AVX-512 register, or two of AVX2, so that two
/// independent chains are in flight.
pub(crate) const WIDTH: usize = 16;

/// How `a·b + c` is computed, and on what.
pub(crate) trait Arithmetic: Copy {
    /// [`WIDTH`] floats, in as few registers as the machine needs.
    type Vector: Copy;
    /// Whether there are registers for 24 sums of a tile, and some for its operands; else for 6.
    const MANY_REGISTERS: bool;
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
    /// [`WIDTH`] pairs of bf16: those in the low halves, and those in the high ones.
    fn load_bf16_pairs(pairs: &[u32; WIDTH]) -> [Self::Vector; 2];
}

/// A piece of work over slices that [`dispatch`] runs with the best instructions there are.
///
/// `run` must be `#[inline(always)]`, and so must all that it calls in its hot loops: only
/// what is inlined into the function of an instruction set is compiled for it.
pub(crate) trait Kernel {
    type Output;
    fn run<A: Arithmetic>(self) -> Self::Output;
}

/// Runs `kernel` with AVX-512 if this machine has it, else with AVX2 and FMA, else portably.
///
/// The check is an atomic load; still, call this once per block of rows, not once per value.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    InstructionSet::best().run(kernel)
}

/// Runs `kernel` with AVX-512 and its instructions for pairs of bf16; gives it back where there are
/// none.
#[inline]
pub(crate) fn run_with_bf16<K: Kernel>(kernel: K) -> Result<K::Output, K> {
    #[cfg(target_arch = "x86_64")]
    if bf16_is_there() {
        // SAFETY: all features that the function enables were just detected.
        return Ok(unsafe { run_avx512_bf16(kernel) });
    }
    Err(kernel)
}

/// An [`Arithmetic`] that this machine has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InstructionSet(Set);

#[derive(Debug, Clone, Copy)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl InstructionSet {
    /// The best there is.
    #[inline]
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if avx512_is_there() {
                return Self(Set::Avx512);
            }
            if avx2_is_there() {
                return Self(Set::Avx2);
            }
        }
        Self(Set::Portable)
    }

    /// All there are, the portable one first, for tests to compare.
    #[cfg(test)]
    pub fn all() -> Vec<Self> {
        let mut sets = vec![Self(Set::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if avx2_is_there() {
                sets.push(Self(Set::Avx2));
            }
            if avx512_is_there() {
                sets.push(Self(Set::Avx512));
            }
        }
        sets
    }

    /// Runs `kernel` with it.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Set::Portable => kernel.run::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a value is made of this only where all that the function enables is there.
            Set::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Set::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

/// Asks for the cache line of `value` to be in L2 soon; where there is no instruction for it, does
/// nothing.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch of any address does nothing but fetch.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Whether there are AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn avx2_is_there() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Whether there is what every AVX-512 machine for servers has had from the first on.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn avx512_is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && avx2_is_there()
}

/// Whether there is an instruction for pairs of bf16.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn bf16_is_there() -> bool {
    is_x86_feature_detected!("avx512bf16") && avx512_is_there()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
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
