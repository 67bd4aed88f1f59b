//! Host memory from which a batch's lists go to the device: pinned, so that the copy is the
//! device's to do while the host goes on.
//!
//! A thread has two such buffers and takes them in turn: while the copy from one is still waiting
//! behind the batch before it, the next batch is written to the other.

use std::cell::RefCell;

use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Error, Result, Storage, Tensor, bail};
use cudarc::driver::{CudaEvent, PinnedHostSlice};

/// Lists begin at multiples of so many values, 16 bytes: kernels read in such vectors.
const ALIGNMENT: usize = 4;
/// Values of a buffer at least, 64 KiB: most batches of any kind.
const LEAST: usize = 16 * 1024;

/// A thread's buffers for its device.
struct Staging {
    device: DeviceId,
    buffers: [Option<Buffer>; 2],
    next: usize,
}

struct Buffer {
    values: PinnedHostSlice<u32>,
    /// The latest copy from it is done. cudarc has such an event, too, and records it only where it
    /// keeps track of all uses, which a device with one stream has no need of.
    copied: CudaEvent,
}

thread_local! {
    static STAGING: RefCell<Option<Staging>> = const { RefCell::new(None) };
}

/// Copies lists to the device in one go: as many tensors, parts of one allocation.
///
/// # Errors
/// If all are empty, or the device has no room.
pub(in crate::ops) fn upload<const N: usize>(
    device: &CudaDevice,
    lists: [&[u32]; N],
) -> Result<[Tensor; N]> {
    let mut starts = [0; N];
    let mut total = 0;
    for (start, list) in starts.iter_mut().zip(lists) {
        *start = total;
        total += list.len().next_multiple_of(ALIGNMENT);
    }
    if total == 0 {
        bail!("there is nothing to upload");
    }
    // SAFETY: what is not copied there lies between the lists, and nobody reads it.
    let mut memory = unsafe { device.alloc::<u32>(total)? };
    STAGING.with_borrow_mut(|staging| {
        let staging = match staging {
            Some(staging) if staging.device == device.id() => staging,
            other => other.insert(Staging {
                device: device.id(),
                buffers: [None, None],
                next: 0,
            }),
        };
        let buffer = staging.take(device, total)?;
        // No host thread writes to it before the event says that the copy is done.
        buffer.copied.synchronize().map_err(Error::wrap)?;
        let values = buffer.values.as_mut_slice().map_err(Error::wrap)?;
        for (&start, list) in starts.iter().zip(lists) {
            values[start..start + list.len()].copy_from_slice(list);
        }
        let stream = device.cuda_stream();
        // SAFETY: the buffer lives as long as the thread, and is not written to before the event
        // that is recorded below.
        let source = unsafe { std::slice::from_raw_parts(values.as_ptr(), total) };
        device.memcpy_htod(source, &mut memory)?;
        buffer.copied.record(&stream).map_err(Error::wrap)
    })?;
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(memory, device.clone()));
    let memory = Tensor::from_storage(storage, total, BackpropOp::none(), false);
    let mut tensors = Vec::with_capacity(N);
    for (start, list) in starts.into_iter().zip(lists) {
        tensors.push(memory.narrow(0, start, list.len())?);
    }
    match tensors.try_into() {
        Ok(tensors) => Ok(tensors),
        Err(_) => unreachable!("a tensor was made for each list"),
    }
}

impl Staging {
    /// The next buffer, of `total` values at least.
    fn take(&mut self, device: &CudaDevice, total: usize) -> Result<&mut Buffer> {
        let turn = self.next;
        self.next = (turn + 1) % self.buffers.len();
        let slot = &mut self.buffers[turn];
        if slot
            .as_ref()
            .is_none_or(|buffer| buffer.values.len() < total)
        {
            let context = device.cuda_stream().context().clone();
            if let Some(old) = slot.take() {
                // Its memory must not go before its copy is done.
                old.copied.synchronize().map_err(Error::wrap)?;
            }
            // SAFETY: u32 has no invalid values, and what is read was written.
            let values = unsafe { context.alloc_pinned(total.max(LEAST).next_power_of_two()) };
            *slot = Some(Buffer {
                values: values.map_err(Error::wrap)?,
                copied: context.new_event(None).map_err(Error::wrap)?,
            });
        }
        match slot {
            Some(buffer) => Ok(buffer),
            None => unreachable!("it was just put there"),
        }
    }
}
