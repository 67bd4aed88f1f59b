//! Whether this process can use CUDA: was it built in, are its libraries here, is there a GPU.

use std::sync::OnceLock;

/// What there is of CUDA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuda {
    /// The binary was built without it.
    NotBuilt,
    /// The binary could use it, but something is missing on this machine.
    Missing {
        /// What, by name and file.
        what: String,
        /// What brings it.
        remedy: &'static str,
    },
    /// So many GPUs can be used.
    Devices(usize),
}

/// What there is of CUDA on this machine; looked up once.
pub fn cuda() -> &'static Cuda {
    static FOUND: OnceLock<Cuda> = OnceLock::new();
    FOUND.get_or_init(probe)
}

#[cfg(not(feature = "cuda"))]
fn probe() -> Cuda {
    Cuda::NotBuilt
}

#[cfg(feature = "cuda")]
const DRIVER: &str = "install a driver of the 580 series or newer (in a container: give it the GPU, as \
                      with `docker run --gpus all`)";
#[cfg(feature = "cuda")]
const LIBRARIES: &str = "install the libraries of CUDA 13 (`scripts/cuda-toolkit.sh --with libraries` \
                         gets them, too) and name their folder in LD_LIBRARY_PATH";

/// Touches no symbol of a library before the library was found: cudarc panics otherwise.
#[cfg(feature = "cuda")]
fn probe() -> Cuda {
    use cudarc::{cublas, curand, driver};

    let missing = |what: &str, remedy| Cuda::Missing {
        what: what.to_owned(),
        remedy,
    };
    // SAFETY: opening these libraries runs their initializers, which rely on nothing of ours.
    let (has_driver, has_blas, has_random) = unsafe {
        (
            driver::sys::is_culib_present(),
            cublas::sys::is_culib_present(),
            curand::sys::is_culib_present(),
        )
    };
    if !has_driver {
        return missing("NVIDIA's driver (libcuda.so.1)", DRIVER);
    }
    if !has_blas {
        return missing("cuBLAS (libcublas.so.13)", LIBRARIES);
    }
    if !has_random {
        return missing("cuRAND (libcurand.so.10)", LIBRARIES);
    }
    match driver::CudaContext::device_count() {
        Ok(count) if count > 0 => Cuda::Devices(count as usize),
        Ok(_) => missing("a GPU", "make one visible to this process"),
        Err(error) => missing(
            &format!("a GPU that the driver can use (it says {error})"),
            DRIVER,
        ),
    }
}
