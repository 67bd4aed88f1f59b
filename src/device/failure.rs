//! What a failed device operation means for the instance that ran it.
//!
//! candle and cudarc keep CUDA's own names of errors in their messages; these are what is looked for,
//! so that errors are told apart in the same way with and without CUDA built in, and in panics, too.

/// What a failed operation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceFailure {
    /// The device has no room for this much at a time; less may fit.
    OutOfMemory,
    /// The device's context is lost: every later operation in it fails as well.
    Lost,
    /// Something else, which says nothing about the next operation.
    Other,
}

/// Names of errors after which there is less memory than was wanted, and no other harm.
const OUT_OF_MEMORY: [&str; 5] = [
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CURAND_STATUS_ALLOCATION_FAILED",
    "cudaErrorMemoryAllocation",
    "NVRTC_ERROR_OUT_OF_MEMORY",
];

/// Names of errors of which CUDA says that the context, or the process, can't be used any more, or
/// that come of one that can't.
const LOST: [&str; 27] = [
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED",
    "CUDA_ERROR_MPS_RPC_FAILURE",
    "CUDA_ERROR_MPS_SERVER_NOT_READY",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_INVALID_CONTEXT",
    "CUDA_ERROR_DEINITIALIZED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_NO_DEVICE",
    "CUDA_ERROR_SYSTEM_NOT_READY",
    "CUDA_ERROR_UNKNOWN",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "cudaErrorIllegalAddress",
    "cudaErrorLaunchFailure",
];

/// What an error of candle's means.
pub fn classify(error: &candle_core::Error) -> DeviceFailure {
    classify_text(&error.to_string())
}

/// What an error means whose text this is; also that of a panic. A context that is lost weighs more
/// than memory that is short.
pub fn classify_text(text: &str) -> DeviceFailure {
    let names = |known: &[&str]| {
        text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
            .any(|word| known.contains(&word))
    };
    if names(&LOST) {
        DeviceFailure::Lost
    } else if names(&OUT_OF_MEMORY) {
        DeviceFailure::OutOfMemory
    } else {
        DeviceFailure::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &'static str) -> DeviceFailure {
        classify(&candle_core::Error::Cuda(text.into()).bt())
    }

    #[test]
    fn memory_that_is_short_is_told_from_a_context_that_is_lost_and_both_from_other_errors() {
        use DeviceFailure::{Lost, Other, OutOfMemory};
        for (text, failure) in [
            // As cudarc prints them
            (
                "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
                OutOfMemory,
            ),
            ("CublasError(CUBLAS_STATUS_ALLOC_FAILED)", OutOfMemory),
            ("CurandError(CURAND_STATUS_ALLOCATION_FAILED)", OutOfMemory),
            (
                "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")",
                Lost,
            ),
            (
                "DriverError(CUDA_ERROR_LAUNCH_FAILED, \"unspecified launch failure\")",
                Lost,
            ),
            ("DriverError(CUDA_ERROR_ECC_UNCORRECTABLE)", Lost),
            ("CublasError(CUBLAS_STATUS_EXECUTION_FAILED)", Lost),
            (
                "DriverError(CUDA_ERROR_INVALID_VALUE, \"invalid argument\")",
                Other,
            ),
            ("DriverError(CUDA_ERROR_NO_BINARY_FOR_GPU)", Other),
            // Less than a name is none
            ("DriverError(CUDA_ERROR_LAUNCH_FAILED_OTHERWISE)", Other),
            ("missing kernel 'out of memory'", Other),
        ] {
            assert_eq!(of(text), failure, "{text}");
        }
    }

    #[test]
    fn the_text_of_a_panic_counts_like_that_of_an_error() {
        let panic =
            "called `Result::unwrap()` on an `Err` value: DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)";
        assert_eq!(classify_text(panic), DeviceFailure::Lost);
        let both = "DriverError(CUDA_ERROR_OUT_OF_MEMORY) after DriverError(CUDA_ERROR_ASSERT)";
        assert_eq!(classify_text(both), DeviceFailure::Lost);
        assert_eq!(classify_text("index out of bounds"), DeviceFailure::Other);
    }
}
