//! How a batch runs: which thread does what.
//!
//! The ops can share their work among threads, but then the threads meet after each of them, some
//! 60 times a batch. On the CPU there are two better ways, and no result depends on which is taken,
//! to the last bit:
//! - **Rows.** Rows do not see each other, so each thread runs some of them from end to end, and
//!   waits for nobody (`shares`).
//! - **Tokens.** Where rows don't divide evenly, such as a single long one, each thread has some
//!   tokens. All they need of each other are the keys and values, so they meet once a layer.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::super::heads::RowOutput;
use super::super::packed::PackedBatch;
use super::{EncoderModel, shares};
use crate::ops::{parallel, upload};

/// Fewer tokens than this a thread, and the ops share their work better by outputs.
const LEAST_TOKENS: usize = 8;
/// Tokens that a thread runs through a layer at a time, about.
const TOKENS: usize = 128;

impl EncoderModel {
    /// A batch that has been checked, on a thread of the pool.
    pub(super) fn run(&self, batch: &PackedBatch) -> Result<Vec<RowOutput>> {
        let threads = rayon::current_num_threads();
        if let Some(shares) = shares::of(batch, self.spec.hidden, threads) {
            return self.run_rows(batch, &shares);
        }
        let tokens = batch.tokens().len();
        if threads > 1 && tokens >= threads * LEAST_TOKENS {
            let parts = threads * tokens.div_ceil(threads * TOKENS);
            return self.run_tokens(batch, parts);
        }
        self.run_whole(batch)
    }

    /// Each op shares its own work.
    pub(super) fn run_whole(&self, batch: &PackedBatch) -> Result<Vec<RowOutput>> {
        let (mut x, cu_seqlens) = self.embed(batch)?;
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            let keep = self.single_token.filter(|_| i == last);
            x = layer.forward(&x, &cu_seqlens, batch.max_len(), keep)?;
        }
        self.answer(batch, &x, cu_seqlens)
    }

    /// Each share of the rows on one thread.
    fn run_rows(&self, batch: &PackedBatch, shares: &[Vec<usize>]) -> Result<Vec<RowOutput>> {
        let outputs: Vec<Vec<RowOutput>> = shares
            .par_iter()
            .with_max_len(1)
            .map(|rows| parallel::alone(|| self.run_whole(&batch.select(rows))))
            .collect::<Result<_>>()?;
        let mut in_order: Vec<_> = shares
            .iter()
            .flatten()
            .zip(outputs.into_iter().flatten())
            .collect();
        in_order.sort_unstable_by_key(|(row, _)| **row);
        Ok(in_order.into_iter().map(|(_, output)| output).collect())
    }

    /// Each part of the tokens on one thread, from one layer's keys and values to the next's.
    fn run_tokens(&self, batch: &PackedBatch, parts: usize) -> Result<Vec<RowOutput>> {
        let tokens = batch.tokens().len();
        let part = |i: usize| i * tokens / parts..(i + 1) * tokens / parts;
        let each = |run: &(dyn Fn(usize, Range<usize>) -> Result<Part> + Sync)| {
            let parts = (0..parts).into_par_iter().with_max_len(1);
            let run = |i| parallel::alone(|| run(i, part(i)));
            parts.map(run).collect::<Result<Vec<Part>>>()
        };
        let (x, cu_seqlens) = self.embed(batch)?;
        let mut layers = self.layers.iter();
        let mut layer = layers.next();
        let mut found = each(&|_, part| {
            let x = x.narrow(0, part.start, part.len())?;
            let qkv = layer.map(|layer| layer.project(&x)).transpose()?;
            Ok(Part { x, qkv })
        })?;
        while let Some(this) = layer {
            layer = layers.next();
            let qkv: Vec<Tensor> = found
                .iter_mut()
                .filter_map(|part| part.qkv.take())
                .collect();
            let qkv = Tensor::cat(&qkv, 0)?;
            if layer.is_none() && self.single_token.is_some() {
                let x = Part::join(&found)?;
                let longest = batch.max_len();
                let x = this.forward_from(&qkv, &x, &cu_seqlens, longest, self.single_token)?;
                return self.answer(batch, &x, cu_seqlens);
            }
            found = each(&|i, part| {
                let x = this.forward_part(&qkv, &found[i].x, &cu_seqlens, part)?;
                let qkv = layer.map(|layer| layer.project(&x)).transpose()?;
                Ok(Part { x, qkv })
            })?;
        }
        self.answer(batch, &Part::join(&found)?, cu_seqlens)
    }

    /// The first layer's input, and where its rows begin and end.
    fn embed(&self, batch: &PackedBatch) -> Result<(Tensor, Tensor)> {
        let lists = [batch.tokens(), batch.type_ids(), batch.cu_seqlens()];
        let [tokens, types, cu_seqlens] = upload(&self.device, lists)?;
        let x = self.embed.apply(&tokens, &types, &cu_seqlens)?;
        Ok((x, cu_seqlens))
    }

    /// What the head makes of the last layer's output: of all tokens, or of the one per row that it
    /// needs.
    fn answer(&self, batch: &PackedBatch, x: &Tensor, ends: Tensor) -> Result<Vec<RowOutput>> {
        let ends = if self.single_token.is_some() {
            let ends: Vec<u32> = (0..=batch.rows() as u32).collect();
            let [ends] = upload(&self.device, [&ends])?;
            ends
        } else {
            ends
        };
        self.head.forward(x, &ends, batch.lengths())
    }
}

/// What a thread has of its tokens.
struct Part {
    x: Tensor,
    /// For the layer to come, if there is one.
    qkv: Option<Tensor>,
}

impl Part {
    fn join(parts: &[Self]) -> Result<Tensor> {
        let parts: Vec<&Tensor> = parts.iter().map(|part| &part.x).collect();
        Tensor::cat(&parts, 0)
    }
}
