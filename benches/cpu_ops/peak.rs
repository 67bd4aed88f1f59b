//! What a core can do at most, measured: multiply-adds on registers alone.

use std::fmt;

use ferry::ops::Compute;

/// 10⁹ multiplications and additions a second, in each precision; NaN where there is no instruction
/// for it.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    f32: f64,
    bf16: f64,
    int8: f64,
}

impl Peak {
    /// Takes about a second.
    pub fn measure() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            x86::measure()
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let nan = f64::NAN;
            Self {
                f32: nan,
                bf16: nan,
                int8: nan,
            }
        }
    }

    /// In one precision.
    pub fn of(&self, compute: Compute) -> f64 {
        match compute {
            Compute::F32 => self.f32,
            Compute::Bf16 => self.bf16,
            Compute::Int8 => self.int8,
        }
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { f32, bf16, int8 } = self;
        write!(f, "f32 {f32:.0}, bf16 {bf16:.0}, int8 {int8:.0} GOP/s")
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm256_add_ps, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm512_add_epi32, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    };
    use std::hint::black_box;
    use std::time::Instant;

    use super::Peak;

    const STEPS: usize = 100_000;
    const RUNS: usize = 60;

    pub fn measure() -> Peak {
        let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        let f32 = if wide {
            // SAFETY: the feature was just detected; so below.
            speed(24 * 32, || unsafe { f32_wide() })
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            speed(12 * 16, || unsafe { f32_narrow() })
        } else {
            f64::NAN
        };
        let bf16 = if wide && is_x86_feature_detected!("avx512bf16") {
            speed(24 * 64, || unsafe { bf16() })
        } else {
            f64::NAN
        };
        let int8 = if wide && is_x86_feature_detected!("avx512vnni") {
            speed(24 * 128, || unsafe { int8() })
        } else {
            f64::NAN
        };
        Peak { f32, bf16, int8 }
    }

    fn speed(operations_per_step: usize, run: impl Fn()) -> f64 {
        let least = (0..RUNS)
            .map(|_| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min);
        (STEPS * operations_per_step) as f64 / least / 1e9
    }

    #[target_feature(enable = "avx512f")]
    fn f32_wide() {
        let (x, y) = (
            _mm512_set1_ps(black_box(1.0)),
            _mm512_set1_ps(black_box(0.5)),
        );
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, y, *sum);
            }
        }
        let mut total = _mm512_setzero_ps();
        for sum in sums {
            total = _mm512_add_ps(total, sum);
        }
        black_box(total);
    }

    #[target_feature(enable = "avx2,fma")]
    fn f32_narrow() {
        let (x, y) = (
            _mm256_set1_ps(black_box(1.0)),
            _mm256_set1_ps(black_box(0.5)),
        );
        let mut sums = [_mm256_setzero_ps(); 12];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, y, *sum);
            }
        }
        let mut total = _mm256_setzero_ps();
        for sum in sums {
            total = _mm256_add_ps(total, sum);
        }
        black_box(total);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16() {
        let ones = _mm512_set1_epi32(black_box(0x3f80_3f80));
        // SAFETY: both are 512 bits, any of which are values.
        let ones = unsafe { std::mem::transmute::<__m512i, __m512bh>(ones) };
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        let mut total = _mm512_setzero_ps();
        for sum in sums {
            total = _mm512_add_ps(total, sum);
        }
        black_box(total);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn int8() {
        let ones = _mm512_set1_epi32(black_box(0x0101_0101));
        let mut sums = [_mm512_setzero_si512(); 24];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, ones, ones);
            }
        }
        let mut total = _mm512_setzero_si512();
        for sum in sums {
            total = _mm512_add_epi32(total, sum);
        }
        black_box(total);
    }
}
