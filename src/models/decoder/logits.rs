//! The logits of a step, read where they are.

use candle_core::{CpuStorage, Storage, Tensor};

use super::super::error::ForwardError;

/// Logits `[rows, vocabulary]`, f32.
#[derive(Debug, Clone)]
pub struct StepLogits(Tensor);

impl StepLogits {
    /// From what [`DecoderModel::forward`](super::DecoderModel::forward) gives.
    pub fn new(logits: Tensor) -> Self {
        Self(logits)
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// Lends the values, row after row, without a copy where they are on the CPU.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read<T>(&self, f: impl FnOnce(&[f32]) -> T) -> Result<T, ForwardError> {
        let (storage, layout) = self.0.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        else {
            drop(storage);
            let values = self.0.flatten_all()?.to_vec1()?;
            return Ok(f(&values));
        };
        Ok(f(&values[start..end]))
    }
}
