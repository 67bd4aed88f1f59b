//! Launch of `kernels/pool.cu`.

use candle_core::{CudaStorage, DType, Layout, Result, Shape, bail};

use super::super::operand::dims2;
use super::super::{Pool, Pooling};
use super::{Launch, output, suffix, whole};

/// The kernels by the type of `x`.
const KERNELS: [&str; 3] = ["ferry_pool_f32", "ferry_pool_f16", "ferry_pool_bf16"];

/// [`Pool`] on a device; the vectors are f32, whatever `x` is. A row without tokens becomes NaN: who
/// calls has looked for them on the host.
pub(in crate::ops) fn pool(
    op: Pool,
    x: &CudaStorage,
    x_layout: &Layout,
    cu_seqlens: &CudaStorage,
    cu_seqlens_layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (_, hidden) = dims2(x_layout, "x")?;
    let values = whole(x, x_layout, "x")?;
    let ends = whole(cu_seqlens, cu_seqlens_layout, "cu_seqlens")?
        .expect_type(DType::U32, "cu_seqlens")?;
    let rows = ends.len.saturating_sub(1);
    let dimension = op.dimension.unwrap_or(hidden);
    if dimension == 0 || dimension > hidden {
        bail!("dimension {dimension} is not in 1..={hidden}");
    }
    let shape = Shape::from((rows, dimension));
    let (y, y_values) = output(&x.device, &shape, DType::F32)?;
    let launch = Launch {
        file: "pool",
        kernel: suffix(KERNELS, values.dtype, "x")?,
        grid: [rows as u32, 1, 1],
        threads: 256,
        shared_bytes: 0,
    };
    let pooling = match op.pooling {
        Pooling::Mean => 0,
        Pooling::Cls => 1,
        Pooling::Last => 2,
    };
    let arguments = [
        (&y_values).into(),
        (&values).into(),
        (&ends).into(),
        (hidden as i32).into(),
        (dimension as i32).into(),
        pooling.into(),
        i32::from(op.normalize).into(),
    ];
    // SAFETY: `y` has `dimension` values for each row; the ends, which were checked before they were
    // uploaded, are of rows of `x`.
    unsafe { launch.run(&x.device, &arguments)? };
    Ok((y, shape))
}
