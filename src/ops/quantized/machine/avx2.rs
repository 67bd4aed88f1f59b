//! AVX2, FMA and F16C: two registers for the outputs of a panel.
//!
//! `vpmaddubsw` adds two products of an unsigned and a signed byte in 16 bits. The codes are
//! narrow enough to sum several groups there before widening (4 bits: 2·15·127 = 3 810 a group,
//! eight groups fit); a signed 8-bit code gives its sign to the activation first, and its sums
//! are widened at once. No sum saturates, as an activation is within ±127.

use std::arch::x86_64::{
    __m256, __m256i, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_and_si256, _mm256_castsi256_ps, _mm256_cvtepi8_epi16,
    _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps,
    _mm256_mullo_epi32, _mm256_or_si256, _mm256_set_epi8, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_sign_epi8,
    _mm256_sll_epi16, _mm256_sll_epi32, _mm256_srl_epi16, _mm256_storeu_ps, _mm256_sub_epi32,
};

use super::{LANES, Line, Machine, Work};

/// Private to this file so that only [`run`], which has the features, can name the type and
/// thereby reach its methods.
#[derive(Clone, Copy)]
struct Avx2;

pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<W: Work>(work: W) {
    work.run::<Avx2>();
}

impl Machine for Avx2 {
    type Codes = [__m256i; 2];
    type Partial = [__m256i; 2];
    type Pairs = [__m256i; 2];
    type Scale = [__m256i; 2];
    type Sums = [__m256i; 2];
    type Floats = [__m256; 2];

    const ROWS: usize = 4;
    const BYTE_OFFSET: i32 = 0;

    #[inline(always)]
    fn room(bits: u32) -> usize {
        match bits {
            5 => 4,
            6 => 2,
            // 8-bit codes are widened as they come.
            _ => 8,
        }
    }

    #[inline(always)]
    fn load(line: &Line) -> Self::Codes {
        let bytes = line.0.as_ptr();
        // SAFETY: AVX is there (see `Avx2`); a line has 64 bytes, and need not be aligned.
        unsafe {
            [
                _mm256_loadu_si256(bytes.cast()),
                _mm256_loadu_si256(bytes.add(32).cast()),
            ]
        }
    }

    #[inline(always)]
    fn and(codes: Self::Codes, mask: u8) -> Self::Codes {
        // SAFETY: AVX2 is there.
        unsafe {
            let mask = _mm256_set1_epi8(mask.cast_signed());
            [
                _mm256_and_si256(codes[0], mask),
                _mm256_and_si256(codes[1], mask),
            ]
        }
    }

