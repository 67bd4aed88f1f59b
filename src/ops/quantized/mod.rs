//! `y = x·Wᵀ (+ bias)` over weights in the quantized formats of GGML files.
//!
//! ```text
//! x     [tokens, in]       f32
//! Wᵢ    [outᵢ, in]         quantized, each in its own format; or f32, f16, bf16
//! bias  [Σ outᵢ]           f32, optional
//! y     [tokens, Σ outᵢ]   f32
//! ```
//! Several weights may lie side by side (q, k and v; gate and up): they share the quantization of
//! `x` and one round through the threads.
//!
//! At load a weight is laid out anew, in panels of 16 outputs (`codes`, `scaled`, `superblocks`,
//! `plain`), at the bits per weight that the file has (`Q4_K` and `Q5_K` 3% more; `Q2_K` and `Q3_K`
//! take 4 bits per code). To multiply, `x` is quantized to 8 bits (`activations`), and the sums within a block are
//! integers (`machine`), scaled and added up in f32. A row of `y` is computed in the same order
//! whatever the batch around it: it does not depend on the other rows, to the last bit.

mod activations;
mod blocks;
mod codes;
mod layout;
mod machine;
mod panels;
mod plain;
mod product;
mod scaled;
mod superblocks;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::activation::{Activation, BiasActivation};
use super::operand::{dims2, f32_values};
use super::parallel::for_row_blocks;
use super::values::MappedBytes;
use activations::{Blocks32, Blocks256};
use panels::{Activations, Form, Panels};
use product::Product;

/// A weight `[out, in]` in panels, for one or more layers; cheap to clone.
#[derive(Debug, Clone)]
pub struct QuantizedWeight(Panels);

impl QuantizedWeight {
    /// Says which layout the panels have: a file of panels that was written under another name
    /// must not be read. To be changed with the layout of any format.
    pub const LAYOUT: &str = "quantized-16-1";

    /// Lays out a weight on the CPU. It is copied, and may be dropped.
    ///
    /// # Errors
    /// If it is empty or not a matrix, is not on the CPU or of type `Q8K`, which only activations
    /// have.
    pub fn new(weight: &QTensor) -> Result<Self> {
        Panels::new(weight).map(Self)
    }

    /// Lays out the blocks of a weight as a GGML file has them, without a copy of them between.
    ///
    /// # Errors
    /// If they are not those of such a weight, or of type `Q8K`.
    pub fn of_blocks(
        dtype: GgmlDType,
        outputs: usize,
        inputs: usize,
        blocks: &[u8],
    ) -> Result<Self> {
        Panels::of_blocks(dtype, outputs, inputs, blocks).map(Self)
    }

    /// As [`QuantizedWeight::new`] laid out a weight of that type and shape, in place.
    ///
    /// # Errors
    /// If the sections are not as many or not as long as the weight's.
    pub fn mapped(
        dtype: GgmlDType,
        outputs: usize,
        inputs: usize,
        sections: &[MappedBytes],
    ) -> Result<Self> {
        Panels::found(dtype, outputs, inputs, sections).map(Self)
    }

    /// The bytes that [`QuantizedWeight::mapped`] takes.
    pub fn sections(&self) -> Vec<&[u8]> {
        self.0.sections()
    }
}

/// A linear layer over one or more quantized weights; cheap to clone.
#[derive(Debug, Clone)]
pub struct QuantizedLinear {
    parts: Arc<[Panels]>,
    inputs: usize,
    outputs: usize,
    bias: Option<Tensor>,
}

impl QuantizedLinear {
    /// From weights `[outᵢ, in]` on the CPU, whose outputs follow each other in `y`, and a bias
    /// `[Σ outᵢ]`. The weights are copied, and may be dropped.
    ///
    /// # Errors
    /// If there is no weight, one is empty or not a matrix, is not on the CPU or of type `Q8K`
    /// (which only activations have), or if the weights differ in `in`.
    pub fn new(parts: &[QTensor], bias: Option<Tensor>) -> Result<Self> {
        let parts = parts.iter().map(QuantizedWeight::new);
        Self::of(parts.collect::<Result<_>>()?, bias)
    }

