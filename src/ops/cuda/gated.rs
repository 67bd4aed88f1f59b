//! Launch of `kernels/gated.cu`.

use candle_core::{CudaStorage, Layout, Result, Shape, bail};

use super::super::GatedActivation;
use super::super::operand::dims2;
use super::{Launch, activation_code, output, suffix, whole};

/// Threads of a block, each with 16 bytes of `y`.
const THREADS: u32 = 256;

/// The kernels by the type of `gate_up`.
const KERNELS: [&str; 3] = ["ferry_gated_f32", "ferry_gated_f16", "ferry_gated_bf16"];

/// [`GatedActivation`] on a device.
pub(in crate::ops) fn gated(
    op: GatedActivation,
    gate_up: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (tokens, width) = dims2(layout, "gate_up")?;
    if width % 2 != 0 {
        bail!("gate_up of width {width} does not split in gate and up");
    }
    let n = width / 2;
    let x = whole(gate_up, layout, "gate_up")?;
    let shape = Shape::from((tokens, n));
    let (y, y_values) = output(&gate_up.device, &shape, x.dtype)?;
    let columns = THREADS as usize * 16 / x.dtype.size_in_bytes();
    let launch = Launch {
        file: "gated",
        kernel: suffix(KERNELS, x.dtype, "gate_up")?,
        grid: [tokens as u32, n.div_ceil(columns) as u32, 1],
        threads: THREADS,
        shared_bytes: 0,
    };
    let arguments = [
        (&y_values).into(),
        (&x).into(),
        (n as i32).into(),
        activation_code(op.0).into(),
    ];
    // SAFETY: `gate_up` has `tokens · 2n` values of the kernel's type and `y` half as many.
    unsafe { launch.run(&gate_up.device, &arguments)? };
    Ok((y, shape))
}
