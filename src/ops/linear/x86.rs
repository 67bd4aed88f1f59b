//! The inner steps for which x86-64 has instructions: pairs of bf16 (`AVX512_BF16`), bytes (AVX2, and
//! `AVX512_VNNI`). The types are named by functions that enable those features alone.

use std::arch::x86_64::{
    __m256i, __m512, __m512bh, __m512i, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_slli_epi16, _mm256_srai_epi16, _mm256_srli_epi16, _mm256_storeu_si256, _mm512_dpbf16_ps,
    _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_ps, _mm512_storeu_si512,
};

use super::super::simd::{WIDTH, avx2_is_there, avx512_is_there, bf16_is_there};
use super::dot::Dot;
use super::product::Work;

/// `VDPBF16PS`: two products and their sum a lane, each rounded to f32.
#[derive(Clone, Copy)]
pub(crate) struct Bf16Pairs;

impl Bf16Pairs {
    #[inline(always)]
    fn of(bits: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits, any of which are values.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
    }
}

impl Dot for Bf16Pairs {
    type Weights = __m512i;
    type Sums = __m512;

    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn zero() -> __m512 {
        // SAFETY: AVX-512 is there (see the module).
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn load(words: &[u32; WIDTH]) -> __m512i {
        // SAFETY: AVX-512 is there; the array is as long as the register, and need not be aligned.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add(sums: __m512, x: u32, weights: __m512i) -> __m512 {
        // SAFETY: `AVX512_BF16` is there.
        unsafe {
            let x = _mm512_set1_epi32(x.cast_signed());
            _mm512_dpbf16_ps(sums, Self::of(x), Self::of(weights))
        }
    }

    #[inline(always)]
    fn store(sums: __m512) -> [u32; WIDTH] {
        let mut bits = [0u32; WIDTH];
        // SAFETY: as for `load`.
        unsafe { _mm512_storeu_ps(bits.as_mut_ptr().cast(), sums) };
        bits
    }
}

/// `VPDPBUSD`: four products and their sum a lane.
#[derive(Clone, Copy)]
struct VnniBytes;

impl Dot for VnniBytes {
    type Weights = __m512i;
    type Sums = __m512i;

    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn zero() -> __m512i {
        // SAFETY: AVX-512 is there (see the module).
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn load(words: &[u32; WIDTH]) -> __m512i {
        // SAFETY: AVX-512 is there; the array is as long as the register, and need not be aligned.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add(sums: __m512i, x: u32, weights: __m512i) -> __m512i {
        // SAFETY: AVX512_VNNI is there.
        unsafe { _mm512_dpbusd_epi32(sums, _mm512_set1_epi32(x.cast_signed()), weights) }
    }

    #[inline(always)]
    fn store(sums: __m512i) -> [u32; WIDTH] {
        let mut bits = [0u32; WIDTH];
        // SAFETY: as for `load`.
        unsafe { _mm512_storeu_si512(bits.as_mut_ptr().cast(), sums) };
        bits
    }
}

/// Bytes widened to 16 bits, the even and the odd ones apart: `VPMADDUBSW` would saturate.
#[derive(Clone, Copy)]
struct Avx2Bytes;

impl Dot for Avx2Bytes {
    /// The even bytes of 8 outputs, then the odd ones; the same of the other 8.
    type Weights = [__m256i; 4];
    type Sums = [__m256i; 2];

    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn zero() -> [__m256i; 2] {
        // SAFETY: AVX is there (see the module).
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn load(words: &[u32; WIDTH]) -> [__m256i; 4] {
        let start = words.as_ptr();
        // SAFETY: AVX2 is there; the array is as long as two registers, and need not be aligned.
        unsafe {
            let low = _mm256_loadu_si256(start.cast());
            let high = _mm256_loadu_si256(start.add(8).cast());
            [
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(low)),
                _mm256_srai_epi16::<8>(low),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(high)),
                _mm256_srai_epi16::<8>(high),
            ]
        }
    }

    #[inline(always)]
    fn add(sums: [__m256i; 2], x: u32, weights: [__m256i; 4]) -> [__m256i; 2] {
        // SAFETY: AVX2 is there.
        unsafe {
            let x = _mm256_set1_epi32(x.cast_signed());
            let even = _mm256_and_si256(x, _mm256_set1_epi16(0xff));
            let odd = _mm256_srli_epi16::<8>(x);
            let products = |even_weights, odd_weights| {
                _mm256_add_epi32(
                    _mm256_madd_epi16(even, even_weights),
                    _mm256_madd_epi16(odd, odd_weights),
                )
            };
            [
                _mm256_add_epi32(sums[0], products(weights[0], weights[1])),
                _mm256_add_epi32(sums[1], products(weights[2], weights[3])),
            ]
        }
    }

    #[inline(always)]
    fn store(sums: [__m256i; 2]) -> [u32; WIDTH] {
        let mut bits = [0u32; WIDTH];
        let start = bits.as_mut_ptr();
        // SAFETY: as for `load`.
        unsafe {
            _mm256_storeu_si256(start.cast(), sums[0]);
            _mm256_storeu_si256(start.add(8).cast(), sums[1]);
        }
        bits
    }
}

/// Whether there is an instruction for groups of four bytes.
#[inline]
pub(super) fn vnni_is_there() -> bool {
    is_x86_feature_detected!("avx512vnni") && avx512_is_there()
}

/// Runs a product in bf16, if the machine has an instruction for it.
pub(super) fn run_bf16(work: &mut Work<'_>) -> bool {
    if !bf16_is_there() {
        return false;
    }
    // SAFETY: all features that the function enables were just detected.
    unsafe { bf16(work) };
    true
}

/// Runs a product in bytes, if the machine has instructions for it.
pub(super) fn run_bytes(work: &mut Work<'_>) -> bool {
    if vnni_is_there() {
        // SAFETY: all features that the function enables were just detected.
        unsafe { vnni(work) };
        return true;
    }
    run_avx2_bytes(work)
}

/// As [`run_bytes`], with AVX2.
pub(super) fn run_avx2_bytes(work: &mut Work<'_>) -> bool {
    if !avx2_is_there() {
        return false;
    }
    // SAFETY: all features that the function enables were just detected.
    unsafe { avx2(work) };
    true
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn bf16(work: &mut Work<'_>) {
    work.run::<Bf16Pairs>();
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn vnni(work: &mut Work<'_>) {
    work.run::<VnniBytes>();
}

#[target_feature(enable = "avx2,fma")]
fn avx2(work: &mut Work<'_>) {
    work.run::<Avx2Bytes>();
}
