//! `y = x·Wᵀ (+ bias)`: the matrix product, with the weight laid out once, at load.
//!
//! ```text
//! x     [tokens, in]    f32
//! W     [out, in]       f32   as in the file
//! bias  [out]           f32   optional; mostly left to the op that comes after
//! y     [tokens, out]   f32
//! ```
//! On the CPU the weight is kept in *panels* of `COLUMNS` outputs, the layout into which a general
//! matrix product would copy it on every call (Goto & van de Geijn 2008, "Anatomy of
//! High-Performance Matrix Multiplication"). Knowing `W` beforehand saves that copy, which for a
//! batch of a few tokens is most of the work. Elsewhere it is candle's matmul.
//!
//! **Precision** ([`Compute`]). A panel is `[groups, COLUMNS]` words of 32 bits: a group of inputs
//! is one f32, two bf16, or four bytes, so the loops are the same for all three, and only their
//! innermost step differs (`dot`).
//! - bf16: both operands are rounded to it, products and sums are f32.
//! - int8: a weight is `s·q` with one `s` per output, `|q| ≤ 127`; an activation is `t·(r − z)`
//!   with one `t` and `z` per row, found as it comes, `0 ≤ r ≤ 255`. Then
//!   `y = s·t·(Σ q·r − z·Σ q)`, and all sums are exact integers: the same on every machine.
//!
//! **Tiling.** A block of rows of `x` stays in L2 while all panels pass over it; a piece of a
//! panel, at most 24 KiB, stays in L1 while the rows of the block pass over it, as many at a time
//! as their sums fit in registers: 12 rows by 32 outputs in 24 of 32 AVX-512 registers, 6 by 16 in
//! 12 of 16 AVX2 registers. Every row is summed in the same order whatever the batch around it, so
//! a row's result does not depend on the others, to the last bit.

mod activations;
pub(super) mod dot;
mod feed_forward;
mod panels;
mod product;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::activation::{Activation, BiasActivation};
use super::operand::{dims2, f32_values, read};
#[cfg(target_arch = "x86_64")]
use super::simd::bf16_is_there;
use super::values::MappedBytes;
use panels::Panels;
use product::{multiply, multiply_rows};

pub use feed_forward::FeedForward;

/// Inputs of a product in bytes whose sums an `i32` can hold.
const MAX_BYTE_INPUTS: usize = 65_536;

/// In which precision a product is computed on the CPU. Its input and output are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// f32 throughout.
    #[default]
    F32,
    /// Weights and activations in bf16, sums in f32.
    Bf16,
    /// Weights and activations in 8 bits, sums in 32.
    Int8,
}

impl Compute {
    /// Whether this machine has instructions for it, and so is faster with it than in f32 (by half
    /// or more). Without them a product in bf16 is no faster, but takes half of the memory.
    pub fn is_native(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let (pairs, bytes) = (bf16_is_there(), x86::vnni_is_there());
        #[cfg(not(target_arch = "x86_64"))]
        let (pairs, bytes) = (false, false);
        match self {
            Self::F32 => true,
            Self::Bf16 => pairs,
            Self::Int8 => bytes,
        }
    }

    /// As it stands in a file of prepared weights.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// A linear layer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    outputs: usize,
    bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
enum Weight {
    Panels(Arc<Panels>),
    /// `[out, in]`, on another device
    Rows(Tensor),
}

impl Linear {
    /// From a weight `[out, in]`, as files have it, and a bias `[out]` for [`Linear::apply`] to
    /// add (`None` where the next op adds it).
    ///
    /// # Errors
    /// If the weight is empty or has not two dimensions, or is on the CPU and not f32.
    pub fn new(weight: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        Self::with_compute(weight, bias, Compute::F32)
    }

    /// As [`Linear::new`], computed in another precision on the CPU; elsewhere, in f32.
    ///
    /// # Errors
    /// As [`Linear::new`], and if a row is too long to be summed in 8-bit products.
    pub fn with_compute(weight: &Tensor, bias: Option<Tensor>, compute: Compute) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        if outputs == 0 || inputs == 0 {
            bail!("a weight of shape [{outputs}, {inputs}] has no values");
        }
        if compute == Compute::Int8 && inputs > MAX_BYTE_INPUTS {
            bail!("{inputs} inputs are more than int8 sums up: {MAX_BYTE_INPUTS}");
        }
        let weight = if weight.device().is_cpu() {
            let weight = weight.contiguous()?;
            let values = read(&weight, "weight");
            let values = values.values(outputs * inputs)?;
            Weight::Panels(Arc::new(Panels::new(values, inputs, compute)))
        } else {
            Weight::Rows(weight.contiguous()?)
        };
        Ok(Self {
            weight,
            outputs,
            bias,
        })
    }

