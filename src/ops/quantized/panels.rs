//! A weight in panels of [`LANES`] outputs, whatever its format.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, bail};

use super::activations::{Blocks32, Blocks256, SUPER, UNIT};
use super::blocks;
use super::codes::{Bytes, Nibbles, NibblesAndBit, NibblesAndTwoBits};
use super::machine::LANES;
use super::plain::{Bf16, F16, Plain};
use super::product::Piece;
use super::scaled::{Format32, Scaled};
use super::superblocks::{Format256, Super};

/// A weight `[outputs, inputs]`.
#[derive(Debug)]
pub(super) struct Panels {
    pub outputs: usize,
    pub inputs: usize,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    /// `Q4_0`, `Q4_1`
    Scaled4(Scaled<Nibbles>),
    /// `Q5_0`, `Q5_1`
    Scaled5(Scaled<NibblesAndBit>),
    /// `Q8_0`
    Scaled8(Scaled<Bytes>),
    /// `Q2_K`, `Q3_K`
    Super4Split(Super<Nibbles, true>),
    /// `Q4_K`
    Super4(Super<Nibbles, false>),
    /// `Q5_K`
    Super5(Super<NibblesAndBit, false>),
    /// `Q6_K`
    Super6Split(Super<NibblesAndTwoBits, true>),
    F32(Plain<f32>),
    F16(Plain<F16>),
    Bf16(Plain<Bf16>),
}

/// The forms of the activation that a weight can be multiplied with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Blocks32,
    Blocks256,
    Plain,
}

/// An activation `[rows, in]` in the forms that the weights at hand need.
pub(super) struct Activations<'a> {
    pub plain: &'a [f32],
    pub blocks32: Option<Blocks32>,
    pub blocks256: Option<Blocks256>,
}

