//! Embedding lookup and its layer norm: the first op of an encoder.
//!
//! ```text
//! y[t] = LayerNorm( word[token[t]] + position[p(t)] + type[type_id[t]] )
//! p(t) = t − cu_seqlens[row of t] + position_offset
//!
//! token, type_id  [tokens]     u32        word      [vocabulary, hidden]   f32, or quantized
//! cu_seqlens      [rows + 1]   u32        position  [positions, hidden]    f32, optional
//! y               [tokens, hidden]  f32   type      [types, hidden]        f32, optional
//! ```
//! `BertEmbeddings` of Devlin et al. 2018 (arXiv:1810.04805). `RoBERTa` begins its positions at
//! `padding_idx + 1`; `DistilBERT` has no types.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::QuantizedLinear;
use super::layer_norm::{NormWeights, normalize_row};
use super::operand::{check_cu_seqlens, read, u32_values};
use super::parallel::for_row_blocks;
use super::simd::{Arithmetic, Kernel, dispatch};
use super::values::Values;

/// The embeddings of words, `[vocabulary, hidden]`.
#[derive(Debug, Clone)]
pub enum WordTable {
    /// f32, on any device.
    Dense(Tensor),
    /// f32, row by row on the CPU, perhaps in a mapped file.
    Rows {
        /// The values of all rows.
        values: Values<f32>,
        /// Values of a row.
        hidden: usize,
    },
    /// Quantized; rows are dequantized as they are looked up.
    Quantized(QuantizedLinear),
}

/// The op with its tables and norm weights, f32 but for the words.
#[derive(Debug, Clone)]
pub struct EmbedNorm {
    /// `[vocabulary, hidden]`
    pub word: WordTable,
    /// `[positions, hidden]`, learned absolute positions.
    pub position: Option<Tensor>,
    /// `[types, hidden]`, token types (segments).
    pub token_type: Option<Tensor>,
    /// Gain `γ`, `[hidden]`.
    pub weight: Tensor,
    /// Offset `β`, `[hidden]`.
    pub bias: Tensor,
    /// `ε` under the root.
    pub epsilon: f32,
    /// Index in `position` of a row's first token.
    pub position_offset: usize,
}

impl EmbedNorm {
    /// Looks up and normalises all tokens of a packed batch, to `[tokens, hidden]`.
    ///
    /// # Errors
    /// If a token, type or position lies outside its table, or shapes, dtypes or devices do not
    /// agree.
    pub fn apply(&self, tokens: &Tensor, type_ids: &Tensor, cu_seqlens: &Tensor) -> Result<Tensor> {
        tokens.apply_op3_no_bwd(type_ids, cu_seqlens, self)
    }

    /// Positions of the tokens in the position table, row by row.
    fn positions(&self, cu_seqlens: &[u32], tokens: usize) -> Vec<u32> {
        let offset = self.position_offset as u32;
        let mut positions = Vec::with_capacity(tokens);
        for row in cu_seqlens.windows(2) {
            positions.extend((0..row[1] - row[0]).map(|position| position + offset));
        }
        positions
    }
}

