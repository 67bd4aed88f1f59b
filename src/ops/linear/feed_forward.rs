//! `y = act(x·W₁ᵀ + b)·W₂ᵀ`: the two products of a feed-forward block and the activation between
//! them, as one op on some rows.
//!
//! ```text
//! x   [rows, hidden]   f32      W₁  [inner, hidden]     b  [inner]  f32
//! y   [rows, hidden]   f32      W₂  [hidden, inner]
//! ```
//! In f32 and bf16 the inner activation never exists as a whole. `W₂` sums up its inputs in pieces;
//! so one piece at a time is made, 32 outputs of `W₁` after the other, each activated while it lies in
//! L1 and put down in the words that `W₂` reads. In bytes a row is scaled by its greatest value, so
//! whole rows are made, but only few at a time. The results are those of the ops one by one, to the
//! last bit.

use std::cell::RefCell;

use bytemuck::Zeroable;
use candle_core::{Result, bail};

use super::super::activation::{Activation, activate_rows};
use super::super::simd::WIDTH;
use super::activations::{Words, convert_part};
use super::panels::{COLUMNS, Panels};
use super::product::{BLOCK, Work, equal_pieces, multiply_rows, with_words};
use super::{Compute, Linear};

/// Rows of a block in bytes: its inner activation, 300 KiB at 1536 wide, is to stay in L2.
const BYTE_ROWS: usize = 48;

/// The op.
#[derive(Debug, Clone, Copy)]
pub struct FeedForward<'a> {
    /// `W₁`
    pub first: &'a Linear,
    /// `b`
    pub bias: &'a [f32],
    /// What is applied between the products.
    pub activation: Activation,
    /// `W₂`
    pub second: &'a Linear,
}

/// Buffers of a thread, kept from call to call.
#[derive(Default)]
struct Scratch {
    /// A panel's outputs, or in bytes all of them.
    block: Vec<f32>,
    /// Of the activation, what `W₂` reads at a time.
    words: Vec<Words>,
}

impl FeedForward<'_> {
    /// Writes `y` of `x`, on this thread.
    ///
    /// # Errors
    /// If shapes do not agree, or a weight is on another device.
    pub fn apply_rows(&self, y: &mut [f32], x: &[f32]) -> Result<()> {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        let (first, second) = (self.first.on_cpu()?, self.second.on_cpu()?);
        let (inner, hidden) = (self.first.outputs, first.inputs);
        let fits = self.bias.len() == inner
            && second.inputs == inner
            && x.len().is_multiple_of(hidden)
            && y.len() == x.len() / hidden * self.second.outputs;
        if !fits {
            bail!(
                "{} values through [{hidden}, {inner}] and [{}, {}] are not {}",
                x.len(),
                second.inputs,
                self.second.outputs,
                y.len()
            );
        }
        let rows = match second.compute {
            Compute::Int8 => BYTE_ROWS,
            _ => BLOCK,
        };
        // Taken, not borrowed, as the ops' other buffers are.
        let mut scratch = SCRATCH.take();
        let blocks = y.chunks_mut(rows * self.second.outputs);
        for (y, x) in blocks.zip(x.chunks(rows * hidden)) {
            match second.compute {
                Compute::Int8 => self.whole_rows(y, x, first, second, &mut scratch),
                _ => self.by_pieces(y, x, first, second, &mut scratch),
            }
        }
        SCRATCH.set(scratch);
        Ok(())
    }

    fn by_pieces(
        &self,
        y: &mut [f32],
        x: &[f32],
        first: &Panels,
        second: &Panels,
        scratch: &mut Scratch,
    ) {
        let (inner, rows) = (self.first.outputs, x.len() / first.inputs);
        let per_word = second.compute.per_word();
        let groups = second.compute.words(inner);
        let depth = equal_pieces(groups);
        scratch.block.resize(rows * COLUMNS, 0.0);
        with_words(x, first.inputs, first.compute, |x, scales| {
            for first_group in (0..groups).step_by(depth) {
                let depth = depth.min(groups - first_group);
                let words = depth.div_ceil(WIDTH);
                scratch.words.resize(rows * words, Words::zeroed());
                let outputs = first_group * per_word..inner.min((first_group + depth) * per_word);
                for output in outputs.clone().step_by(COLUMNS) {
                    let count = COLUMNS.min(outputs.end - output);
                    let block = &mut scratch.block[..rows * count];
                    let mut work = Work {
                        y: block,
                        x,
                        scales,
                        columns: first.columns(output, count),
                        add: false,
                    };
                    work.run_as(first.compute);
                    activate_rows(block, &self.bias[output..][..count], self.activation);
                    let at = (output - outputs.start) / (per_word * WIDTH);
                    convert_part(&mut scratch.words, words, at, block, count, second.compute);
                }
                let mut work = Work {
                    y,
                    x: &scratch.words,
                    scales: &[],
                    columns: second
                        .columns(0, self.second.outputs)
                        .part(first_group, depth),
                    add: first_group > 0,
                };
                work.run_as(second.compute);
            }
        });
    }

    fn whole_rows(
        &self,
        y: &mut [f32],
        x: &[f32],
        first: &Panels,
        second: &Panels,
        scratch: &mut Scratch,
    ) {
        let (inner, rows) = (self.first.outputs, x.len() / first.inputs);
        scratch.block.resize(rows * inner, 0.0);
        let block = &mut scratch.block[..];
        multiply_rows(block, x, first, inner);
        activate_rows(block, self.bias, self.activation);
        multiply_rows(y, block, second, self.second.outputs);
    }
}
