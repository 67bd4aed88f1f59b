//! The fused operations of the models, one file per op: its contract (formula, shapes), and its
//! CPU code, as candle custom ops. CUDA launches of the same names come beside them later.
//!
//! All activations are f32 and packed: the rows of a batch lie one after the other without
//! padding, `[tokens, features]`, and `cu_seqlens` (u32, `[rows + 1]`, from 0 to `tokens`,
//! non-decreasing) says where each row of the batch begins and ends.

#![allow(
    clippy::inline_always,
    reason = "only what is inlined into the entry point of an instruction set is compiled for it, see simd"
)]

pub mod activation;
pub mod attention;
pub mod device_memory;
pub mod embed_norm;
pub mod gated;
#[cfg(feature = "cuda")]
pub mod kernels;
pub mod linear;
pub mod logit_statistics;
pub mod paged_attention;
pub mod pool;
pub mod quantized;
pub mod residual_norm;
pub mod rms_norm;
pub mod rope;
pub mod upload;
pub mod values;

#[cfg(feature = "cuda")]
mod cuda;
mod layer_norm;
mod operand;
mod pages;
pub(crate) mod parallel;
mod simd;
mod vector_math;

#[cfg(test)]
mod testing;

pub use activation::{Activation, BiasActivation};
pub use attention::{Attention, AttentionIn};
pub use device_memory::free_memory;
pub use embed_norm::{EmbedNorm, WordTable};
pub use gated::GatedActivation;
pub use linear::{Compute, FeedForward, Linear};
pub use logit_statistics::{LogitStatistics, logit_statistics, soft_cap};
pub use operand::vector_values;
pub use paged_attention::{CacheGeometry, CacheType, LayerCache, PagedAttention, PagedRows};
pub use pool::{Pool, Pooling};
pub use quantized::{QuantizedLinear, QuantizedWeight};
pub use residual_norm::ResidualNorm;
pub use rms_norm::{ResidualRmsNorm, RmsNorm};
pub use rope::{Rope, RopeStyle};
pub use upload::upload;
pub use values::{MappedBytes, Values};
