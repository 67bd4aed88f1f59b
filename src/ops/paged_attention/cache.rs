//! The paged cache of one layer: fixed-size blocks of keys and values, which sequences own one by
//! one and not as a whole range (Kwon et al. 2023, arXiv:2309.06180).
//!
//! ```text
//! keys    [blocks, kv_heads, head_dim, block_size]   dimension by dimension
//! values  [blocks, kv_heads, block_size, head_dim]   token by token
//! ```
//! (On a device, `keys` is `[blocks, kv_heads, head_dim / 8, block_size, 8]`: `kernels/rope.cu`.)
//!
//! Both are read along their last axis. For the scores that is the tokens: one dimension of a
//! query is multiplied with as many keys as a register holds, and nothing is added up across the
//! lanes. For the sums over values it is the dimensions, for the same reason.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor, WithDType, bail};
use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;

/// Size of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheGeometry {
    /// Blocks that all sequences share.
    pub blocks: usize,
    /// Tokens per block. A multiple of 8 is fast.
    pub block_size: usize,
    /// Heads of K and of V.
    pub kv_heads: usize,
    /// Dimensions of a head. A multiple of 16 is fast.
    pub head_dim: usize,
}

impl CacheGeometry {
    /// The shape of the keys: those of a device are in parts of 8 dimensions, each token by token.
    pub(super) fn keys(&self, device: &Device) -> Vec<usize> {
        let Self {
            blocks,
            block_size,
            kv_heads,
            head_dim,
        } = *self;
        if device.is_cpu() {
            vec![blocks, kv_heads, head_dim, block_size]
        } else {
            vec![blocks, kv_heads, head_dim / 8, block_size, 8]
        }
    }

    /// Bytes that one block takes in one layer, keys and values together.
    pub fn bytes_per_block(&self, cache_type: CacheType) -> usize {
        2 * self.kv_heads * self.block_size * self.head_dim * cache_type.dtype().size_in_bytes()
    }
}

/// How the numbers of a cache are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// As computed.
    F32,
    /// Rounded to half precision; what lies beyond ±65504 is stored as that.
    #[default]
    F16,
}

impl CacheType {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }
}

/// Keys and values of one layer. A clone is the same cache, not a copy.
#[derive(Debug, Clone)]
pub struct LayerCache {
    /// `[blocks, kv_heads, head_dim, block_size]` on the CPU, f32 or f16.
    pub keys: Tensor,
    /// `[blocks, kv_heads, block_size, head_dim]`, of the same type.
    pub values: Tensor,
}

impl LayerCache {
    /// An empty cache.
    ///
    /// # Errors
    /// If the device has no room for it.
    pub fn new(geometry: &CacheGeometry, cache_type: CacheType, device: &Device) -> Result<Self> {
        let CacheGeometry {
            blocks,
            block_size,
            kv_heads,
            head_dim,
        } = *geometry;
        Ok(Self {
            keys: zeros(&geometry.keys(device), cache_type, device)?,
            values: zeros(
                &[blocks, kv_heads, block_size, head_dim],
                cache_type,
                device,
            )?,
        })
    }
}

/// A tensor of zeros. On the CPU the memory comes from the system as zeros, so that a cache takes
/// only as much of it as was ever written to; `f16` itself would be written out, value by value.
fn zeros(shape: &[usize], cache_type: CacheType, device: &Device) -> Result<Tensor> {
    if !device.is_cpu() {
        return Tensor::zeros(shape, cache_type.dtype(), device);
    }
    let count = shape.iter().product();
    match cache_type {
        CacheType::F32 => Tensor::from_vec(vec![0_f32; count], shape, device),
        CacheType::F16 => {
            let values: Vec<f16> = vec![0_u16; count].reinterpret_into();
            Tensor::from_vec(values, shape, device)
        }
    }
}

/// A number as the cache stores it.
pub(super) trait CacheValue: WithDType + Default {
    /// The values of a whole cache tensor, to be written to.
    fn values_mut(storage: &mut CpuStorage) -> Result<&mut [Self]>;

    /// Stores `values` as this type. Both are equally long.
    fn narrow(values: &[f32], narrowed: &mut [Self]);

    /// Reads a matrix of `rows` rows of `width` values. Rows begin `stride` apart in `source`
    /// and `out_stride` apart in `out`; both slices hold the last row at least up to its width.
    fn widen(
        source: &[Self],
        stride: usize,
        out: &mut [f32],
        out_stride: usize,
        rows: usize,
        width: usize,
    );
}

/// The values of a cache tensor of `expected` values.
pub(super) fn cache_values<'a, T: CacheValue>(
    storage: &'a CpuStorage,
    layout: &Layout,
    expected: usize,
) -> Result<&'a [T]> {
    check_whole(layout, expected)?;
    storage.as_slice::<T>()
}

/// Like [`cache_values`], to be written to.
pub(super) fn cache_values_mut<'a, T: CacheValue>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
    expected: usize,
) -> Result<&'a mut [T]> {
    check_whole(layout, expected)?;
    T::values_mut(storage)
}

fn check_whole(layout: &Layout, expected: usize) -> Result<()> {
    if layout.contiguous_offsets() != Some((0, expected)) {
        bail!("a cache must be one contiguous tensor of {expected} values, is {layout:?}");
    }
    Ok(())
}

impl CacheValue for f32 {
    fn values_mut(storage: &mut CpuStorage) -> Result<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Ok(values),
            _ => bail!("keys and values of a cache must have the same type"),
        }
    }

    fn narrow(values: &[f32], narrowed: &mut [Self]) {
        narrowed.copy_from_slice(values);
    }

    fn widen(
        source: &[Self],
        stride: usize,
        out: &mut [f32],
        out_stride: usize,
        rows: usize,
        width: usize,
    ) {
        let rows_out = out.chunks_mut(out_stride).take(rows);
        for (row, out) in source.chunks(stride).zip(rows_out) {
            out[..width].copy_from_slice(&row[..width]);
        }
    }
}

