//! A weight in panels of [`LANES`] outputs, whatever its format.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Result, bail};

use super::super::values::MappedBytes;
use super::activations::{Blocks32, Blocks256, SUPER, UNIT};
use super::blocks;
use super::codes::{Bytes, Codes, Nibbles, NibblesAndBit, NibblesAndTwoBits};
use super::layout::{Found, Sections};
use super::machine::LANES;
use super::plain::{Bf16, Element, F16, Plain};
use super::product::Piece;
use super::scaled::{Format32, Scaled};
use super::superblocks::{Format256, Super};

/// A weight `[outputs, inputs]`.
#[derive(Debug, Clone)]
pub(super) struct Panels {
    pub outputs: usize,
    pub inputs: usize,
    storage: Storage,
}

#[derive(Debug, Clone)]
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
        if !weight.device().is_cpu() {
            bail!("a quantized weight must be on the CPU: there is no kernel for it elsewhere");
        }
        Self::of_blocks(weight.dtype(), outputs, inputs, &weight.data()?)
    }

    /// Lays out the blocks of a weight as a GGML file has them.
    ///
    /// # Errors
    /// If they are not those of such a weight, or of a type that weights do not have.
    pub fn of_blocks(
        dtype: GgmlDType,
        outputs: usize,
        inputs: usize,
        bytes: &[u8],
    ) -> Result<Self> {
        if outputs == 0 || inputs == 0 {
            bail!("a weight of shape [{outputs}, {inputs}] has no values");
        }
        let (block, size) = (dtype.block_size(), dtype.type_size());
        if !inputs.is_multiple_of(block) || bytes.len() != outputs * inputs / block * size {
            let found = bytes.len();
            bail!("a {dtype:?} weight of shape [{outputs}, {inputs}] cannot have {found} bytes");
        }
        Ok(Self {
            outputs,
            inputs,
            storage: Storage::new(&Source::Blocks(bytes), outputs, inputs, dtype)?,
        })
    }

    /// As [`Panels::new`] laid them out and [`Panels::sections`] gave them to a file.
    ///
    /// # Errors
    /// If the sections are not those of such a weight.
    pub fn found(
        dtype: GgmlDType,
        outputs: usize,
        inputs: usize,
        sections: &[MappedBytes],
    ) -> Result<Self> {
        if outputs == 0 || inputs == 0 || !inputs.is_multiple_of(dtype.block_size()) {
            bail!("a {dtype:?} weight cannot have the shape [{outputs}, {inputs}]");
        }
        Ok(Self {
            outputs,
            inputs,
            storage: Storage::new(&Source::Found(sections), outputs, inputs, dtype)?,
        })
    }

    /// Number of panels.
    pub fn count(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub fn memory_bytes(&self) -> usize {
        self.sections().iter().map(|section| section.len()).sum()
    }

    /// The parts of the layout, in the order in which [`Panels::found`] takes them.
    pub fn sections(&self) -> Sections<'_> {
        match &self.storage {
            Storage::Scaled4(weight) => weight.sections(),
            Storage::Scaled5(weight) => weight.sections(),
            Storage::Scaled8(weight) => weight.sections(),
            Storage::Super4Split(weight) => weight.sections(),
            Storage::Super4(weight) => weight.sections(),
            Storage::Super5(weight) => weight.sections(),
            Storage::Super6Split(weight) => weight.sections(),
            Storage::F32(weight) => weight.sections(),
            Storage::F16(weight) => weight.sections(),
            Storage::Bf16(weight) => weight.sections(),
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

/// Where the panels come from.
enum Source<'a> {
    /// The blocks of a GGML file.
    Blocks(&'a [u8]),
    /// The sections of a file into which they were written.
    Found(&'a [MappedBytes]),
}

impl Source<'_> {
    /// Lays out the blocks, or takes what was found.
    fn make<W>(
        &self,
        new: impl FnOnce(&[u8]) -> W,
        found: impl FnOnce(Found<'_>) -> Option<W>,
    ) -> Result<W> {
        match self {
            Self::Blocks(bytes) => Ok(new(bytes)),
            Self::Found(sections) => match found(Found::new(sections)) {
                Some(weight) => Ok(weight),
                None => bail!("the sections have other lengths than the weight's"),
            },
        }
    }
}

impl Storage {
    fn new(source: &Source<'_>, outputs: usize, inputs: usize, dtype: GgmlDType) -> Result<Self> {
        let panels = outputs.div_ceil(LANES);
        let size = dtype.type_size();
        let (units, blocks) = (inputs / UNIT, inputs / SUPER);
        let format32 = |offset, has_minima, decode: fn(&[u8]) -> _| Format32 {
            size,
            offset,
            has_minima,
            decode,
        };
        let format256 = |offset, has_minima, decode: fn(&[u8]) -> _| Format256 {
            size,
            offset,
            has_minima,
            decode,
        };
        Ok(match dtype {
            GgmlDType::F32 => Self::F32(plain(source, panels, inputs)?),
            GgmlDType::F16 => Self::F16(plain(source, panels, inputs)?),
            GgmlDType::BF16 => Self::Bf16(plain(source, panels, inputs)?),
            GgmlDType::Q4_0 => Self::Scaled4(scaled(
                source,
                panels,
                units,
                format32(8, false, blocks::q4_0),
            )?),
            GgmlDType::Q4_1 => Self::Scaled4(scaled(
                source,
                panels,
                units,
                format32(0, true, blocks::q4_1),
            )?),
            GgmlDType::Q5_0 => Self::Scaled5(scaled(
                source,
                panels,
                units,
                format32(16, false, blocks::q5_0),
            )?),
            GgmlDType::Q5_1 => Self::Scaled5(scaled(
                source,
                panels,
                units,
                format32(0, true, blocks::q5_1),
            )?),
            GgmlDType::Q8_0 => Self::Scaled8(scaled(
                source,
                panels,
                units,
                format32(0, false, blocks::q8_0),
            )?),
            GgmlDType::Q8_1 => Self::Scaled8(scaled(
                source,
                panels,
                units,
                format32(0, false, blocks::q8_1),
            )?),
            GgmlDType::Q2K => {
                let format = format256(0, true, blocks::q2k);
                Self::Super4Split(superblocks(source, panels, blocks, format)?)
            }
            GgmlDType::Q3K => {
                let format = format256(4, false, blocks::q3k);
                Self::Super4Split(superblocks(source, panels, blocks, format)?)
            }
            GgmlDType::Q4K => {
                let format = format256(0, true, blocks::q4k);
                Self::Super4(superblocks(source, panels, blocks, format)?)
            }
            GgmlDType::Q5K => {
                let format = format256(0, true, blocks::q5k);
                Self::Super5(superblocks(source, panels, blocks, format)?)
            }
            GgmlDType::Q6K => {
                let format = format256(32, false, blocks::q6k);
                Self::Super6Split(superblocks(source, panels, blocks, format)?)
            }
            GgmlDType::Q8K => bail!("Q8_K is a form of activations, not of weights"),
        })
    }
}

fn plain<E: Element>(source: &Source<'_>, panels: usize, inputs: usize) -> Result<Plain<E>> {
    source.make(
        |bytes| Plain::new(bytes, inputs),
        |found| Plain::found(found, panels, inputs),
    )
}

fn scaled<C: Codes>(
    source: &Source<'_>,
    panels: usize,
    units: usize,
    format: Format32,
) -> Result<Scaled<C>> {
    source.make(
        |bytes| Scaled::new(bytes, units, format),
        |found| Scaled::found(found, panels, units, format),
    )
}

fn superblocks<C: Codes, const SPLIT: bool>(
    source: &Source<'_>,
    panels: usize,
    blocks: usize,
    format: Format256,
) -> Result<Super<C, SPLIT>> {
    source.make(
        |bytes| Super::new(bytes, blocks, format),
        |found| Super::found(found, panels, blocks, format),
    )
}
