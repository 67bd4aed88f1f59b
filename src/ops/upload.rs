//! The lists of a batch (token ids, positions, ends of rows) as tensors on its device.

use candle_core::{Device, Result, Tensor};

/// Each list as a u32 tensor. On a GPU they go there in one copy that nobody waits for.
///
/// # Errors
/// If the device has no room for them, or, on a GPU, if all are empty.
pub fn upload<const N: usize>(device: &Device, lists: [&[u32]; N]) -> Result<[Tensor; N]> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return super::cuda::upload(device, lists);
    }
    let mut tensors = Vec::with_capacity(N);
    for list in lists {
        tensors.push(Tensor::from_slice(list, list.len(), device)?);
    }
    match tensors.try_into() {
        Ok(tensors) => Ok(tensors),
        Err(_) => unreachable!("a tensor was made for each list"),
    }
}
