//! Pairs of bf16, by `AVX512_BF16`. The type is named by what [`run_with_bf16`] runs alone.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_permutexvar_epi16, _mm512_storeu_si512,
};

use super::super::linear::x86::Bf16Pairs;
use super::super::simd::{Arithmetic, WIDTH};
use super::super::vector_math::rough_exp;
use super::products::Products;

/// A word is two bf16.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

/// Takes the `i`-th of the lower half, then the `i`-th of the upper.
const INTERLEAVE: [u16; 2 * WIDTH] = {
    let mut order = [0; 2 * WIDTH];
    let mut i = 0;
    while i < WIDTH {
        order[2 * i] = i as u16;
        order[2 * i + 1] = (WIDTH + i) as u16;
        i += 1;
    }
    order
};

impl Products for Pairs {
    type Dot = Bf16Pairs;

    const PER_WORD: usize = 2;

    #[inline(always)]
    fn pack(low: &[f32; WIDTH], high: &[f32; WIDTH]) -> [u32; WIDTH] {
        let mut words = [0u32; WIDTH];
        // SAFETY: AVX512_BF16 and AVX512BW are there (see the module); all arrays are as long as a
        // register, and need not be aligned. Any 512 bits are values of both types.
        unsafe {
            let halves = _mm512_cvtne2ps_pbh(
                _mm512_loadu_ps(high.as_ptr()),
                _mm512_loadu_ps(low.as_ptr()),
            );
            let halves = std::mem::transmute::<__m512bh, __m512i>(halves);
            let order = _mm512_loadu_si512(INTERLEAVE.as_ptr().cast());
            let pairs = _mm512_permutexvar_epi16(order, halves);
            _mm512_storeu_si512(words.as_mut_ptr().cast(), pairs);
        }
        words
    }

    #[inline(always)]
    fn exp<A: Arithmetic>(x: A::Vector) -> A::Vector {
        rough_exp::<A>(x)
    }
}
