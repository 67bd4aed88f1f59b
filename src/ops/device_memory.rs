//! How much memory a device has left for what is still to come.

use candle_core::{Device, Result};

/// Bytes that are free on a GPU right now; `None` for the CPU, whose memory is the system's to give.
///
/// # Errors
/// If the device fails.
pub fn free_memory(device: &Device) -> Result<Option<usize>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        let stream = device.cuda_stream();
        // What was freed goes back in the stream's order: look when all of that is done.
        stream.synchronize().map_err(candle_core::Error::wrap)?;
        let free = stream.context().mem_get_info();
        let (free, _) = free.map_err(candle_core::Error::wrap)?;
        return Ok(Some(free));
    }
    debug_assert!(device.is_cpu(), "there is no other kind of device");
    Ok(None)
}