    /// As [`QuantizedLinear::new`], of weights that are laid out already.
    ///
    /// # Errors
    /// If there is no weight, or they differ in `in`.
    pub fn of(parts: Vec<QuantizedWeight>, bias: Option<Tensor>) -> Result<Self> {
        let parts: Arc<[Panels]> = parts.into_iter().map(|weight| weight.0).collect();
        let Some(first) = parts.first() else {
            bail!("a linear layer needs a weight");
        };
        let inputs = first.inputs;
        if let Some(other) = parts.iter().find(|part| part.inputs != inputs) {
            let found = other.inputs;
            bail!("weights side by side must have as many inputs: {inputs} and {found}");
        }
        let outputs = parts.iter().map(|part| part.outputs).sum();
        if let Some(bias) = &bias
            && bias.dims() != [outputs]
        {
            bail!("the bias must have {outputs} values, is {:?}", bias.dims());
        }
        Ok(Self {
            parts,
            inputs,
            outputs,
            bias,
        })
    }

    /// `[tokens, in]` to `[tokens, Σ outᵢ]`.
    ///
    /// A row with a value that is not finite gives values that mean nothing; other rows are not
    /// touched by it.
    ///
    /// # Errors
    /// If `x` is not contiguous f32 on the CPU, `[tokens, in]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.apply_op1_no_bwd(self)?;
        if let Some(bias) = &self.bias {
            BiasActivation(Activation::Identity).apply(&y, bias)?;
        }
        Ok(y)
    }

    /// Rows of the weight, dequantized and multiplied with `scale`: `[ids.len(), in]`. For an
    /// embedding that shares its table with the head. Weights side by side are one table, from
    /// first to last.
    ///
    /// # Errors
    /// If an id is not below [`QuantizedLinear::out_features`].
    pub fn rows(&self, ids: &[u32], scale: f32) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.outputs) {
            bail!("there is no row {id} in a table of {}", self.outputs);
        }
        let mut values = vec![0f32; ids.len() * self.inputs];
        for_row_blocks(&mut values, self.inputs, |first, block| {
            let rows = block.chunks_exact_mut(self.inputs);
            for (values, &id) in rows.zip(&ids[first..]) {
                let mut row = id as usize;
                for part in &*self.parts {
                    if row < part.outputs {
                        part.row(row, values);
                        break;
                    }
                    row -= part.outputs;
                }
                for value in values {
                    *value *= scale;
                }
            }
        });
        Tensor::from_vec(values, (ids.len(), self.inputs), &Device::Cpu)
    }

    /// Number of output features, `Σ outᵢ`.
    pub fn out_features(&self) -> usize {
        self.outputs
    }

    /// Bytes that the weights take up.
    pub fn memory_bytes(&self) -> usize {
        self.parts.iter().map(Panels::memory_bytes).sum()
    }

    /// `x` in the forms that the weights need.
    fn quantize<'a>(&self, x: &'a [f32]) -> Activations<'a> {
        let needs = |form| self.parts.iter().any(|part| part.form() == form);
        Activations {
            plain: x,
            blocks32: needs(Form::Blocks32).then(|| Blocks32::quantize(x)),
            blocks256: needs(Form::Blocks256).then(|| Blocks256::quantize(x)),
        }
    }
}

impl CustomOp1 for QuantizedLinear {
    fn name(&self) -> &'static str {
        "quantized_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = dims2(layout, "x")?;
        let x = f32_values(x, layout, "x")?;
        if inputs != self.inputs {
            bail!("x has {inputs} features, the weight {}", self.inputs);
        }
        let mut y = vec![0f32; rows * self.outputs];
        let product = Product {
            parts: &self.parts,
            x: &self.quantize(x),
            inputs,
            outputs: self.outputs,
        };
        product.compute(&mut y);
        Ok((CpuStorage::F32(y), (rows, self.outputs).into()))
    }
}
