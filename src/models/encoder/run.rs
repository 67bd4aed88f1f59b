//! How a batch runs: which thread does what.
//!
//! The ops can share their work among threads, but then the threads meet after each of them, some
//! 60 times a batch. On the CPU there are two better ways, and no result depends on which is taken,
//! to the last bit:
//! - **Rows.** Rows do not see each other, so each thread runs some of them from end to end, and
//!   waits for nobody (`shares`).
//! - **Tokens.** Where rows don't divide evenly, such as a single long one, each thread has some
//!   tokens. All they need of each other are the keys and values, so they meet once a layer.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::super::heads::RowOutput;
use super::super::packed::PackedBatch;
use super::layer::Layer;
use super::on_rows::LayerOnRows;
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
            return match self.layers_on_rows() {
                Some(layers) => self.run_tokens_on_rows(batch, parts, &layers),
                None => self.run_tokens(batch, parts),
            };
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

    /// On this thread alone, layer by layer; `None` if the weights don't allow it.
    fn run_alone(&self, batch: &PackedBatch) -> Result<Option<Vec<RowOutput>>> {
        let Some(layers) = self.layers_on_rows() else {
            return Ok(None);
        };
        thread_local! {
            static QKV: RefCell<Vec<f32>> = RefCell::default();
        }
        let (x, cu_seqlens) = self.embed(batch)?;
        let (tokens, hidden) = x.dims2()?;
        let mut x = x.flatten_all()?.to_vec1::<f32>()?;
        let mut qkv = QKV.take();
        let len = tokens * 3 * hidden;
        qkv.resize(qkv.len().max(len), 0.0);
        for layer in &layers[..layers.len() - usize::from(self.single_token.is_some())] {
            layer.project(&mut qkv[..len], &x)?;
            layer.finish(&mut x, &qkv[..len], batch.cu_seqlens(), 0..tokens)?;
        }
        QKV.set(qkv);
        let mut x = Tensor::from_vec(x, (tokens, hidden), &self.device)?;
        if let (Some(last), Some(_)) = (self.layers.last(), self.single_token) {
            x = last.forward(&x, &cu_seqlens, batch.max_len(), self.single_token)?;
        }
        self.answer(batch, &x, cu_seqlens).map(Some)
    }

    /// The layers for [`LayerOnRows`], if all of them are.
    fn layers_on_rows(&self) -> Option<Vec<LayerOnRows<'_>>> {
        self.layers.iter().map(Layer::on_rows).collect()
    }

    /// Each share of the rows on one thread.
    fn run_rows(&self, batch: &PackedBatch, shares: &[Vec<usize>]) -> Result<Vec<RowOutput>> {
        let outputs: Vec<Vec<RowOutput>> = shares
            .par_iter()
            .with_max_len(1)
            .map(|rows| {
                let batch = batch.select(rows);
                parallel::alone(|| match self.run_alone(&batch)? {
                    Some(outputs) => Ok(outputs),
                    None => self.run_whole(&batch),
                })
            })
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

    /// As [`EncoderModel::run_tokens`], on the values themselves.
    fn run_tokens_on_rows(
        &self,
        batch: &PackedBatch,
        parts: usize,
        layers: &[LayerOnRows<'_>],
    ) -> Result<Vec<RowOutput>> {
        let (x, ends) = self.embed(batch)?;
        let (tokens, hidden) = x.dims2()?;
        let mut x = x.flatten_all()?.to_vec1::<f32>()?;
        // What a layer reads, and what it makes for the next.
        let [mut qkv, mut made] = [(); 2].map(|()| vec![0f32; tokens * 3 * hidden]);
        let part = |i: usize| i * tokens / parts..(i + 1) * tokens / parts;
        let ends_of_parts: Vec<usize> = (0..parts).map(|i| part(i).end).collect();
        let whole = layers.len() - usize::from(self.single_token.is_some());
        for i in 0..=whole {
            let this = i.checked_sub(1).map(|i| layers[i]);
            let next = layers.get(i);
            cut(&mut x, hidden, &ends_of_parts)
                .into_par_iter()
                .zip(cut(&mut made, 3 * hidden, &ends_of_parts))
                .enumerate()
                .with_max_len(1)
                .map(|(i, (x, made))| {
                    parallel::alone(|| {
                        if let Some(layer) = this {
                            layer.finish(x, &qkv, batch.cu_seqlens(), part(i))?;
                        }
                        next.map_or(Ok(()), |layer| layer.project(made, x))
                    })
                })
                .collect::<Result<()>>()?;
            std::mem::swap(&mut qkv, &mut made);
        }
        let mut x = Tensor::from_vec(x, (tokens, hidden), &self.device)?;
        if let (Some(last), Some(_)) = (self.layers.last(), self.single_token) {
            let qkv = Tensor::from_vec(qkv, (tokens, 3 * hidden), &self.device)?;
            x = last.forward_from(&qkv, &x, &ends, batch.max_len(), self.single_token)?;
        }
        self.answer(batch, &x, ends)
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

/// Rows of `width` values, cut where each part ends.
fn cut<'a>(mut values: &'a mut [f32], width: usize, ends: &[usize]) -> Vec<&'a mut [f32]> {
    let mut begin = 0;
    let mut parts = Vec::with_capacity(ends.len());
    for end in ends {
        let (part, rest) = values.split_at_mut((end - begin) * width);
        (values, begin) = (rest, *end);
        parts.push(part);
    }
    parts
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
