//! `y = x·Wᵀ (+ bias)`: the matrix product, with the weight laid out once, at load.
//!
//! ```text
//! x     [tokens, in]    f32
//! W     [out, in]       f32   as in the file
//! bias  [out]           f32   optional; mostly left to the op that comes after
//! y     [tokens, out]   f32
//! ```
//! On the CPU the weight is kept in *panels* of `COLUMNS` outputs, `[in, COLUMNS]` each, the
//! layout into which a general matrix product would copy it on every call (Goto & van de Geijn
//! 2008, "Anatomy of High-Performance Matrix Multiplication"). Knowing `W` beforehand saves that
//! copy, which for a batch of a few tokens is most of the work. Elsewhere it is candle's matmul.
//!
//! **Tiling.** A block of `BLOCK` rows of `x` stays in L2 while all panels pass over it; a
//! `DEPTH`-long piece of a panel stays in L1 while the rows of the block pass over it, `ROWS`
//! at a time: `ROWS · COLUMNS` sums fill 12 of the 16 AVX2 registers. Every row is summed in the
//! same order whatever the batch around it, so a row's result does not depend on the others, to
//! the last bit.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::{Activation, BiasActivation};
use super::operand::{dims2, f32_values, read};
use super::simd::{Arithmetic, Kernel, Tile, WIDTH, dispatch};
use super::values::{MappedBytes, Values};

