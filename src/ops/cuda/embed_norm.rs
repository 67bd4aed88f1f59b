//! Launch of `kernels/embed_norm.cu`.

use candle_core::{CudaStorage, DType, Layout, Result, Shape, Tensor, bail};

use super::super::{EmbedNorm, WordTable};
use super::{Launch, Operand, output, suffix, weight, whole};

/// Tokens of a block, a warp each.
const TOKENS: usize = 4;

/// The kernels by the type of the tables.
const KERNELS: [&str; 3] = [
    "ferry_embed_norm_f32",
    "ferry_embed_norm_f16",
    "ferry_embed_norm_bf16",
];

/// A list of u32 values with its layout.
type List<'a> = (&'a CudaStorage, &'a Layout);

/// [`EmbedNorm`] on a device. A token, type or position that lies outside of its table makes its row
/// NaN: who calls has checked them on the host.
pub(in crate::ops) fn embed_norm(
    op: &EmbedNorm,
    tokens: List<'_>,
    type_ids: List<'_>,
    cu_seqlens: List<'_>,
) -> Result<(CudaStorage, Shape)> {
    let list =
        |(storage, layout), what| whole(storage, layout, what)?.expect_type(DType::U32, what);
    let device = &tokens.0.device;
    let tokens = list(tokens, "tokens")?;
    let type_ids = list(type_ids, "type ids")?.expect_len(tokens.len, "type ids")?;
    let cu_seqlens = list(cu_seqlens, "cu_seqlens")?;
    let rows = cu_seqlens.len.saturating_sub(1);
    if rows == 0 {
        bail!("a batch on a device has at least one row");
    }
    let WordTable::Dense(words) = &op.word else {
        bail!("on a device the word embeddings must be dense");
    };
    let (vocabulary, hidden) = words.dims2()?;
    let dtype = words.dtype();
    let word = weight(words, vocabulary * hidden, dtype, "word embedding")?;
    let table = |table: Option<&Tensor>, what| -> Result<Option<(Operand, usize)>> {
        let Some(table) = table else { return Ok(None) };
        let count = table.dim(0)?;
        Ok(Some((weight(table, count * hidden, dtype, what)?, count)))
    };
    let position = table(op.position.as_ref(), "position embedding")?;
    let token_type = table(op.token_type.as_ref(), "type embedding")?;
    let operand = |table: &Option<(Operand, usize)>| table.as_ref().map(|(values, _)| *values);
    let count = |table: &Option<(Operand, usize)>| table.map_or(0, |(_, count)| count as i32);
    let shape = Shape::from((tokens.len, hidden));
    let (y, y_values) = output(device, &shape, dtype)?;
    let launch = Launch {
        file: "embed_norm",
        kernel: suffix(KERNELS, dtype, "word embedding")?,
        grid: [tokens.len.div_ceil(TOKENS) as u32, 1, 1],
        threads: 128,
        shared_bytes: 0,
    };
    let arguments = [
        (&y_values).into(),
        (&tokens).into(),
        (&type_ids).into(),
        (&cu_seqlens).into(),
        (&word).into(),
        operand(&position).as_ref().into(),
        operand(&token_type).as_ref().into(),
        (&weight(&op.weight, hidden, DType::F32, "norm weight")?).into(),
        (&weight(&op.bias, hidden, DType::F32, "norm bias")?).into(),
        op.epsilon.into(),
        (tokens.len as i32).into(),
        (rows as i32).into(),
        (hidden as i32).into(),
        (vocabulary as i32).into(),
        count(&position).into(),
        count(&token_type).into(),
        (op.position_offset as i32).into(),
    ];
    // SAFETY: the lists have a value for each token and an end for each row, the tables as many rows
    // as is said, `y` a row for each token; indices beyond them are not followed.
    unsafe { launch.run(device, &arguments)? };
    Ok((y, shape))
}
