//! A weight laid out in panels, in the precision of its product.

use bytemuck::{Pod, Zeroable};
use half::bf16;
use rayon::prelude::*;

use super::super::simd::WIDTH;
use super::super::values::{MappedBytes, Values};
use super::Compute;

/// Outputs of a panel.
pub(super) const COLUMNS: usize = 2 * WIDTH;

/// A group of inputs of all outputs of a panel: a 32-bit word each, in two cache lines.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub [[u32; WIDTH]; 2]);

/// Lines that follow the groups of a panel of bytes: the scales of the weights, f32, and the sums
/// of their bytes, i32.
const BYTE_TAIL: usize = 2;

/// A weight in panels; the last is padded with zeros, as is the last group of inputs.
#[derive(Debug)]
pub(super) struct Panels {
    pub compute: Compute,
    pub inputs: usize,
    /// `[panels, groups + tail]`
    lines: Values<Line>,
}

/// Neighbouring outputs of a weight, from the beginning of a panel; of all groups of inputs, or of
/// some.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    /// How many groups.
    pub groups: usize,
    /// The first of them in a panel.
    first_group: usize,
    lines: &'a [Line],
    /// What follows in memory, and is likely to be read next.
    pub after: &'a [Line],
    /// Lines of a panel.
    stride: usize,
    /// Number of outputs.
    pub count: usize,
}

/// One panel.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    pub groups: &'a [Line],
    tail: &'a [Line],
}

impl Compute {
    /// Inputs that share a word.
    pub(super) fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }

    /// Words of a row of `inputs`. Where a word has several inputs, they are `WIDTH` apart: word
    /// `w` of a run of `WIDTH` has input `w`, then `WIDTH + w`, and so on, so that a row is
    /// converted lane by lane.
    pub(super) fn words(self, inputs: usize) -> usize {
        match self.per_word() {
            1 => inputs,
            per_word => inputs.div_ceil(per_word * WIDTH) * WIDTH,
        }
    }

    fn tail(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 => 0,
            Self::Int8 => BYTE_TAIL,
        }
    }
}

impl Panels {
    /// From `[out, in]`, row-major.
    pub fn new(weight: &[f32], inputs: usize, compute: Compute) -> Self {
        let outputs = weight.len() / inputs;
        let stride = compute.words(inputs) + compute.tail();
        let lines = Values::filled(outputs.div_ceil(COLUMNS) * stride, |lines| {
            lines
                .par_chunks_mut(stride)
                .zip(weight.par_chunks(COLUMNS * inputs))
                .for_each(|(panel, outputs)| fill(panel, outputs, inputs, compute));
        });
        Self {
            compute,
            inputs,
            lines,
        }
    }

    /// As [`Panels::new`] laid them out; `None` if there are not as many.
    pub fn mapped(
        bytes: MappedBytes,
        outputs: usize,
        inputs: usize,
        compute: Compute,
    ) -> Option<Self> {
        let lines: Values<Line> = Values::mapped(bytes)?;
        let stride = compute.words(inputs) + compute.tail();
        let expected = outputs.div_ceil(COLUMNS).checked_mul(stride)?;
        (lines.len() == expected).then_some(Self {
            compute,
            inputs,
            lines,
        })
    }

    /// What [`Panels::mapped`] takes.
    pub fn as_bytes(&self) -> &[u8] {
        self.lines.as_bytes()
    }

    /// `count` outputs from `first`, a multiple of `COLUMNS`.
    pub fn columns(&self, first: usize, count: usize) -> Columns<'_> {
        debug_assert_eq!(first % COLUMNS, 0);
        let panels = first / COLUMNS..(first + count).div_ceil(COLUMNS);
        let groups = self.compute.words(self.inputs);
        let stride = groups + self.compute.tail();
        let (lines, after) =
            self.lines[panels.start * stride..].split_at((panels.end - panels.start) * stride);
        Columns {
            groups,
            first_group: 0,
            lines,
            after: &after[..after.len().min(stride)],
            stride,
            count,
        }
    }
}

impl<'a> Columns<'a> {
    /// Of the groups, `groups` from `first` on.
    pub fn part(self, first: usize, groups: usize) -> Self {
        Self {
            groups,
            first_group: self.first_group + first,
            after: &[],
            ..self
        }
    }

    #[inline(always)]
    pub fn panel(self, nth: usize) -> Panel<'a> {
        let lines = &self.lines[nth * self.stride..][..self.stride];
        let (groups, tail) = lines[self.first_group..].split_at(self.groups);
        Panel { groups, tail }
    }
}

impl Panel<'_> {
    /// Scales of the weights of a panel of bytes; of others, none are there to be read.
    #[inline(always)]
    pub fn scales(&self) -> &[[f32; WIDTH]; 2] {
        bytemuck::cast_ref(&self.tail[0])
    }

    /// Sums of the weights' bytes.
    #[inline(always)]
    pub fn sums(&self) -> &[[i32; WIDTH]; 2] {
        bytemuck::cast_ref(&self.tail[1])
    }
}

/// Puts up to `COLUMNS` outputs side by side. All of them at a time: the panel is written line by
/// line, from front to back.
fn fill(panel: &mut [Line], outputs: &[f32], inputs: usize, compute: Compute) {
    let mut columns = [&outputs[..0]; COLUMNS];
    for (column, output) in columns.iter_mut().zip(outputs.chunks_exact(inputs)) {
        *column = output;
    }
    let scales = columns.map(|column| {
        let largest = column.iter().fold(0f32, |largest, w| largest.max(w.abs()));
        largest / 127.0
    });
    let (groups, tail) = panel.split_at_mut(compute.words(inputs));
    let mut sums = [0i32; COLUMNS];
    let per_word = compute.per_word();
    for (word, line) in groups.iter_mut().enumerate() {
        let run = word / WIDTH * WIDTH;
        for (c, (to, column)) in line
            .0
            .as_flattened_mut()
            .iter_mut()
            .zip(&columns)
            .enumerate()
        {
            let value = |nth: usize| {
                let input = run * per_word + nth * WIDTH + word % WIDTH;
                column.get(input).copied().unwrap_or(0.0)
            };
            *to = match compute {
                Compute::F32 => column.get(word).copied().unwrap_or(0.0).to_bits(),
                Compute::Bf16 => {
                    let bits = |nth| u32::from(bf16::from_f32(value(nth)).to_bits());
                    bits(0) | bits(1) << 16
                }
                Compute::Int8 => {
                    let inverse = if scales[c] > 0.0 {
                        1.0 / scales[c]
                    } else {
                        0.0
                    };
                    let bytes: [i8; 4] = std::array::from_fn(|nth| {
                        (value(nth) * inverse)
                            .round_ties_even()
                            .clamp(-127.0, 127.0) as i8
                    });
                    sums[c] += bytes.iter().map(|&byte| i32::from(byte)).sum::<i32>();
                    u32::from_le_bytes(bytes.map(i8::cast_unsigned))
                }
            };
        }
    }
    if let [scale_line, sum_line] = tail {
        *scale_line = bytemuck::cast(scales);
        *sum_line = bytemuck::cast(sums);
    }
}
