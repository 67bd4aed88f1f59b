//! What a kernel reads and writes: addresses of device memory, with the checks that the CPU's
//! `operand` makes of slices.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorageSlice};
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor, bail};
use cudarc::driver::{CudaSlice, DevicePtr};

/// Values one after the other in device memory.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Operand {
    address: u64,
    /// Number of values.
    pub len: usize,
    /// Their type.
    pub dtype: DType,
}

impl Operand {
    /// Where they begin.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Fails unless they are `expected` values.
    pub fn expect_len(self, expected: usize, what: &str) -> Result<Self> {
        if self.len != expected {
            bail!("{what} must have {expected} values, has {}", self.len);
        }
        Ok(self)
    }

    /// Fails unless they are of type `expected`.
    pub fn expect_type(self, expected: DType, what: &str) -> Result<Self> {
        if self.dtype != expected {
            bail!("{what} must be {expected:?}, is {:?}", self.dtype);
        }
        Ok(self)
    }
}

/// A contiguous operand; `what` names it in the error.
pub(in crate::ops) fn whole(storage: &CudaStorage, layout: &Layout, what: &str) -> Result<Operand> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(
            "{what} must be contiguous, has strides {:?}",
            layout.stride()
        );
    };
    let dtype = storage.dtype();
    let begin = match &storage.slice {
        CudaStorageSlice::U8(slice) => address(slice),
        CudaStorageSlice::U32(slice) => address(slice),
        CudaStorageSlice::F16(slice) => address(slice),
        CudaStorageSlice::BF16(slice) => address(slice),
        CudaStorageSlice::F32(slice) => address(slice),
        _ => bail!("{what} of type {dtype:?} has no kernel"),
    };
    Ok(Operand {
        address: begin + (start * dtype.size_in_bytes()) as u64,
        len: end - start,
        dtype,
    })
}

/// A weight that an op holds, `expected` values of `dtype`.
pub(in crate::ops) fn weight(
    tensor: &Tensor,
    expected: usize,
    dtype: DType,
    what: &str,
) -> Result<Operand> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        bail!("{what} must be on the device of the activations");
    };
    whole(storage, layout, what)?
        .expect_len(expected, what)?
        .expect_type(dtype, what)
}

/// New memory for what a kernel writes in full.
pub(in crate::ops) fn output(
    device: &CudaDevice,
    shape: &Shape,
    dtype: DType,
) -> Result<(CudaStorage, Operand)> {
    if shape.elem_count() == 0 {
        bail!("there is nothing to compute for the shape {shape:?}");
    }
    // SAFETY: whoever asks for it launches a kernel that writes all of it.
    let storage = unsafe { device.alloc_uninit(shape, dtype)? };
    let operand = whole(&storage, &Layout::contiguous(shape), "output")?;
    Ok((storage, operand))
}

fn address<T: CudaDType>(slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

/// Chooses the entry point for the type of the activations, as kernels are named.
pub(in crate::ops) fn suffix(
    names: [&'static str; 3],
    dtype: DType,
    what: &str,
) -> Result<&'static str> {
    let [f32, f16, bf16] = names;
    Ok(match dtype {
        DType::F32 => f32,
        DType::F16 => f16,
        DType::BF16 => bf16,
        other => bail!("{what} must be f32, f16 or bf16, is {other:?}"),
    })
}
