//! How much memory a device has left for what is still to come.

use candle_core::{Device, Result};

/// Bytes that are free on a GPU right now; `None` for the CPU, whose memory is the system's to give.
///
/// # Errors
/// If the device fails.
pub fn free_memory(device: &Device) -> Result<Option<usize>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let stream = device.cuda_stream();
            // What was freed goes back in the stream's order: look when all of that is done.
            stream.synchronize().map_err(candle_core::Error::wrap)?;
            let (free, _) = stream
                .context()
                .mem_get_info()
                .map_err(candle_core::Error::wrap)?;
            Ok(Some(free))
        }
        _ => Ok(None),
    }
}
