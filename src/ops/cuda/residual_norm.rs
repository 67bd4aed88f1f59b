//! Launch of `kernels/residual_norm.cu`.

use candle_core::{CudaStorage, DType, Layout, Result, bail};

use super::super::ResidualNorm;
use super::super::operand::dims2;
use super::{Launch, suffix, weight, whole};

/// Rows of a block, a warp each.
const ROWS: usize = 4;

/// The kernels by the type of `x`.
const KERNELS: [&str; 3] = [
    "ferry_residual_norm_f32",
    "ferry_residual_norm_f16",
    "ferry_residual_norm_bf16",
];

/// [`ResidualNorm`] on a device.
pub(in crate::ops) fn residual_norm(
    op: &ResidualNorm,
    x: &CudaStorage,
    x_layout: &Layout,
    residual: &CudaStorage,
    residual_layout: &Layout,
) -> Result<()> {
    let (tokens, hidden) = dims2(x_layout, "x")?;
    if x_layout.shape() != residual_layout.shape() {
        bail!(
            "x {:?} and residual {:?} must have the same shape",
            x_layout.shape(),
            residual_layout.shape()
        );
    }
    let x_values = whole(x, x_layout, "x")?;
    let residual = whole(residual, residual_layout, "residual")?;
    let residual = residual.expect_type(x_values.dtype, "residual")?;
    let vector = |tensor, what| weight(tensor, hidden, DType::F32, what);
    let launch = Launch {
        file: "residual_norm",
        kernel: suffix(KERNELS, x_values.dtype, "x")?,
        grid: [tokens.div_ceil(ROWS) as u32, 1, 1],
        threads: 128,
        shared_bytes: 0,
    };
    let arguments = [
        (&x_values).into(),
        (&residual).into(),
        (&vector(&op.bias, "bias")?).into(),
        (&vector(&op.weight, "norm weight")?).into(),
        (&vector(&op.norm_bias, "norm bias")?).into(),
        op.epsilon.into(),
        (tokens as i32).into(),
        (hidden as i32).into(),
    ];
    // SAFETY: both matrices have `tokens · hidden` values of the kernel's type, the vectors `hidden`.
    unsafe { launch.run(&x.device, &arguments) }
}