impl CustomOp3 for EmbedNorm {
    fn name(&self) -> &'static str {
        "embed-norm"
    }

    fn cpu_fwd(
        &self,
        tokens: &CpuStorage,
        tokens_layout: &Layout,
        type_ids: &CpuStorage,
        type_ids_layout: &Layout,
        cu_seqlens: &CpuStorage,
        cu_seqlens_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let tokens = u32_values(tokens, tokens_layout, "tokens")?;
        let type_ids = u32_values(type_ids, type_ids_layout, "type ids")?;
        let cu_seqlens = u32_values(cu_seqlens, cu_seqlens_layout, "cu_seqlens")?;
        check_cu_seqlens(cu_seqlens, tokens.len())?;
        if type_ids.len() != tokens.len() {
            let (types, tokens) = (type_ids.len(), tokens.len());
            bail!("{types} type ids for {tokens} tokens");
        }
        let (words, word_indices);
        let word_tensor;
        let (table, indices, hidden) = match &self.word {
            WordTable::Dense(table) => {
                let (vocabulary, hidden) = table.dims2()?;
                check_indices(tokens, vocabulary, "token")?;
                word_tensor = read(table, "word embedding");
                (word_tensor.values(vocabulary * hidden)?, tokens, hidden)
            }
            WordTable::Rows { values, hidden } => {
                check_indices(tokens, values.len() / (*hidden).max(1), "token")?;
                (&values[..], tokens, *hidden)
            }
            WordTable::Quantized(table) => {
                check_indices(tokens, table.out_features(), "token")?;
                // A table of this batch's words alone, in their order.
                words = table.rows(tokens, 1.0)?;
                word_indices = (0..tokens.len() as u32).collect::<Vec<u32>>();
                let (rows, hidden) = words.dims2()?;
                word_tensor = read(&words, "word embedding");
                (
                    word_tensor.values(rows * hidden)?,
                    &word_indices[..],
                    hidden,
                )
            }
        };
        let word = Lookup { table, indices };

        let mut added = Vec::with_capacity(2);
        let positions;
        let (position_table, type_table);
        if let Some(table) = &self.position {
            positions = self.positions(cu_seqlens, tokens.len());
            let count = table.dim(0)?;
            check_indices(&positions, count, "position")?;
            position_table = read(table, "position embedding");
            added.push(Lookup {
                table: position_table.values(count * hidden)?,
                indices: &positions,
            });
        }
        if let Some(table) = &self.token_type {
            let count = table.dim(0)?;
            check_indices(type_ids, count, "type id")?;
            type_table = read(table, "type embedding");
            added.push(Lookup {
                table: type_table.values(count * hidden)?,
                indices: type_ids,
            });
        }

        let weight = read(&self.weight, "norm weight");
        let bias = read(&self.bias, "norm bias");
        let norm = NormWeights {
            weight: weight.values(hidden)?,
            bias: bias.values(hidden)?,
            epsilon: self.epsilon,
        };
        let mut out = vec![0f32; tokens.len() * hidden];
        for_row_blocks(&mut out, hidden, |first, rows| {
            dispatch(EmbedRows {
                rows,
                first,
                word,
                added: &added,
                norm,
            });
        });
        Ok((CpuStorage::F32(out), (tokens.len(), hidden).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        tokens: &CudaStorage,
        tokens_layout: &Layout,
        type_ids: &CudaStorage,
        type_ids_layout: &Layout,
        cu_seqlens: &CudaStorage,
        cu_seqlens_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::cuda::embed_norm(
            self,
            (tokens, tokens_layout),
            (type_ids, type_ids_layout),
            (cu_seqlens, cu_seqlens_layout),
        )
    }
}

/// A table of rows and, for each token, which row it takes.
#[derive(Clone, Copy)]
struct Lookup<'a> {
    table: &'a [f32],
    indices: &'a [u32],
}

impl Lookup<'_> {
    #[inline(always)]
    fn row(&self, token: usize, hidden: usize) -> &[f32] {
        &self.table[self.indices[token] as usize * hidden..][..hidden]
    }
}

struct EmbedRows<'a> {
    rows: &'a mut [f32],
    /// Token of the first row.
    first: usize,
    word: Lookup<'a>,
    added: &'a [Lookup<'a>],
    norm: NormWeights<'a>,
}

impl Kernel for EmbedRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let hidden = self.norm.weight.len();
        for (token, row) in (self.first..).zip(self.rows.chunks_exact_mut(hidden)) {
            row.copy_from_slice(self.word.row(token, hidden));
            for lookup in self.added {
                for (x, e) in row.iter_mut().zip(lookup.row(token, hidden)) {
                    *x += e;
                }
            }
            normalize_row::<A>(row, self.norm);
        }
    }
}

