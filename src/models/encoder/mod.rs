//! The encoder: one forward for all families, which differ in tensor names only and no longer do
//! once they are loaded.
//!
//! ```text
//! x = LayerNorm(word + position + type)
//! per layer:  x = LayerNorm(x + W_o · attention(W_qkv · x))
//!             x = LayerNorm(x + W_2 · act(W_1 · x))
//! ```
//! Post-norm, as Devlin et al. 2018. When the head looks at one token per row (CLS or last), the
//! last layer drops the others as soon as attention has read them.

mod gradients;
mod layer;
mod on_rows;
mod run;
mod shares;

#[cfg(test)]
mod gradient_tests;
#[cfg(test)]
mod tests;

pub use gradients::{DifferentiableEncoder, Line};

use std::path::Path;

use candle_core::Device;
use candle_core::quantized::GgmlDType;

use super::error::{ForwardError, LoadError};
use super::heads::{Head, LoadedHead, RowOutput};
use super::loader::Loader;
use super::packed::PackedBatch;
use super::plan::EncoderPlan;
use super::prepared::PreparedWeights;
use super::source::Source;
use super::spec::EncoderSpec;
use crate::ops::{Compute, EmbedNorm, Pooling};
use layer::Layer;

/// How to load an encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// What it is for.
    pub head: Head,
    /// The type that matrices in f32, f16 and bf16 become, or a near one where its blocks do not
    /// divide their rows, see [`fitting`](super::quantize::fitting). `None` keeps them in f32.
    /// Matrices that the file has quantized stay as they are.
    pub quantize: Option<GgmlDType>,
    /// The precision in which products of f32 weights are computed on the CPU. The last layer of a
    /// classifier is computed in f32 all the same.
    pub compute: Compute,
}

/// A loaded encoder with its head. It lives on one executor thread and takes a batch at a time.
#[derive(Debug)]
pub struct EncoderModel {
    spec: EncoderSpec,
    embed: EmbedNorm,
    layers: Vec<Layer>,
    head: LoadedHead,
    labels: Vec<String>,
    /// The one token per row that the head needs after the last layer; `None` is all.
    single_token: Option<Pooling>,
    device: Device,
    compute: Compute,
    parameters: usize,
    memory_bytes: usize,
    unused_tensors: Vec<String>,
}

impl EncoderModel {
    /// Loads a `*.gguf` file, or a folder with `config.json` and a safetensors checkpoint (or with
    /// a `model.gguf`) to `device`.
    ///
    /// # Errors
    /// If the model is not supported, does not have the head, or its files are damaged. The whole
    /// header is checked before the first weight is read.
    pub fn load(source: &Path, options: &LoadOptions, device: &Device) -> Result<Self, LoadError> {
        Self::load_with(source, options, device, &PreparedWeights::off())
    }

    /// As [`EncoderModel::load`], with the layout of matrices from `prepared` where it has it. The
    /// model is the same, to the last bit.
    ///
    /// # Errors
    /// As [`EncoderModel::load`].
    pub fn load_with(
        source: &Path,
        options: &LoadOptions,
        device: &Device,
        prepared: &PreparedWeights,
    ) -> Result<Self, LoadError> {
        let source = Source::open(source)?;
        let spec = EncoderSpec::of(&source)?;
        let head = &options.head;
        head.check(&spec)?;
        // Every tensor of every layer must exist, so a file of a few kilobytes cannot make the
        // plan of a huge config cost more than its own length.
        let plan = EncoderPlan::of(&source, &spec, head);
        let parameters = source.check(plan.tensors())?;

        if prepared.unusable().is_none() {
            source.expect_few_reads();
        }
        let mut loader =
            Loader::new(&source, device, options.quantize, prepared).computing(options.compute);
        let embed = EmbedNorm {
            word: loader.words(&plan.word)?,
            position: Some(loader.plain(&plan.position)?),
            token_type: match &plan.token_type {
                Some(table) => Some(loader.plain(table)?),
                None => None,
            },
            weight: loader.plain(&plan.embed_norm.weight)?,
            bias: loader.plain(&plan.embed_norm.bias)?,
            epsilon: spec.norm_epsilon,
            position_offset: spec.position_offset,
        };
        let layers = plan
            .layers
            .iter()
            .map(|plan| Layer::load(plan, &spec, &mut loader))
            .collect::<Result<_, _>>()?;
        let labels = match head {
            Head::Embed { .. } => Vec::new(),
            _ => spec.labels.clone(),
        };
        Ok(Self {
            embed,
            layers,
            head: LoadedHead::load(&plan.head, &mut loader)?,
            labels,
            single_token: head.single_token(),
            device: device.clone(),
            compute: options.compute,
            parameters,
            memory_bytes: loader.memory_bytes(),
            unused_tensors: source.unused(plan.tensors()),
            spec,
        })
    }

    /// Runs a batch: one output per row, in order. Logits are raw. An empty batch has no outputs.
    ///
    /// # Errors
    /// If a row is empty or too long or has an id outside its vocabulary, or the device fails.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Vec<RowOutput>, ForwardError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.check(batch)?;
        if !self.device.is_cpu() {
            // What is loaded for a device belongs to this thread.
            return Ok(self.run_whole(batch)?);
        }
        // Inside the thread pool, so that each op finds itself on one of its threads: from outside,
        // every op would hand its work over and be woken when it is done, some 60 times a batch.
        Ok(rayon::scope(|_| self.run(batch))?)
    }

    /// What the config says.
    pub fn spec(&self) -> &EncoderSpec {
        &self.spec
    }

    /// Names of the logits, in order; none for an embedding model.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Values per row; per token, for token classes.
    pub fn output_dim(&self) -> usize {
        self.head.output_dim(self.spec.hidden)
    }

    /// Number of weights that are loaded.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Whether all of its products are of f32 weights, computed in f32.
    pub fn is_f32(&self) -> bool {
        self.compute == Compute::F32 && self.layers.iter().all(Layer::is_dense)
    }

    /// Bytes that the weights take on the device.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Tensors of the checkpoint that the model does not use.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused_tensors
    }

    /// The limits that the ops rely on, checked where the row can still be named.
    fn check(&self, batch: &PackedBatch) -> Result<(), ForwardError> {
        let max = self.spec.max_tokens();
        for (row, len) in batch.lengths().enumerate() {
            if len == 0 {
                return Err(ForwardError::EmptyRow { row });
            }
            if len > max {
                return Err(ForwardError::TooLong { row, len, max });
            }
        }
        let first_above = |ids: &[u32], bound: usize| {
            let token = ids.iter().position(|&id| id as usize >= bound)?;
            let row = batch.cu_seqlens()[1..].partition_point(|&end| end as usize <= token);
            Some((row, ids[token]))
        };
        let vocabulary = self.spec.vocabulary;
        if let Some((row, token)) = first_above(batch.tokens(), vocabulary) {
            return Err(ForwardError::Token {
                row,
                token,
                vocabulary,
            });
        }
        // A family without types ignores them.
        let types = self.spec.type_vocabulary;
        match first_above(batch.type_ids(), types) {
            Some((row, type_id)) if types > 0 => Err(ForwardError::TokenType {
                row,
                type_id,
                types,
            }),
            _ => Ok(()),
        }
    }
}
