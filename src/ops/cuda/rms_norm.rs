//! Launches of `kernels/rms_norm.cu`.

use candle_core::{CudaStorage, DType, Layout, Result, Shape, bail};

use super::super::operand::dims2;
use super::super::{ResidualRmsNorm, RmsNorm};
use super::{Launch, Operand, output, suffix, weight, whole};

/// Threads of a block, which does a row.
const THREADS: u32 = 256;

const ALONE: [&str; 3] = [
    "ferry_rms_norm_f32",
    "ferry_rms_norm_f16",
    "ferry_rms_norm_bf16",
];
const RESIDUAL: [&str; 3] = [
    "ferry_residual_rms_norm_f32",
    "ferry_residual_rms_norm_f16",
    "ferry_residual_rms_norm_bf16",
];

fn launch(kernel: &'static str, tokens: usize) -> Launch {
    Launch {
        file: "rms_norm",
        kernel,
        grid: [tokens as u32, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
    }
}

fn gain(norm: &RmsNorm, n: usize, what: &str) -> Result<Operand> {
    weight(norm.weight(), n, DType::F32, what)
}

/// [`RmsNorm`] on a device.
pub(in crate::ops) fn rms_norm(
    op: &RmsNorm,
    x: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (tokens, n) = dims2(layout, "x")?;
    let values = whole(x, layout, "x")?;
    let shape = Shape::from((tokens, n));
    let (y, y_values) = output(&x.device, &shape, values.dtype)?;
    let arguments = [
        (&y_values).into(),
        (&values).into(),
        (&gain(op, n, "norm weight")?).into(),
        (n as i32).into(),
        op.epsilon().into(),
    ];
    let launch = launch(suffix(ALONE, values.dtype, "x")?, tokens);
    // SAFETY: `x` and `y` have `tokens · n` values of the kernel's type, the weight `n`.
    unsafe { launch.run(&x.device, &arguments)? };
    Ok((y, shape))
}

/// [`ResidualRmsNorm`] on a device: `x` is written to, and `y` is new.
pub(in crate::ops) fn residual_rms_norm(
    op: &ResidualRmsNorm,
    x: &CudaStorage,
    x_layout: &Layout,
    delta: &CudaStorage,
    delta_layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (tokens, n) = dims2(x_layout, "x")?;
    if x_layout.shape() != delta_layout.shape() {
        bail!(
            "x {:?} and delta {:?} must have the same shape",
            x_layout.shape(),
            delta_layout.shape()
        );
    }
    let x_values = whole(x, x_layout, "x")?;
    let delta_values = whole(delta, delta_layout, "delta")?.expect_type(x_values.dtype, "delta")?;
    let (post, next) = op.norms();
    let post_gain = post.map(|post| gain(post, n, "post weight")).transpose()?;
    let shape = Shape::from((tokens, n));
    let (y, y_values) = output(&x.device, &shape, x_values.dtype)?;
    let arguments = [
        (&y_values).into(),
        (&x_values).into(),
        (&delta_values).into(),
        post_gain.as_ref().into(),
        (&gain(next, n, "norm weight")?).into(),
        (n as i32).into(),
        post.map_or(0.0, RmsNorm::epsilon).into(),
        next.epsilon().into(),
    ];
    let launch = launch(suffix(RESIDUAL, x_values.dtype, "x")?, tokens);
    // SAFETY: the matrices have `tokens · n` values of the kernel's type, the weights `n`.
    unsafe { launch.run(&x.device, &arguments)? };
    Ok((y, shape))
}
