//! AVX-512 with VNNI: one register for the outputs of a panel, and `vpdpbusd`, which multiplies a
//! group and adds it up in 32 bits. It wants unsigned codes: an 8-bit one is shifted by 128, which
//! the product takes back with the sum of the activations.

use std::arch::x86_64::{
    __m512, __m512i, _mm256_loadu_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_cvtepi8_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_madd_epi16, _mm512_mul_ps, _mm512_mullo_epi32, _mm512_or_si512, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_slli_epi32,
    _mm512_srai_epi32, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_sub_epi32, _mm512_xor_si512,
};

use super::{LANES, Line, Machine, Work};

/// Private to this file so that only [`run`], which has the features, can name the type and
/// thereby reach its methods.
#[derive(Clone, Copy)]
struct Avx512;

pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn run<W: Work>(work: W) {
    work.run::<Avx512>();
}

impl Machine for Avx512 {
    type Codes = __m512i;
    type Partial = __m512i;
    type Pairs = __m512i;
    type Scale = __m512i;
    type Sums = __m512i;
    type Floats = __m512;

    const ROWS: usize = 8;
    const BYTE_OFFSET: i32 = 128;

    #[inline(always)]
    fn room(_bits: u32) -> usize {
        8
    }

    #[inline(always)]
    fn load(line: &Line) -> Self::Codes {
        // SAFETY: AVX-512 is there (see `Avx512`); a line has 64 bytes.
        unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) }
    }

    #[inline(always)]
    fn and(codes: Self::Codes, mask: u8) -> Self::Codes {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_and_si512(codes, _mm512_set1_epi8(mask.cast_signed())) }
    }

    #[inline(always)]
    fn or(a: Self::Codes, b: Self::Codes) -> Self::Codes {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    fn shift_right<const BY: u32>(codes: Self::Codes) -> Self::Codes {
        // SAFETY: AVX-512 BW is there.
        unsafe { _mm512_srli_epi16::<BY>(codes) }
    }

    #[inline(always)]
    fn shift_left<const BY: u32>(codes: Self::Codes) -> Self::Codes {
        // SAFETY: AVX-512 BW is there.
        unsafe { _mm512_slli_epi16::<BY>(codes) }
    }

    #[inline(always)]
    fn no_products() -> Self::Partial {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn add_products(
        partial: Self::Partial,
        codes: Self::Codes,
        x: [i8; 4],
        bits: u32,
    ) -> Self::Partial {
        // SAFETY: AVX-512 with VNNI is there.
        unsafe {
            let codes = if bits == 8 {
                _mm512_xor_si512(codes, _mm512_set1_epi8(i8::MIN))
            } else {
                codes
            };
            let x = _mm512_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned)));
            _mm512_dpbusd_epi32(partial, codes, x)
        }
    }

    #[inline(always)]
    fn widen(sums: Self::Sums, partial: Self::Partial, _bits: u32) -> Self::Sums {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_add_epi32(sums, partial) }
    }

    #[inline(always)]
    fn widen_scaled(sums: Self::Sums, partial: Self::Partial, scale: Self::Scale) -> Self::Sums {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_add_epi32(sums, _mm512_mullo_epi32(partial, scale)) }
    }

    #[inline(always)]
    fn load_pairs(pairs: &[i8; 2 * LANES]) -> Self::Pairs {
        // SAFETY: AVX-512 BW is there; the array has 32 bytes.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(pairs.as_ptr().cast())) }
    }

    #[inline(always)]
    fn scales(pairs: Self::Pairs) -> [Self::Scale; 2] {
        // SAFETY: AVX-512 is there.
        unsafe {
            [
                _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(pairs)),
                _mm512_srai_epi32::<16>(pairs),
            ]
        }
    }

    #[inline(always)]
    fn add_pair_products(sums: Self::Sums, pairs: Self::Pairs, b: [i16; 2]) -> Self::Sums {
        let b = i32::from(b[0].cast_unsigned()) | i32::from(b[1]) << 16;
        // SAFETY: AVX-512 BW is there.
        unsafe { _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi32(b))) }
    }

    #[inline(always)]
    fn splat_sums(value: i32) -> Self::Sums {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn sub_scaled(a: Self::Sums, b: Self::Sums, factor: i32) -> Self::Sums {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_sub_epi32(a, _mm512_mullo_epi32(b, _mm512_set1_epi32(factor))) }
    }

    #[inline(always)]
    fn to_floats(sums: Self::Sums) -> Self::Floats {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::Floats {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load_f32(values: &[f32; LANES]) -> Self::Floats {
        // SAFETY: AVX-512 is there; the array has 16 floats.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(values: &[u16; LANES]) -> Self::Floats {
        // SAFETY: AVX-512 is there; the array has 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(values: &[u16; LANES]) -> Self::Floats {
        // SAFETY: as above.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn store(floats: Self::Floats, values: &mut [f32; LANES]) {
        // SAFETY: AVX-512 is there; the array has 16 floats.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), floats) }
    }

    #[inline(always)]
    fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: AVX-512 is there.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
}