    #[inline(always)]
    fn or(a: Self::Codes, b: Self::Codes) -> Self::Codes {
        // SAFETY: AVX2 is there.
        unsafe { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
    }

    #[inline(always)]
    fn shift_right<const BY: u32>(codes: Self::Codes) -> Self::Codes {
        // SAFETY: AVX2 is there.
        unsafe {
            // A constant: this is the shift by an immediate.
            let by = _mm_cvtsi32_si128(BY.cast_signed());
            [
                _mm256_srl_epi16(codes[0], by),
                _mm256_srl_epi16(codes[1], by),
            ]
        }
    }

    #[inline(always)]
    fn shift_left<const BY: u32>(codes: Self::Codes) -> Self::Codes {
        // SAFETY: AVX2 is there.
        unsafe {
            let by = _mm_cvtsi32_si128(BY.cast_signed());
            [
                _mm256_sll_epi16(codes[0], by),
                _mm256_sll_epi16(codes[1], by),
            ]
        }
    }

    #[inline(always)]
    fn no_products() -> Self::Partial {
        // SAFETY: AVX is there.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn add_products(
        partial: Self::Partial,
        codes: Self::Codes,
        x: [i8; 4],
        bits: u32,
    ) -> Self::Partial {
        // SAFETY: AVX2 is there.
        unsafe {
            let x = _mm256_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned)));
            if bits == 8 {
                let ones = _mm256_set1_epi16(1);
                let mut sums = partial;
                for (sum, codes) in sums.iter_mut().zip(codes) {
                    let x = _mm256_sign_epi8(x, codes);
                    let products = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), x);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, ones));
                }
                sums
            } else {
                [
                    _mm256_add_epi16(partial[0], _mm256_maddubs_epi16(codes[0], x)),
                    _mm256_add_epi16(partial[1], _mm256_maddubs_epi16(codes[1], x)),
                ]
            }
        }
    }

    #[inline(always)]
    fn widen(sums: Self::Sums, partial: Self::Partial, bits: u32) -> Self::Sums {
        // SAFETY: AVX2 is there.
        unsafe {
            if bits == 8 {
                [
                    _mm256_add_epi32(sums[0], partial[0]),
                    _mm256_add_epi32(sums[1], partial[1]),
                ]
            } else {
                Self::widen_scaled(sums, partial, [_mm256_set1_epi16(1); 2])
            }
        }
    }

    #[inline(always)]
    fn widen_scaled(sums: Self::Sums, partial: Self::Partial, scale: Self::Scale) -> Self::Sums {
        // SAFETY: AVX2 is there.
        unsafe {
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(partial[0], scale[0])),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(partial[1], scale[1])),
            ]
        }
    }

    #[inline(always)]
    fn load_pairs(pairs: &[i8; 2 * LANES]) -> Self::Pairs {
        let bytes = pairs.as_ptr();
        // SAFETY: AVX2 is there; the array has 32 bytes.
        unsafe {
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes.cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes.add(16).cast())),
            ]
        }
    }

    /// The scale in both halves of the lane, for `vpmaddwd`.
    #[inline(always)]
    fn scales(pairs: Self::Pairs) -> [Self::Scale; 2] {
        // SAFETY: AVX2 is there.
        unsafe {
            let first = _mm256_set_epi8(
                13, 12, 13, 12, 9, 8, 9, 8, 5, 4, 5, 4, 1, 0, 1, 0, //
                13, 12, 13, 12, 9, 8, 9, 8, 5, 4, 5, 4, 1, 0, 1, 0,
            );
            let second = _mm256_or_si256(first, _mm256_set1_epi8(2));
            [first, second].map(|order| {
                [
                    _mm256_shuffle_epi8(pairs[0], order),
                    _mm256_shuffle_epi8(pairs[1], order),
                ]
            })
        }
    }

    #[inline(always)]
    fn add_pair_products(sums: Self::Sums, pairs: Self::Pairs, b: [i16; 2]) -> Self::Sums {
        let b = i32::from(b[0].cast_unsigned()) | i32::from(b[1]) << 16;
        // SAFETY: AVX2 is there.
        unsafe {
            let b = _mm256_set1_epi32(b);
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(pairs[0], b)),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(pairs[1], b)),
            ]
        }
    }

    #[inline(always)]
    fn splat_sums(value: i32) -> Self::Sums {
        // SAFETY: AVX is there.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    fn sub_scaled(a: Self::Sums, b: Self::Sums, factor: i32) -> Self::Sums {
        // SAFETY: AVX2 is there.
        unsafe {
            let factor = _mm256_set1_epi32(factor);
            [
                _mm256_sub_epi32(a[0], _mm256_mullo_epi32(b[0], factor)),
                _mm256_sub_epi32(a[1], _mm256_mullo_epi32(b[1], factor)),
            ]
        }
    }

    #[inline(always)]
    fn to_floats(sums: Self::Sums) -> Self::Floats {
        // SAFETY: AVX is there.
        unsafe { [_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])] }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::Floats {
        // SAFETY: AVX is there.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load_f32(values: &[f32; LANES]) -> Self::Floats {
        let values = values.as_ptr();
        // SAFETY: AVX is there; the array has 16 floats.
        unsafe { [_mm256_loadu_ps(values), _mm256_loadu_ps(values.add(8))] }
    }

    #[inline(always)]
    fn load_f16(values: &[u16; LANES]) -> Self::Floats {
        let bits = values.as_ptr();
        // SAFETY: F16C is there; the array has 32 bytes.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(bits.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(bits.add(8).cast())),
            ]
        }
    }

    #[inline(always)]
    fn load_bf16(values: &[u16; LANES]) -> Self::Floats {
        let bits = values.as_ptr();
        // SAFETY: AVX2 is there; the array has 32 bytes.
        unsafe {
            let sixteen = _mm_cvtsi32_si128(16);
            [bits, bits.add(8)].map(|bits| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(bits.cast()));
                _mm256_castsi256_ps(_mm256_sll_epi32(wide, sixteen))
            })
        }
    }

    #[inline(always)]
    fn store(floats: Self::Floats, values: &mut [f32; LANES]) {
        let values = values.as_mut_ptr();
        // SAFETY: AVX is there; the array has 16 floats.
        unsafe {
            _mm256_storeu_ps(values, floats[0]);
            _mm256_storeu_ps(values.add(8), floats[1]);
        }
    }

    #[inline(always)]
    fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: AVX is there.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: FMA is there.
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    fn mul_sub(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // SAFETY: FMA is there.
        unsafe {
            [
                _mm256_fnmadd_ps(a[0], b[0], c[0]),
                _mm256_fnmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }
}
