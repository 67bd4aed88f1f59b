//! A layer on the rows of plain slices: what one thread does with the tokens that it has, from one
//! layer's keys and values to the next's. The buffers between the ops are the thread's, and kept from
//! layer to layer and batch to batch.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::Result;

use super::layer::Layer;
use crate::ops::{FeedForward, Linear, vector_values};

/// A layer whose products run on the CPU, in a precision of [`Linear`].
#[derive(Clone, Copy)]
pub(super) struct LayerOnRows<'a> {
    pub layer: &'a Layer,
    pub qkv: &'a Linear,
    pub attention_out: &'a Linear,
    pub feed_in: &'a Linear,
    pub feed_out: &'a Linear,
}

/// What lies between the ops.
#[derive(Default)]
struct Buffers {
    attended: Vec<f32>,
    y: Vec<f32>,
}

impl LayerOnRows<'_> {
    /// Queries, keys and values of `x`, `[tokens, hidden]`, to `[tokens, 3 · hidden]`.
    pub fn project(self, qkv: &mut [f32], x: &[f32]) -> Result<()> {
        self.qkv.apply_rows(qkv, x)
    }

    /// The rest of the layer: `x`, of the tokens in `part`, becomes its output. `qkv` is of all
    /// tokens of the batch.
    pub fn finish(
        self,
        x: &mut [f32],
        qkv: &[f32],
        cu_seqlens: &[u32],
        part: Range<usize>,
    ) -> Result<()> {
        thread_local! {
            static BUFFERS: RefCell<Buffers> = RefCell::default();
        }
        // Taken, not borrowed, as the ops' own are.
        let mut buffers = BUFFERS.take();
        let Buffers { attended, y } = &mut buffers;
        for buffer in [&mut *attended, &mut *y] {
            // What is longer from another batch stays, zeros are only written to what is new.
            buffer.resize(buffer.len().max(x.len()), 0.0);
        }
        let (attended, y) = (&mut attended[..x.len()], &mut y[..x.len()]);

        let layer = self.layer;
        let hidden = self.attention_out.out_features();
        let attention = layer.attention();
        attention.apply_rows(attended, qkv, hidden, cu_seqlens, part)?;
        self.attention_out.apply_rows(y, attended)?;
        layer.attention_norm.apply_rows(y, x)?;
        vector_values(&layer.feed_bias, |bias| {
            let feed_forward = FeedForward {
                first: self.feed_in,
                bias,
                activation: layer.activation.0,
                second: self.feed_out,
            };
            feed_forward.apply_rows(x, y)
        })?;
        layer.feed_norm.apply_rows(x, y)?;
        BUFFERS.set(buffers);
        Ok(())
    }
}