impl CacheValue for f16 {
    fn values_mut(storage: &mut CpuStorage) -> Result<&mut [Self]> {
        match storage {
            CpuStorage::F16(values) => Ok(values),
            _ => bail!("keys and values of a cache must have the same type"),
        }
    }

    fn narrow(values: &[f32], narrowed: &mut [Self]) {
        // An infinity would make NaN of the weight 0 that a later query may give it.
        const LIMIT: f32 = 65504.0;
        const PIECE: usize = 64;
        let mut bounded = [0f32; PIECE];
        for (values, narrowed) in values.chunks(PIECE).zip(narrowed.chunks_mut(PIECE)) {
            for (bounded, value) in bounded.iter_mut().zip(values) {
                *bounded = value.clamp(-LIMIT, LIMIT);
            }
            narrowed.convert_from_f32_slice(&bounded[..values.len()]);
        }
    }

    fn widen(
        source: &[Self],
        stride: usize,
        out: &mut [f32],
        out_stride: usize,
        rows: usize,
        width: usize,
    ) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
            // SAFETY: both features that the function enables were just detected.
            unsafe { widen_f16c(source, stride, out, out_stride, rows, width) };
            return;
        }
        widen_portable(source, stride, out, out_stride, rows, width);
    }
}

fn widen_portable(
    source: &[f16],
    stride: usize,
    out: &mut [f32],
    out_stride: usize,
    rows: usize,
    width: usize,
) {
    let rows_out = out.chunks_mut(out_stride).take(rows);
    for (row, out) in source.chunks(stride).zip(rows_out) {
        for (out, value) in out[..width].iter_mut().zip(&row[..width]) {
            *out = value.to_f32_const();
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
fn widen_f16c(
    source: &[f16],
    stride: usize,
    out: &mut [f32],
    out_stride: usize,
    rows: usize,
    width: usize,
) {
    // Keys of a whole block, or of two: short rows, so the loop over a row must be none.
    if width == 16 {
        for i in 0..rows {
            let (row, out) = (
                &source[i * stride..][..16],
                &mut out[i * out_stride..][..16],
            );
            widen_row_f16c(row, out);
        }
    } else if width == 32 {
        for i in 0..rows {
            let (row, out) = (
                &source[i * stride..][..32],
                &mut out[i * out_stride..][..32],
            );
            widen_row_f16c(row, out);
        }
    } else {
        let rows_out = out.chunks_mut(out_stride).take(rows);
        for (row, out) in source.chunks(stride).zip(rows_out) {
            widen_row_f16c(&row[..width], &mut out[..width]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx,f16c")]
fn widen_row_f16c(row: &[f16], out: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};

    let (vectors, rest) = row.as_chunks::<8>();
    let (vectors_out, rest_out) = out.as_chunks_mut::<8>();
    for (halves, out) in vectors.iter().zip(vectors_out) {
        // SAFETY: eight halves are 16 bytes and eight floats 32; neither need be aligned.
        unsafe {
            let halves = _mm_loadu_si128(halves.as_ptr().cast());
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(halves));
        }
    }
    for (out, value) in rest_out.iter_mut().zip(rest) {
        *out = value.to_f32_const();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_as_it_is_portably() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let (mut best, mut portable) = (vec![0f32; 1 << 16], vec![0f32; 1 << 16]);
        f16::widen(&halves, 64, &mut best, 64, 1024, 64);
        widen_portable(&halves, 64, &mut portable, 64, 1024, 64);
        for (a, b) in best.iter().zip(&portable) {
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()));
        }
    }

    #[test]
    fn a_matrix_goes_to_its_place_in_a_wider_one() {
        let halves: Vec<f16> = (0..5u8)
            .flat_map(|r| (0..13u8).map(move |c| r * 13 + c))
            .map(f16::from)
            .collect();
        let mut out = vec![-1f32; 5 * 20];
        f16::widen(&halves[1..], 13, &mut out[2..], 20, 5, 11);
        for (i, row) in out.chunks(20).enumerate() {
            assert!(row[..2].iter().chain(&row[13..]).all(|&x| x < 0.0));
            let expected: Vec<f32> = (0..11).map(|c| (i * 13 + 1 + c) as f32).collect();
            assert_eq!(row[2..13], expected);
        }
    }

    #[test]
    fn what_half_precision_cannot_hold_is_bounded() {
        let mut narrowed = [f16::ZERO; 4];
        f16::narrow(&[1e9, -1e9, f32::NAN, 0.1], &mut narrowed);
        assert_eq!(narrowed[..2], [f16::MAX, f16::MIN]);
        assert!(narrowed[2].is_nan());
        assert_eq!(narrowed[3], f16::from_f32_const(0.1));
    }

    #[test]
    fn a_block_takes_what_its_tensors_take() -> Result<()> {
        let geometry = CacheGeometry {
            blocks: 5,
            block_size: 16,
            kv_heads: 3,
            head_dim: 64,
        };
        for cache_type in [CacheType::F32, CacheType::F16] {
            let cache = LayerCache::new(&geometry, cache_type, &Device::Cpu)?;
            let bytes: usize = [&cache.keys, &cache.values]
                .map(|t| t.elem_count() * t.dtype().size_in_bytes())
                .iter()
                .sum();
            assert_eq!(bytes, 5 * geometry.bytes_per_block(cache_type));
        }
        Ok(())
    }
}