fn check_indices(indices: &[u32], rows: usize, what: &str) -> Result<()> {
    match indices.iter().max() {
        Some(&largest) if largest as usize >= rows => {
            bail!("{what} {largest} is outside its embedding table of {rows} rows")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Random, cu_seqlens, indices, layer_norm_f64, max_error};
    use super::*;
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QTensor};

    fn op(hidden: usize, with_position: bool, with_type: bool, offset: usize) -> Result<EmbedNorm> {
        let mut random = Random::new(hidden as u64);
        let mut table = |rows: usize| {
            Tensor::from_vec(
                random.values(rows * hidden, 1.0),
                (rows, hidden),
                &Device::Cpu,
            )
        };
        Ok(EmbedNorm {
            word: WordTable::Dense(table(50)?),
            position: with_position.then(|| table(40)).transpose()?,
            token_type: with_type.then(|| table(2)).transpose()?,
            weight: table(1)?.flatten_all()?,
            bias: table(1)?.flatten_all()?,
            epsilon: 1e-5,
            position_offset: offset,
        })
    }

    fn dense(table: &WordTable) -> &Tensor {
        match table {
            WordTable::Dense(table) => table,
            WordTable::Rows { .. } | WordTable::Quantized(_) => panic!("a dense table"),
        }
    }

    #[test]
    fn a_quantized_table_gives_what_its_dequantized_values_give() -> Result<()> {
        let mut op = op(32, true, true, 0)?;
        let quantized = QTensor::quantize(dense(&op.word), GgmlDType::Q8_0)?;
        let tokens = indices(&[3, 49, 0, 3])?;
        let (types, ends) = (indices(&[0, 1, 1, 0])?, indices(&[0, 3, 4])?);
        op.word = WordTable::Dense(quantized.dequantize(&Device::Cpu)?);
        let expected = op.apply(&tokens, &types, &ends)?.to_vec2::<f32>()?;
        op.word = WordTable::Quantized(QuantizedLinear::new(&[quantized], None)?);
        assert_eq!(
            op.apply(&tokens, &types, &ends)?.to_vec2::<f32>()?,
            expected
        );
        let error = op.apply(&indices(&[50])?, &indices(&[0])?, &indices(&[0, 1])?);
        assert!(error.is_err_and(|error| error.to_string().contains("token 50")));
        Ok(())
    }

    #[test]
    fn equals_the_f64_reference_with_and_without_tables() -> Result<()> {
        let lengths = [1, 0, 7, 33, 2];
        let total: usize = lengths.iter().sum();
        let mut random = Random::new(9);
        for (hidden, position, types, offset) in [
            (8, true, true, 0),
            (33, true, false, 2),
            (1, false, true, 0),
            (384, false, false, 0),
        ] {
            let op = op(hidden, position, types, offset)?;
            let tokens = random.indices(total, 50);
            let type_ids = random.indices(total, 2);
            let ends = cu_seqlens(&lengths);
            let got = op.apply(&indices(&tokens)?, &indices(&type_ids)?, &indices(&ends)?)?;

            let positions: Vec<u32> = lengths
                .iter()
                .flat_map(|l| (0..*l as u32).map(|p| p + offset as u32))
                .collect();
            let mut sum = vec![0f64; total * hidden];
            for (table, index) in [
                (Some(dense(&op.word)), &tokens),
                (op.position.as_ref(), &positions),
                (op.token_type.as_ref(), &type_ids),
            ] {
                let Some(table) = table else { continue };
                let table = table.to_vec2::<f32>()?;
                for (t, i) in index.iter().enumerate() {
                    for h in 0..hidden {
                        sum[t * hidden + h] += f64::from(table[*i as usize][h]);
                    }
                }
            }
            let expected = layer_norm_f64(&sum, &op.weight.to_vec1()?, &op.bias.to_vec1()?, 1e-5);
            assert_eq!(got.dims(), [total, hidden]);
            let error = max_error(&got.flatten_all()?.to_vec1()?, &expected);
            assert!(error < 4e-6, "hidden {hidden}: {error:e}");

            let values = dense(&op.word).flatten_all()?.to_vec1()?.into();
            let in_place = EmbedNorm {
                word: WordTable::Rows { values, hidden },
                ..op.clone()
            };
            let again =
                in_place.apply(&indices(&tokens)?, &indices(&type_ids)?, &indices(&ends)?)?;
            assert_eq!(again.to_vec2::<f32>()?, got.to_vec2::<f32>()?);
        }
        Ok(())
    }

    #[test]
    fn an_index_outside_its_table_is_an_error() -> Result<()> {
        let op = op(4, true, true, 0)?;
        let run = |tokens: &[u32], types: &[u32], ends: &[u32]| -> Result<String> {
            let result = op.apply(&indices(tokens)?, &indices(types)?, &indices(ends)?);
            Ok(result.err().map(|e| e.to_string()).unwrap_or_default())
        };
        assert!(run(&[50], &[0], &[0, 1])?.contains("token 50"));
        assert!(run(&[u32::MAX], &[0], &[0, 1])?.contains("token"));
        assert!(run(&[1], &[2], &[0, 1])?.contains("type id 2"));
        assert!(run(&[1; 41], &[0; 41], &[0, 41])?.contains("position 40"));
        assert!(run(&[1; 3], &[0; 3], &[0, 2])?.contains("cu_seqlens"));
        assert!(run(&[1; 3], &[0; 3], &[0, 5, 3])?.contains("cu_seqlens"));
        Ok(())
    }
}
