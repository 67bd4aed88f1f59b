//! Kernels by name: the fatbin of a file is loaded once for a device, by the thread that needs it
//! first, which is the one that warms the model up.
//!
//! What was loaded for a device that is no more is dropped when the next one loads something: an
//! instance that is restarted on a fresh context keeps nothing of the old.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::{Error, Result};
use cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{CudaFunction, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;

use super::super::kernels::fatbin;

/// Dynamic shared memory that a kernel may have without being asked for more.
const PLAIN_SHARED_BYTES: u32 = 48 * 1024;

/// What is loaded for a device.
struct Loaded {
    /// Lives as long as the device.
    stream: Weak<CudaStream>,
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<&'static str, Function>,
}

struct Function {
    function: CudaFunction,
    /// Dynamic shared memory that it was allowed so far.
    shared_bytes: u32,
}

static LOADED: LazyLock<Mutex<HashMap<DeviceId, Loaded>>> = LazyLock::new(Mutex::default);

/// Kernel `name` of `kernels/<file>.cu`, allowed `shared_bytes` of dynamic shared memory.
///
/// # Errors
/// If the build has no such kernel, or the driver does not take it.
pub(super) fn kernel(
    device: &CudaDevice,
    file: &'static str,
    name: &'static str,
    shared_bytes: u32,
) -> Result<CudaFunction> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if !loaded.contains_key(&device.id()) {
        loaded.retain(|_, other| other.stream.strong_count() > 0);
    }
    let loaded = loaded.entry(device.id()).or_insert_with(|| Loaded {
        stream: Arc::downgrade(&device.cuda_stream()),
        modules: HashMap::new(),
        functions: HashMap::new(),
    });
    loaded.function(device, file, name, shared_bytes)
}

impl Loaded {
    fn function(
        &mut self,
        device: &CudaDevice,
        file: &'static str,
        name: &'static str,
        shared_bytes: u32,
    ) -> Result<CudaFunction> {
        if !self.functions.contains_key(name) {
            let function = self
                .module(device, file)?
                .load_function(name)
                .map_err(|error| {
                    Error::wrap(error).context(format!("kernel {name} of kernels/{file}.cu"))
                })?;
            let function = Function {
                function,
                shared_bytes: PLAIN_SHARED_BYTES,
            };
            self.functions.insert(name, function);
        }
        let found = self.functions.get_mut(name);
        let Some(found) = found else {
            unreachable!("it was just put there");
        };
        if shared_bytes > found.shared_bytes {
            found
                .function
                .set_attribute(
                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared_bytes.cast_signed(),
                )
                .map_err(|error| {
                    let wanted = format!("{shared_bytes} bytes of shared memory for {name}");
                    Error::wrap(error).context(wanted)
                })?;
            found.shared_bytes = shared_bytes;
        }
        Ok(found.function.clone())
    }

    fn module(&mut self, device: &CudaDevice, file: &'static str) -> Result<&Arc<CudaModule>> {
        if !self.modules.contains_key(file) {
            let Some(image) = fatbin(file) else {
                candle_core::bail!("this build has no kernels/{file}.cu");
            };
            let module = device
                .cuda_stream()
                .context()
                .load_module(Ptx::from_binary(image.to_vec()))
                .map_err(|error| {
                    Error::wrap(error).context(format!("kernels/{file}.cu for this device"))
                })?;
            self.modules.insert(file, module);
        }
        Ok(&self.modules[file])
    }
}
