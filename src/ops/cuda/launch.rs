//! One launch of a kernel.

use candle_core::cuda_backend::CudaDevice;
use candle_core::{Error, Result};
use cudarc::driver::{LaunchConfig, PushKernelArg};

use super::modules::kernel;
use super::operand::Operand;

/// What a kernel takes in one of its parameters.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) enum Argument {
    /// `T *`; null where an optional operand is missing.
    Address(u64),
    /// `int`
    Int(i32),
    /// `long long`, for what may pass 2³¹.
    Long(i64),
    /// `float`
    Float(f32),
}

impl From<&Operand> for Argument {
    fn from(operand: &Operand) -> Self {
        Self::Address(operand.address())
    }
}

impl From<Option<&Operand>> for Argument {
    fn from(operand: Option<&Operand>) -> Self {
        Self::Address(operand.map_or(0, Operand::address))
    }
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Self::Int(value)
    }
}

impl From<i64> for Argument {
    fn from(value: i64) -> Self {
        Self::Long(value)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

/// A kernel and the shape in which it runs.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Launch {
    /// `kernels/<file>.cu`
    pub file: &'static str,
    /// Its entry point.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block, which the kernel's file fixes.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Launch {
    /// Puts the kernel in the device's stream.
    ///
    /// # Errors
    /// If the device does not take the launch, or has failed before.
    ///
    /// # Safety
    /// `arguments` must be what the kernel takes, and each address must have all that the kernel
    /// reads or writes with these sizes.
    pub unsafe fn run(self, device: &CudaDevice, arguments: &[Argument]) -> Result<()> {
        let function = kernel(device, self.file, self.kernel, self.shared_bytes)?;
        let stream = device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        for argument in arguments {
            match argument {
                Argument::Address(address) => builder.arg(address),
                Argument::Int(value) => builder.arg(value),
                Argument::Long(value) => builder.arg(value),
                Argument::Float(value) => builder.arg(value),
            };
        }
        let [x, y, z] = self.grid;
        let shape = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (self.threads, 1, 1),
            shared_mem_bytes: self.shared_bytes,
        };
        // SAFETY: what the kernel is given is the caller's to answer for.
        unsafe { builder.launch(shape) }
            .map_err(|error| Error::wrap(error).context(format!("launch of {}", self.kernel)))?;
        Ok(())
    }
}
