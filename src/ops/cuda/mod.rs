//! How the ops launch their kernels on a CUDA device: kernels by name (`modules`), what they are
//! given (`operand`, `staging`), and the launch itself (`launch`). An op's own file has its contract and a
//! `cuda_fwd` that checks shapes, names the kernel and lists its arguments.
//!
//! All work of a device goes to the one stream of its `CudaDevice`, so it is done in order and
//! nothing here waits for anything. That also makes it safe to hand a kernel plain addresses: what
//! is freed after a launch is freed in the stream, after the kernel.
//!
//! A kernel is trusted with what its op has checked: shapes, types, and that operands lie one after
//! the other. What only the values can tell (ids within their table, `cu_seqlens` that rise) is
//! checked on the host before the upload, by `models`.

mod attention;
mod bias_activation;
mod embed_norm;
mod gated;
mod launch;
mod modules;
mod operand;
mod pool;
mod residual_norm;
mod rms_norm;
mod staging;

pub(super) use attention::attention;
pub(super) use bias_activation::bias_activation;
pub(super) use embed_norm::embed_norm;
pub(super) use gated::gated;
pub(super) use launch::{Argument, Launch};
pub(super) use operand::{Operand, output, suffix, weight, whole};
pub(super) use pool::pool;
pub(super) use residual_norm::residual_norm;
pub(super) use rms_norm::{residual_rms_norm, rms_norm};
pub(super) use staging::upload;

use super::Activation;

/// An activation as the kernels number them.
fn activation_code(activation: Activation) -> i32 {
    match activation {
        Activation::Identity => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::Tanh => 4,
        Activation::Silu => 5,
    }
}