    /// Says which layout the panels have: a file of panels that was written under another name
    /// must not be read. To be changed with the layout.
    pub const LAYOUT: &str = "linear-32-1";

    /// As [`Linear::with_compute`] laid out a weight `[out, in]` on the CPU, in place.
    ///
    /// # Errors
    /// If the bytes are not as many as the panels', or not aligned.
    pub fn mapped(
        outputs: usize,
        inputs: usize,
        panels: MappedBytes,
        bias: Option<Tensor>,
        compute: Compute,
    ) -> Result<Self> {
        match Panels::mapped(panels, outputs, inputs, compute) {
            Some(panels) if outputs > 0 && inputs > 0 => Ok(Self {
                weight: Weight::Panels(Arc::new(panels)),
                outputs,
                bias,
            }),
            _ => bail!("these are not the panels of a weight of shape [{outputs}, {inputs}]"),
        }
    }

    /// In which precision it is computed.
    pub fn compute(&self) -> Compute {
        match &self.weight {
            Weight::Panels(panels) => panels.compute,
            Weight::Rows(_) => Compute::F32,
        }
    }

    /// The bytes that [`Linear::mapped`] takes; `None` elsewhere than on the CPU.
    pub fn panels(&self) -> Option<&[u8]> {
        match &self.weight {
            Weight::Panels(panels) => Some(panels.as_bytes()),
            Weight::Rows(_) => None,
        }
    }

    /// The same layer with another bias.
    #[must_use]
    pub fn with_bias(self, bias: Option<Tensor>) -> Self {
        Self { bias, ..self }
    }

    /// `[tokens, in]` to `[tokens, out]`.
    ///
    /// # Errors
    /// If shapes, dtypes or devices do not agree.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Panels(_) => x.apply_op1_no_bwd(self)?,
            Weight::Rows(weight) => x.matmul(&weight.t()?)?,
        };
        if let Some(bias) = &self.bias {
            BiasActivation(Activation::Identity).apply(&y, bias)?;
        }
        Ok(y)
    }

    /// As [`Linear::apply`] without the bias, on this thread alone: `[rows, in]` to `[rows, out]`.
    ///
    /// # Errors
    /// If shapes do not agree, or the weight is on another device.
    pub fn apply_rows(&self, y: &mut [f32], x: &[f32]) -> Result<()> {
        let panels = self.on_cpu()?;
        let inputs = panels.inputs;
        if !x.len().is_multiple_of(inputs) || y.len() != x.len() / inputs * self.outputs {
            let (x, y, outputs) = (x.len(), y.len(), self.outputs);
            bail!("{x} values through a weight of shape [{outputs}, {inputs}] are not {y}");
        }
        multiply_rows(y, x, panels, self.outputs);
        Ok(())
    }

    /// Whether [`Linear::apply_rows`] can run.
    pub fn is_on_cpu(&self) -> bool {
        matches!(self.weight, Weight::Panels(_))
    }

    fn on_cpu(&self) -> Result<&Panels> {
        match &self.weight {
            Weight::Panels(panels) => Ok(panels),
            Weight::Rows(_) => bail!("x must be on the device of the weight"),
        }
    }

    /// Number of output features.
    pub fn out_features(&self) -> usize {
        self.outputs
    }

    /// Bytes that the weight takes up, the last panel's padding among them.
    pub fn memory_bytes(&self) -> usize {
        match &self.weight {
            Weight::Panels(panels) => panels.as_bytes().len(),
            Weight::Rows(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
        }
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, inputs) = dims2(layout, "x")?;
        let x = f32_values(x, layout, "x")?;
        let panels = self.on_cpu()?;
        if inputs != panels.inputs {
            bail!("x has {inputs} features, the weight {}", panels.inputs);
        }
        let mut y = vec![0f32; rows * self.outputs];
        multiply(&mut y, x, panels, self.outputs);
        Ok((CpuStorage::F32(y), (rows, self.outputs).into()))
    }
}
