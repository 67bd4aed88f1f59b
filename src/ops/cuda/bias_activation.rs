//! Launch of `kernels/bias_activation.cu`.

use candle_core::{CudaStorage, DType, Layout, Result};

use super::super::BiasActivation;
use super::super::operand::dims2;
use super::{Launch, activation_code, suffix, whole};

/// The kernels by the type of `x`.
const KERNELS: [&str; 3] = [
    "ferry_bias_activation_f32",
    "ferry_bias_activation_f16",
    "ferry_bias_activation_bf16",
];

/// [`BiasActivation`] on a device.
pub(in crate::ops) fn bias_activation(
    op: BiasActivation,
    x: &CudaStorage,
    x_layout: &Layout,
    bias: &CudaStorage,
    bias_layout: &Layout,
) -> Result<()> {
    let (tokens, features) = dims2(x_layout, "x")?;
    let values = whole(x, x_layout, "x")?;
    let bias = whole(bias, bias_layout, "bias")?
        .expect_len(features, "bias")?
        .expect_type(DType::F32, "bias")?;
    let launch = Launch {
        file: "bias_activation",
        kernel: suffix(KERNELS, values.dtype, "x")?,
        grid: [tokens as u32, 1, 1],
        threads: 128,
        shared_bytes: 0,
    };
    let arguments = [
        (&values).into(),
        (&bias).into(),
        (features as i32).into(),
        activation_code(op.0).into(),
    ];
    // SAFETY: `x` has `tokens · features` values of the kernel's type, the bias `features`.
    unsafe { launch.run(&x.device, &arguments) }
}
