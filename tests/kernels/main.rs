//! The CUDA kernels, run without a GPU: each `kernels/*.cu` compiles as C++ against the host
//! emulation (`kernels/README.md`), runs on random, odd and boundary shapes in several orders of
//! its threads, every access to memory watched, and must agree with the CPU op of the same name.
//!
//! Without a C++ compiler the tests say `SKIPPED` and pass. `-- --nocapture` shows the largest
//! error of each kernel.

mod agreement;
mod attention;
mod bias_activation;
mod buffer;
mod compiler;
mod embed_norm;
mod emulator;
mod gated;
mod language;
mod paged;
mod paged_decode;
mod paged_prefill;
mod planted;
mod pool;
mod quantized;
mod residual_norm;
mod rms_norm;
mod rope;
mod sampling;
