//! From what configuration asks for to a device that models run on.
//!
//! A binary built with the feature `cuda` starts on machines that have no driver: nothing of CUDA is
//! touched before [`cuda`] has found its libraries, so the CPU is what `auto` falls back to.

mod failure;
mod probe;

use std::sync::Once;

use candle_core::Device;

pub use failure::{DeviceFailure, classify, classify_text};
pub use probe::{Cuda, cuda};

use crate::config::DeviceChoice;

/// One device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The CPU.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Why a model can't run where it is told to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The binary has no CUDA in it.
    #[error(
        "device = \"{asked}\": this binary was built without CUDA; build one with `cargo build \
         --release --features cuda` (docs/cuda.md), or set device to \"auto\" or \"cpu\""
    )]
    NotBuilt {
        /// What was asked for.
        asked: String,
    },
    /// CUDA can't be used on this machine.
    #[error(
        "device = \"{asked}\": {what} is missing; {remedy}, or set device to \"auto\" or \"cpu\""
    )]
    Missing {
        /// What was asked for.
        asked: String,
        /// What is not there.
        what: String,
        /// What brings it.
        remedy: &'static str,
    },
    /// The machine has fewer GPUs.
    #[error("device = \"{asked}\": there is no cuda:{ordinal}; this machine has {}", gpus(*count))]
    NoSuchGpu {
        /// What was asked for.
        asked: String,
        /// The number that is too high.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is there and can't be opened.
    #[error("{place} can't be opened: {reason}")]
    Open {
        /// Which one.
        place: String,
        /// What CUDA said.
        reason: String,
    },
}

fn gpus(count: usize) -> String {
    match count {
        1 => "one GPU, cuda:0".to_owned(),
        count => format!("{count} GPUs, cuda:0 to cuda:{}", count.saturating_sub(1)),
    }
}

/// The devices that `choice` means on this machine, at least one. Where `auto` finds no GPU and this
/// binary could have used one, the log says so, once.
///
/// # Errors
/// [`DeviceError`] where GPUs are demanded that are not there.
pub fn resolve(choice: &DeviceChoice) -> Result<Vec<Place>, DeviceError> {
    static WARNED: Once = Once::new();
    if *choice == DeviceChoice::Cpu {
        return Ok(vec![Place::Cpu]);
    }
    let cuda = cuda();
    if let (DeviceChoice::Auto, Cuda::Missing { what, remedy }) = (choice, cuda) {
        WARNED.call_once(|| {
            tracing::warn!("no GPU can be used: {what} is missing; running on the CPU. To change that, {remedy}; to expect no GPU, set device = \"cpu\"");
        });
    }
    resolve_with(choice, cuda)
}

/// As [`resolve`], for a machine with this much of CUDA.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_with(choice: &DeviceChoice, cuda: &Cuda) -> Result<Vec<Place>, DeviceError> {
    let ordinals = match (choice, cuda) {
        (DeviceChoice::Auto, Cuda::Devices(_)) => return Ok(vec![Place::Cuda(0)]),
        (DeviceChoice::Auto | DeviceChoice::Cpu, _) => return Ok(vec![Place::Cpu]),
        (DeviceChoice::Cuda(ordinals), _) => ordinals,
    };
    let asked = choice.to_string();
    match cuda {
        Cuda::NotBuilt => Err(DeviceError::NotBuilt { asked }),
        Cuda::Missing { what, remedy } => Err(DeviceError::Missing {
            asked,
            what: what.clone(),
            remedy,
        }),
        &Cuda::Devices(count) => match ordinals.iter().find(|&&ordinal| ordinal >= count) {
            Some(&ordinal) => Err(DeviceError::NoSuchGpu {
                asked,
                ordinal,
                count,
            }),
            None => Ok(ordinals.iter().copied().map(Place::Cuda).collect()),
        },
    }
}

impl Place {
    /// Opens it. Each call for a GPU opens a stream of its own, whose work is in order and beside
    /// that of the others; tensors belong to the one they were made with.
    ///
    /// # Errors
    /// [`DeviceError::Open`] with what CUDA said.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) => {
                let device = Device::new_cuda_with_stream(ordinal);
                let device = device.map_err(|error| DeviceError::Open {
                    place: self.to_string(),
                    reason: error.to_string(),
                })?;
                #[cfg(feature = "cuda")]
                if let Device::Cuda(cuda) = &device {
                    // Else each tensor would have two events, to be recorded and waited for.
                    // SAFETY: all work with the device's tensors is in its one stream, in order.
                    unsafe { cuda.disable_event_tracking() };
                }
                Ok(device)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absent() -> Cuda {
        Cuda::Missing {
            what: "NVIDIA's driver (libcuda.so.1)".to_owned(),
            remedy: "install one",
        }
    }

    fn cuda_of(ordinals: &[usize]) -> DeviceChoice {
        DeviceChoice::Cuda(ordinals.to_vec())
    }

    #[test]
    fn auto_is_the_first_gpu_where_there_is_one_and_the_cpu_elsewhere() {
        let auto = |cuda: &Cuda| resolve_with(&DeviceChoice::Auto, cuda);
        assert_eq!(auto(&Cuda::Devices(2)), Ok(vec![Place::Cuda(0)]));
        assert_eq!(auto(&Cuda::NotBuilt), Ok(vec![Place::Cpu]));
        assert_eq!(auto(&absent()), Ok(vec![Place::Cpu]));
        assert_eq!(
            resolve_with(&DeviceChoice::Cpu, &Cuda::Devices(2)),
            Ok(vec![Place::Cpu])
        );
    }

    #[test]
    fn gpus_that_are_demanded_are_there_or_the_error_says_what_is_missing_and_what_brings_it() {
        let two = cuda_of(&[1, 0]);
        assert_eq!(
            resolve_with(&two, &Cuda::Devices(2)),
            Ok(vec![Place::Cuda(1), Place::Cuda(0)])
        );
        let error = |choice: &DeviceChoice, cuda: &Cuda| {
            resolve_with(choice, cuda).unwrap_err().to_string()
        };
        let built = error(&cuda_of(&[0]), &Cuda::NotBuilt);
        assert!(
            built.contains("cuda:0") && built.contains("--features cuda"),
            "{built}"
        );
        let missing = error(&two, &absent());
        assert!(missing.contains("cuda:1,cuda:0"), "{missing}");
        assert!(
            missing.contains("(libcuda.so.1) is missing; install one, or"),
            "{missing}"
        );
        let few = error(&cuda_of(&[0, 3]), &Cuda::Devices(2));
        assert!(
            few.contains("no cuda:3") && few.contains("cuda:0 to cuda:1"),
            "{few}"
        );
        let one = error(&cuda_of(&[1]), &Cuda::Devices(1));
        assert!(one.contains("one GPU, cuda:0"), "{one}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_binary_without_cuda_says_so_and_runs_on_the_cpu() {
        assert_eq!(*cuda(), Cuda::NotBuilt);
        assert_eq!(resolve(&DeviceChoice::Auto), Ok(vec![Place::Cpu]));
        assert!(Place::Cuda(0).open().is_err());
    }
}