impl Panels {
    /// Lays out a weight on the CPU.
    ///
    /// # Errors
    /// If it is not a matrix, is empty, is not on the CPU or of a type that weights do not have.
    pub fn new(weight: &QTensor) -> Result<Self> {
        let (outputs, inputs) = weight.shape().dims2()?;
        let dtype = weight.dtype();
        if outputs == 0 || inputs == 0 {
            bail!("a weight of shape [{outputs}, {inputs}] has no values");
        }
        if !weight.device().is_cpu() {
            bail!("a quantized weight must be on the CPU: there is no kernel for it elsewhere");
        }
        let (block, size) = (dtype.block_size(), dtype.type_size());
        let bytes = weight.data()?;
        if !inputs.is_multiple_of(block) || bytes.len() != outputs * inputs / block * size {
            let found = bytes.len();
            bail!("a {dtype:?} weight of shape [{outputs}, {inputs}] cannot have {found} bytes");
        }
        Ok(Self {
            outputs,
            inputs,
            storage: Storage::new(&bytes, inputs, dtype)?,
        })
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub fn memory_bytes(&self) -> usize {
        match &self.storage {
            Storage::Scaled4(weight) => weight.memory_bytes(),
            Storage::Scaled5(weight) => weight.memory_bytes(),
            Storage::Scaled8(weight) => weight.memory_bytes(),
            Storage::Super4Split(weight) => weight.memory_bytes(),
            Storage::Super4(weight) => weight.memory_bytes(),
            Storage::Super5(weight) => weight.memory_bytes(),
            Storage::Super6Split(weight) => weight.memory_bytes(),
            Storage::F32(weight) => weight.memory_bytes(),
            Storage::F16(weight) => weight.memory_bytes(),
            Storage::Bf16(weight) => weight.memory_bytes(),
        }
    }

    /// What [`Panels::multiply`] must find in its `x`.
    pub fn form(&self) -> Form {
        match self.storage {
            Storage::Scaled4(_) | Storage::Scaled5(_) | Storage::Scaled8(_) => Form::Blocks32,
            Storage::Super4Split(_)
            | Storage::Super4(_)
            | Storage::Super5(_)
            | Storage::Super6Split(_) => Form::Blocks256,
            Storage::F32(_) | Storage::F16(_) | Storage::Bf16(_) => Form::Plain,
        }
    }

    /// A row of the weight, dequantized into `values`, `[in]`.
    pub fn row(&self, row: usize, values: &mut [f32]) {
        match &self.storage {
            Storage::Scaled4(weight) => weight.row(row, values),
            Storage::Scaled5(weight) => weight.row(row, values),
            Storage::Scaled8(weight) => weight.row(row, values),
            Storage::Super4Split(weight) => weight.row(row, values),
            Storage::Super4(weight) => weight.row(row, values),
            Storage::Super5(weight) => weight.row(row, values),
            Storage::Super6Split(weight) => weight.row(row, values),
            Storage::F32(weight) => weight.row(row, values),
            Storage::F16(weight) => weight.row(row, values),
            Storage::Bf16(weight) => weight.row(row, values),
        }
    }

    /// Multiplies some rows of `x` with some panels, into `y`. Does nothing where `x` lacks the
    /// form that [`Panels::form`] asks for.
    pub fn multiply(&self, x: &Activations<'_>, piece: Piece<'_>) {
        let (plain, by_32, by_256) = (Some(x.plain), x.blocks32.as_ref(), x.blocks256.as_ref());
        match &self.storage {
            Storage::Scaled4(weight) => piece.run(weight, by_32),
            Storage::Scaled5(weight) => piece.run(weight, by_32),
            Storage::Scaled8(weight) => piece.run(weight, by_32),
            Storage::Super4Split(weight) => piece.run(weight, by_256),
            Storage::Super4(weight) => piece.run(weight, by_256),
            Storage::Super5(weight) => piece.run(weight, by_256),
            Storage::Super6Split(weight) => piece.run(weight, by_256),
            Storage::F32(weight) => piece.run(weight, plain),
            Storage::F16(weight) => piece.run(weight, plain),
            Storage::Bf16(weight) => piece.run(weight, plain),
        }
    }
}

impl Storage {
    fn new(bytes: &[u8], inputs: usize, dtype: GgmlDType) -> Result<Self> {
        let size = dtype.type_size();
        let format32 = |offset, has_minima, decode| Format32 {
            size,
            offset,
            has_minima,
            decode,
        };
        let format256 = |offset, has_minima, decode| Format256 {
            size,
            offset,
            has_minima,
            decode,
        };
        let (units, blocks) = (inputs / UNIT, inputs / SUPER);
        Ok(match dtype {
            GgmlDType::F32 => Self::F32(Plain::new(bytes, inputs)),
            GgmlDType::F16 => Self::F16(Plain::new(bytes, inputs)),
            GgmlDType::BF16 => Self::Bf16(Plain::new(bytes, inputs)),
            GgmlDType::Q4_0 => {
                let format = format32(8, false, blocks::q4_0 as fn(&[u8]) -> _);
                Self::Scaled4(Scaled::new(bytes, units, format))
            }
            GgmlDType::Q4_1 => {
                Self::Scaled4(Scaled::new(bytes, units, format32(0, true, blocks::q4_1)))
            }
            GgmlDType::Q5_0 => {
                Self::Scaled5(Scaled::new(bytes, units, format32(16, false, blocks::q5_0)))
            }
            GgmlDType::Q5_1 => {
                Self::Scaled5(Scaled::new(bytes, units, format32(0, true, blocks::q5_1)))
            }
            GgmlDType::Q8_0 => {
                Self::Scaled8(Scaled::new(bytes, units, format32(0, false, blocks::q8_0)))
            }
            GgmlDType::Q8_1 => {
                Self::Scaled8(Scaled::new(bytes, units, format32(0, false, blocks::q8_1)))
            }
            GgmlDType::Q2K => {
                let format = format256(0, true, blocks::q2k as fn(&[u8]) -> _);
                Self::Super4Split(Super::new(bytes, blocks, format))
            }
            GgmlDType::Q3K => {
                Self::Super4Split(Super::new(bytes, blocks, format256(4, false, blocks::q3k)))
            }
            GgmlDType::Q4K => {
                Self::Super4(Super::new(bytes, blocks, format256(0, true, blocks::q4k)))
            }
            GgmlDType::Q5K => {
                Self::Super5(Super::new(bytes, blocks, format256(0, true, blocks::q5k)))
            }
            GgmlDType::Q6K => {
                Self::Super6Split(Super::new(bytes, blocks, format256(32, false, blocks::q6k)))
            }
            GgmlDType::Q8K => bail!("Q8_K is a form of activations, not of weights"),
        })
    }
}
