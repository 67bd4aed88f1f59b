//! From f32 to a GGML type and back, some rows at a time on each thread. The encoders are
//! candle's.

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// Values that a thread takes at a time, or a row if that is more.
const CHUNK: usize = 1 << 16;

/// Encodes a matrix with rows of `row` values, which the type's blocks divide. `importance` says of
/// each input how much its errors weigh, `[row]`; it helps k-quants only (see
/// [`heeds_importance`]).
pub(in crate::models) fn encode(
    values: &[f32],
    row: usize,
    dtype: GgmlDType,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>> {
    let importance = importance.filter(|_| heeds_importance(dtype));
    let parts = values.par_chunks(chunk(row)).map(|values| {
        let tensor = Tensor::from_slice(values, (values.len() / row, row), &Device::Cpu)?;
        let encoded = match importance {
            Some(weights) => QTensor::quantize_imatrix(&tensor, weights, dtype)?,
            None => QTensor::quantize(&tensor, dtype)?,
        };
        Ok(encoded.data()?.into_owned())
    });
    Ok(parts.collect::<Result<Vec<Vec<u8>>>>()?.concat())
}

/// Whether candle encodes the type by importance.
pub(super) fn heeds_importance(dtype: GgmlDType) -> bool {
    matches!(
        dtype,
        GgmlDType::Q2K | GgmlDType::Q3K | GgmlDType::Q4K | GgmlDType::Q5K | GgmlDType::Q6K
    )
}

/// The root mean square of what encoding changed, relative to that of the values; 0 for zeros.
pub(super) fn relative_error(
    values: &[f32],
    row: usize,
    dtype: GgmlDType,
    encoded: &[u8],
) -> Result<f64> {
    let chunk = chunk(row);
    let bytes = chunk / dtype.block_size() * dtype.type_size();
    let sums = values.par_chunks(chunk).zip(encoded.par_chunks(bytes));
    let sums = sums.map(|(values, encoded)| {
        let storage = QStorage::from_data(encoded.into(), &Device::Cpu, dtype)?;
        let decoded = QTensor::new(storage, values.len())?.dequantize(&Device::Cpu)?;
        let decoded: Vec<f32> = decoded.to_vec1()?;
        let (mut changed, mut all) = (0.0, 0.0);
        for (&was, is) in values.iter().zip(decoded) {
            changed += f64::from(was - is).powi(2);
            all += f64::from(was).powi(2);
        }
        Ok((changed, all))
    });
    // Collected first: a parallel sum would depend on how the threads happened to share.
    let (mut changed, mut all) = (0.0, 0.0);
    for part in sums.collect::<Result<Vec<(f64, f64)>>>()? {
        changed += part.0;
        all += part.1;
    }
    Ok(if all == 0.0 {
        0.0
    } else {
        (changed / all).sqrt()
    })
}

/// Whole rows, about [`CHUNK`] values.
fn chunk(row: usize) -> usize {
    (CHUNK / row.max(1)).max(1) * row.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0)
            .collect()
    }

    #[test]
    fn more_bits_err_less_and_f32_not_at_all() -> Result<()> {
        let values = values(300 * 512);
        let error = |dtype, importance: Option<&[f32]>| {
            let encoded = encode(&values, 512, dtype, importance)?;
            relative_error(&values, 512, dtype, &encoded)
        };
        let order = [
            GgmlDType::F32,
            GgmlDType::F16,
            GgmlDType::BF16,
            GgmlDType::Q8_0,
            GgmlDType::Q6K,
            GgmlDType::Q5K,
            GgmlDType::Q4K,
            GgmlDType::Q3K,
            GgmlDType::Q2K,
        ];
        let errors = order.map(|dtype| error(dtype, None));
        let errors = errors.into_iter().collect::<Result<Vec<f64>>>()?;
        assert!(errors.is_sorted(), "{errors:?}");
        assert!(
            errors[0] == 0.0 && errors[3] < 0.01 && errors[8] < 0.4,
            "{errors:?}"
        );
        Ok(())
    }

    #[test]
    fn importance_is_heeded_where_the_encoder_can_and_harmless_where_it_cannot() -> Result<()> {
        let values = values(4 * 256);
        let importance: Vec<f32> = (0..256)
            .map(|i| if i < 16 { 100.0 } else { 0.01 })
            .collect();
        for dtype in [GgmlDType::Q4K, GgmlDType::Q2K] {
            let plain = encode(&values, 256, dtype, None)?;
            assert_ne!(encode(&values, 256, dtype, Some(&importance))?, plain);
        }
        for dtype in [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::F16] {
            let plain = encode(&values, 256, dtype, None)?;
            assert_eq!(encode(&values, 256, dtype, Some(&importance))?, plain);
        }
        Ok(())
    }
}