/// Outputs of a panel.
const COLUMNS: usize = 2 * WIDTH;
/// Rows of `x` in a register tile.
const ROWS: usize = 6;
/// Inputs summed in one go: a piece of a panel is at most 24 KiB.
const DEPTH: usize = 384;
/// Rows of `x` in a block.
const BLOCK: usize = 96;
/// Multiply-adds below which threads cost more than they bring (some 20 µs of one core).
const SERIAL_WORK: usize = 1 << 20;

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
        let (outputs, inputs) = weight.dims2()?;
        if outputs == 0 || inputs == 0 {
            bail!("a weight of shape [{outputs}, {inputs}] has no values");
        }
        let weight = if weight.device().is_cpu() {
            let weight = weight.contiguous()?;
            let values = read(&weight, "weight");
            let values = values.values(outputs * inputs)?;
            Weight::Panels(Arc::new(Panels::new(values, inputs)))
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
    pub const LAYOUT: &str = "linear-16-1";

    /// As [`Linear::new`] laid out a weight `[out, in]` on the CPU, in place.
    ///
    /// # Errors
    /// If the bytes are not as many as the panels', or not aligned.
    pub fn mapped(
        outputs: usize,
        inputs: usize,
        panels: MappedBytes,
        bias: Option<Tensor>,
    ) -> Result<Self> {
        match Values::mapped(panels) {
            Some(values) if outputs > 0 && values.len() == outputs.div_ceil(COLUMNS) * inputs => {
                let weight = Weight::Panels(Arc::new(Panels { inputs, values }));
                Ok(Self {
                    weight,
                    outputs,
                    bias,
                })
            }
            _ => bail!("these are not the panels of a weight of shape [{outputs}, {inputs}]"),
        }
    }

    /// The bytes that [`Linear::mapped`] takes; `None` elsewhere than on the CPU.
    pub fn panels(&self) -> Option<&[u8]> {
        match &self.weight {
            Weight::Panels(panels) => Some(panels.values.as_bytes()),
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

    /// Number of output features.
    pub fn out_features(&self) -> usize {
        self.outputs
    }

    /// Bytes that the weight takes up, the last panel's padding among them.
    pub fn memory_bytes(&self) -> usize {
        match &self.weight {
            Weight::Panels(panels) => size_of_val(&panels.values[..]),
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
        let Weight::Panels(panels) = &self.weight else {
            bail!("x must be on the device of the weight");
        };
        if inputs != panels.inputs {
            bail!("x has {inputs} features, the weight {}", panels.inputs);
        }
        let mut y = vec![0f32; rows * self.outputs];
        multiply(&mut y, x, panels, self.outputs);
        Ok((CpuStorage::F32(y), (rows, self.outputs).into()))
    }
}

/// Shares the product among the threads: blocks of rows if there are enough of them, else columns.
fn multiply(y: &mut [f32], x: &[f32], weight: &Panels, outputs: usize) {
    let inputs = weight.inputs;
    let rows = y.len() / outputs;
    let threads = rayon::current_num_threads();
    if threads == 1 || rows * inputs * outputs < SERIAL_WORK {
        let columns = weight.columns(0, outputs);
        dispatch(Product { y, x, columns });
    } else if rows >= threads * 4 * ROWS {
        // As many blocks for each thread, so that none waits for the last.
        let blocks = rows.div_ceil(BLOCK).next_multiple_of(threads);
        let block = rows.div_ceil(blocks).next_multiple_of(ROWS);
        y.par_chunks_mut(block * outputs)
            .zip(x.par_chunks(block * inputs))
            .for_each(|(y, x)| {
                let columns = weight.columns(0, outputs);
                dispatch(Product { y, x, columns });
            });
    } else {
        let share = outputs.div_ceil(threads).next_multiple_of(COLUMNS);
        let parts: Vec<Vec<f32>> = (0..outputs.div_ceil(share))
            .into_par_iter()
            .map(|part| {
                let columns = weight.columns(part * share, share.min(outputs - part * share));
                let mut y = vec![0f32; rows * columns.count];
                dispatch(Product {
                    y: &mut y,
                    x,
                    columns,
                });
                y
            })
            .collect();
        for (i, part) in parts.iter().enumerate() {
            let width = part.len() / rows;
            for (y, part) in y.chunks_exact_mut(outputs).zip(part.chunks_exact(width)) {
                y[i * share..][..width].copy_from_slice(part);
            }
        }
    }
}

/// A weight in panels; the last is padded with zeros.
#[derive(Debug)]
struct Panels {
    inputs: usize,
    /// `[panels, in, COLUMNS]`
    values: Values<[f32; COLUMNS]>,
}

/// Neighbouring outputs of a weight, from the beginning of a panel.
#[derive(Clone, Copy)]
struct Columns<'a> {
    inputs: usize,
    panels: &'a [[f32; COLUMNS]],
    /// Number of outputs.
    count: usize,
}

impl Panels {
    /// From `[out, in]`, row-major.
    fn new(weight: &[f32], inputs: usize) -> Self {
        let outputs = weight.len() / inputs;
        let mut values = vec![[0f32; COLUMNS]; outputs.div_ceil(COLUMNS) * inputs];
        values
            .par_chunks_mut(inputs)
            .zip(weight.par_chunks(COLUMNS * inputs))
            .for_each(|(panel, outputs)| fill(panel, outputs, inputs));
        let values = values.into();
        Self { inputs, values }
    }

    /// `count` outputs from `first`, a multiple of `COLUMNS`.
    fn columns(&self, first: usize, count: usize) -> Columns<'_> {
        debug_assert_eq!(first % COLUMNS, 0);
        let panels = first / COLUMNS..(first + count).div_ceil(COLUMNS);
        Columns {
            inputs: self.inputs,
            panels: &self.values[panels.start * self.inputs..panels.end * self.inputs],
            count,
        }
    }
}

/// Puts up to `COLUMNS` outputs side by side. All of them at a time: the panel is written line by
/// line, from front to back.
fn fill(panel: &mut [[f32; COLUMNS]], outputs: &[f32], inputs: usize) {
    let mut columns = [&outputs[..0]; COLUMNS];
    for (column, output) in columns.iter_mut().zip(outputs.chunks_exact(inputs)) {
        *column = output;
    }
    for (input, row) in panel.iter_mut().enumerate() {
        for (to, column) in row.iter_mut().zip(&columns) {
            *to = column.get(input).copied().unwrap_or(0.0);
        }
    }
}

struct Product<'a> {
    /// `[rows, columns.count]`
    y: &'a mut [f32],
    /// `[rows, in]`
    x: &'a [f32],
    columns: Columns<'a>,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Columns {
            inputs,
            panels,
            count,
        } = self.columns;
        // Pieces of equal depth, rather than a short last one.
        let depth = inputs.div_ceil(inputs.div_ceil(DEPTH));
        let blocks = self.y.chunks_mut(BLOCK * count);
        for (y, x) in blocks.zip(self.x.chunks(BLOCK * inputs)) {
            for first_input in (0..inputs).step_by(depth) {
                for (p, panel) in panels.chunks_exact(inputs).enumerate() {
                    let piece = Piece {
                        panel: &panel[first_input..inputs.min(first_input + depth)],
                        first_input,
                        inputs,
                        first_output: p * COLUMNS,
                        outputs: count,
                    };
                    let rows = y.chunks_mut(ROWS * count);
                    for (y, x) in rows.zip(x.chunks(ROWS * inputs)) {
                        match y.len() / count {
                            6 => piece.multiply::<A, 6>(y, x),
                            5 => piece.multiply::<A, 5>(y, x),
                            4 => piece.multiply::<A, 4>(y, x),
                            3 => piece.multiply::<A, 3>(y, x),
                            2 => piece.multiply::<A, 2>(y, x),
                            _ => piece.multiply::<A, 1>(y, x),
                        }
                    }
                }
            }
        }
    }
}

/// A piece of a panel, and where in `x` and `y` it belongs.
#[derive(Clone, Copy)]
struct Piece<'a> {
    panel: &'a [[f32; COLUMNS]],
    first_input: usize,
    inputs: usize,
    first_output: usize,
    outputs: usize,
}

