//! Launch of `kernels/attention.cu`.

use candle_core::{CudaStorage, DType, Layout, Result, Shape, bail};

use super::super::Attention;
use super::super::operand::dims2;
use super::{Launch, output, suffix, weight, whole};

/// Threads of a block.
const THREADS: u32 = 128;
/// Rows of a launch at most: a grid's third dimension.
const MAX_ROWS: usize = 65_535;

/// Kernels for heads of up to 32, 64 and 128 dimensions, by the type of `qkv`.
const KERNELS: [(usize, [&str; 3]); 3] = [
    (
        32,
        [
            "ferry_attention_f32_d32",
            "ferry_attention_f16_d32",
            "ferry_attention_bf16_d32",
        ],
    ),
    (
        64,
        [
            "ferry_attention_f32_d64",
            "ferry_attention_f16_d64",
            "ferry_attention_bf16_d64",
        ],
    ),
    (
        128,
        [
            "ferry_attention_f32_d128",
            "ferry_attention_f16_d128",
            "ferry_attention_bf16_d128",
        ],
    ),
];

/// [`Attention`] on a device, over rows of at most `longest` tokens.
pub(in crate::ops) fn attention(
    op: &Attention,
    longest: usize,
    qkv: &CudaStorage,
    qkv_layout: &Layout,
    cu_seqlens: &CudaStorage,
    cu_seqlens_layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (tokens, width) = dims2(qkv_layout, "qkv")?;
    let hidden = width / 3;
    if op.heads == 0 || width != 3 * hidden || hidden % op.heads != 0 || hidden == 0 {
        bail!(
            "qkv of width {width} does not split in three of {} heads",
            op.heads
        );
    }
    let dim = hidden / op.heads;
    let Some((padded, kernels)) = KERNELS.iter().find(|(padded, _)| dim <= *padded) else {
        bail!("attention on a device takes heads of up to 128 dimensions, these have {dim}");
    };
    let values = whole(qkv, qkv_layout, "qkv")?;
    let ends = whole(cu_seqlens, cu_seqlens_layout, "cu_seqlens")?
        .expect_type(DType::U32, "cu_seqlens")?;
    let rows = ends.len.saturating_sub(1);
    if rows == 0 || rows > MAX_ROWS {
        bail!("a batch on a device has 1 to {MAX_ROWS} rows, not {rows}");
    }
    let bias = op.bias.as_ref();
    let bias = bias.map(|bias| weight(bias, width, DType::F32, "qkv bias"));
    let bias = bias.transpose()?;
    let shape = Shape::from((tokens, hidden));
    let (y, y_values) = output(&qkv.device, &shape, values.dtype)?;
    let queries = if values.dtype == DType::F32 && *padded == 128 {
        32
    } else {
        64
    };
    let launch = Launch {
        file: "attention",
        kernel: suffix(*kernels, values.dtype, "qkv")?,
        grid: [
            longest.min(tokens).div_ceil(queries) as u32,
            op.heads as u32,
            rows as u32,
        ],
        threads: THREADS,
        shared_bytes: 0,
    };
    let arguments = [
        (&y_values).into(),
        (&values).into(),
        bias.as_ref().into(),
        (&ends).into(),
        (hidden as i32).into(),
        (dim as i32).into(),
    ];
    // SAFETY: `qkv` has `tokens · 3 · hidden` values of the kernel's type, `y` a third of that, the
    // bias as many as a row; the ends were checked before they were uploaded.
    unsafe { launch.run(&qkv.device, &arguments)? };
    Ok((y, shape))
}