impl Piece<'_> {
    /// Adds the piece's share to `M` rows of `y`; the first piece of a panel sets them.
    #[inline(always)]
    fn multiply<A: Arithmetic, const M: usize>(self, y: &mut [f32], x: &[f32]) {
        let depth = self.panel.len();
        let x: [&[f32]; M] =
            std::array::from_fn(|i| &x[i * self.inputs + self.first_input..][..depth]);
        let mut tile = Tile::<A, M, { COLUMNS / WIDTH }>::zero();
        for (k, w) in self.panel.iter().enumerate() {
            let (vectors, _) = w.as_chunks::<WIDTH>();
            let mut column = [0f32; M];
            for i in 0..M {
                column[i] = x[i][k];
            }
            tile.add(column, &[vectors[0], vectors[1]]);
        }
        let width = COLUMNS.min(self.outputs - self.first_output);
        for i in 0..M {
            let y = &mut y[i * self.outputs + self.first_output..][..width];
            let sums = tile.row(i);
            if self.first_input == 0 {
                y.copy_from_slice(&sums.as_flattened()[..width]);
            } else {
                for (y, sum) in y.iter_mut().zip(sums.as_flattened()) {
                    *y += sum;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::super::testing::{Random, max_error};
    use super::*;
    use candle_core::Device;

    const SHAPES: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (1, 384, 3),
        (2, 500, 17),
        (7, 33, 65),
        (20, 700, 300),
        (100, 400, 50),
        (130, 384, 100),
        (0, 8, 8),
    ];

    #[test]
    fn equals_the_f64_reference_on_odd_shapes() -> Result<()> {
        let mut random = Random::new(12);
        for (tokens, inputs, outputs) in SHAPES {
            let x = random.values(tokens * inputs, 1.0);
            let w = random.values(outputs * inputs, 1.0);
            let b = random.values(outputs, 1.0);
            let mut expected = Vec::new();
            for x in x.chunks_exact(inputs) {
                for (w, b) in w.chunks_exact(inputs).zip(&b) {
                    let dot: f64 = x
                        .iter()
                        .zip(w)
                        .map(|(x, w)| f64::from(*x) * f64::from(*w))
                        .sum();
                    expected.push(dot + f64::from(*b));
                }
            }
            let w = Tensor::from_vec(w, (outputs, inputs), &Device::Cpu)?;
            let b = Tensor::from_vec(b, outputs, &Device::Cpu)?;
            let linear = Linear::new(&w, Some(b))?;
            assert_eq!(linear.out_features(), outputs);
            let x = Tensor::from_vec(x, (tokens, inputs), &Device::Cpu)?;
            let y = linear.apply(&x)?.flatten_all()?.to_vec1()?;
            let error = max_error(&y, &expected);
            assert!(error < 2e-5, "{tokens}x{inputs}x{outputs}: {error:e}");
        }
        Ok(())
    }

    #[test]
    fn both_instruction_sets_agree() {
        let (rows, inputs, outputs) = (11, 401, 37);
        let mut random = Random::new(14);
        let x = random.values(rows * inputs, 1.0);
        let weight = Panels::new(&random.values(outputs * inputs, 1.0), inputs);
        let columns = weight.columns(0, outputs);
        let [mut portable, mut best] = [(); 2].map(|()| vec![0f32; rows * outputs]);
        let y = &mut portable;
        Product { y, x: &x, columns }.run::<Portable>();
        let y = &mut best;
        dispatch(Product { y, x: &x, columns });
        let reference: Vec<f64> = portable.iter().map(|&x| f64::from(x)).collect();
        assert!(max_error(&best, &reference) < 2e-5);
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_around_it() -> Result<()> {
        let mut random = Random::new(15);
        let (inputs, outputs) = (500, 90);
        let w = random.values(outputs * inputs, 1.0);
        let linear = Linear::new(&Tensor::from_vec(w, (outputs, inputs), &Device::Cpu)?, None)?;
        let x = Tensor::from_vec(
            random.values(203 * inputs, 1.0),
            (203, inputs),
            &Device::Cpu,
        )?;
        let together = linear.apply(&x)?.to_vec2::<f32>()?;
        for row in [0, 7, 96, 202] {
            let alone = linear.apply(&x.narrow(0, row, 1)?)?.to_vec2::<f32>()?;
            assert_eq!(alone[0], together[row]);
        }
        Ok(())
    }

    #[test]
    fn a_wrong_width_is_an_error() -> Result<()> {
        let w = Tensor::zeros((3, 5), candle_core::DType::F32, &Device::Cpu)?;
        let linear = Linear::new(&w, None)?;
        let x = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu)?;
        assert!(linear.apply(&x).is_err());
        Ok(())
    }
}
