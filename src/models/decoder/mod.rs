//! The decoder: one forward for all families, over packed rows of many sequences at once.
//!
//! ```text
//! x = embedding[token] · scale
//! per layer:  x = x + post(W_o · attention(W_qkv · rms(x)))
//!             x = x + post(W_down · (act(W_gate · rms(x)) · W_up · rms(x)))
//! logits = W_head · rms(x)
//! ```
//! Pre-norm, as Llama (Touvron et al. 2023, arXiv:2302.13971); `post` is a norm in Gemma and nothing
//! elsewhere. What families differ in is in [`DecoderSpec`]. In the last layer, the tokens whose
//! logits nobody asked for are dropped as soon as attention has read them.

pub mod batch;
pub mod cache;
pub mod rope;
pub mod spec;
pub mod summary;

mod layer;
mod logits;
pub(super) mod plan;
mod spec_config;
mod spec_gguf;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result as DeviceResult, Tensor, bail};

use super::error::{ForwardError, LoadError};
use super::loader::Loader;
use super::prepared::PreparedWeights;
use super::projection::{Embedding, Projection};
use super::source::Source;
use crate::ops::{CacheType, LayerCache, PagedRows, RmsNorm, soft_cap};
use layer::Layer;
use plan::DecoderPlan;

pub use batch::{DecoderBatch, DecoderRow};
pub use cache::KvCache;
pub use logits::StepLogits;
pub use spec::{Architecture, DecoderSpec};
pub use summary::DecoderSummary;

/// How to load a decoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecoderOptions {
    /// The type that matrices in f32, f16 and bf16 become, or a near one where its blocks do not
    /// divide their rows, see [`fitting`](super::quantize::fitting). `None` keeps them in f32.
    /// Matrices that the file has quantized stay as they are.
    pub quantize: Option<GgmlDType>,
    /// The most positions that a sequence will have; `None` is what the model has. `LongRoPE`
    /// models choose their factors by it.
    pub max_context: Option<usize>,
}

/// A loaded decoder. It lives on one executor thread and takes a step at a time.
#[derive(Debug)]
pub struct DecoderModel {
    spec: DecoderSpec,
    embedding: Embedding,
    /// Before the first layer; the others' are in the layers before them.
    first_norm: RmsNorm,
    layers: Vec<Layer>,
    head: Projection,
    device: Device,
    parameters: usize,
    memory_bytes: usize,
}

impl DecoderModel {
    /// Loads a `*.gguf` file, or a folder with `config.json` and a safetensors checkpoint (or with
    /// a `model.gguf`) to `device`.
    ///
    /// # Errors
    /// If the model is not supported, or its files are damaged. The whole header is checked before
    /// the first weight is read.
    pub fn load(
        source: &Path,
        options: &DecoderOptions,
        device: &Device,
    ) -> Result<Self, LoadError> {
        Self::load_with(source, options, device, &PreparedWeights::off())
    }

    /// As [`DecoderModel::load`], with the layout of matrices from `prepared` where it has it. The
    /// model is the same, to the last bit.
    ///
    /// # Errors
    /// As [`DecoderModel::load`].
    pub fn load_with(
        source: &Path,
        options: &DecoderOptions,
        device: &Device,
        prepared: &PreparedWeights,
    ) -> Result<Self, LoadError> {
        let source = Source::open(source)?;
        let spec = DecoderSpec::of(&source, options.max_context)?;
        // Every tensor of every layer must exist, so a file of a few kilobytes cannot make the
        // plan of a huge config cost more than its own length.
        let plan = DecoderPlan::of(&source, &spec);
        let parameters = source.check(plan.tensors())?;

        if prepared.unusable().is_none() {
            source.expect_few_reads();
        }
        let mut loader = Loader::new(&source, device, options.quantize, prepared);
        let mut norm = |plan| loader.norm(plan, spec.norm_offset, spec.norm_epsilon);
        // In the order of the forward pass: each layer ends with the norm of what follows it.
        let mut norms = Vec::with_capacity(plan.layers.len() + 1);
        for layer in &plan.layers {
            norms.push(norm(&layer.attention_norm)?);
        }
        norms.push(norm(&plan.norm)?);
        let mut norms = norms.into_iter();
        let Some(first_norm) = norms.next() else {
            unreachable!("there is the final norm at least");
        };
        let (embedding, head) = loader.embedding_and_head(&plan.embedding, plan.head.as_ref())?;
        let rope = Arc::new(spec.rope.build(spec.context_length)?);
        let local_rope = spec.local_rope.as_ref();
        let local_rope = local_rope.map(|rope| rope.build(spec.context_length));
        let local_rope = local_rope.transpose()?.map(Arc::new);
        let mut layers = Vec::with_capacity(plan.layers.len());
        for (index, (plan, next_norm)) in plan.layers.iter().zip(norms).enumerate() {
            let rope = match &local_rope {
                Some(local) if spec.uses_local_rope(index) => local,
                _ => &rope,
            };
            layers.push(Layer::load(
                plan,
                &spec,
                index,
                rope,
                next_norm,
                &mut loader,
            )?);
        }
        Ok(Self {
            embedding,
            first_norm,
            layers,
            head,
            device: device.clone(),
            parameters,
            memory_bytes: loader.memory_bytes(),
            spec,
        })
    }

    /// Where the weights are and its steps run.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the files say.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Bytes that the weights take on the device.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// An empty cache of `blocks` blocks of `block_size` positions; see
    /// [`KvCache::bytes_per_block`] for what it takes.
    ///
    /// # Errors
    /// If it has no blocks or no positions, or the device has no room for it.
    pub fn new_cache(
        &self,
        blocks: usize,
        block_size: usize,
        cache_type: CacheType,
    ) -> Result<KvCache, ForwardError> {
        let geometry = cache::geometry(&self.spec, blocks, block_size);
        let most = isize::MAX as usize / (8 * self.spec.kv_heads * self.spec.head_dim);
        let positions = blocks.checked_mul(block_size);
        if !positions.is_some_and(|positions| (1..=most).contains(&positions)) {
            return Err(ForwardError::Cache { blocks, block_size });
        }
        let layers = self
            .layers
            .iter()
            .map(|_| LayerCache::new(&geometry, cache_type, &self.device))
            .collect::<DeviceResult<_>>()?;
        Ok(KvCache { layers, geometry })
    }

    /// Runs one step: writes the keys and values of all tokens to `cache`, and returns the raw
    /// logits after those of `batch.logit_tokens`, `[logit_tokens, vocabulary]`, f32, in their
    /// order, on the CPU.
    ///
    /// # Errors
    /// If the batch contradicts itself, the model or the cache, or the device fails. The cache is
    /// as before in all cases but the last.
    pub fn forward(&self, batch: &DecoderBatch, cache: &KvCache) -> Result<Tensor, ForwardError> {
        batch.check(&self.spec)?;
        let rows = batch
            .rows
            .iter()
            .map(|row| (row.first_position, row.tokens, row.blocks.as_slice()));
        let rows = PagedRows::new(rows, &cache.geometry)
            .map_err(|error| ForwardError::Blocks(error.to_string()))?;
        if batch.tokens.is_empty() {
            return Ok(no_logits(self.spec.vocabulary)?);
        }
        if !self.device.is_cpu() {
            // What is loaded for a device belongs to this thread.
            return Ok(self.run(batch, &rows, cache)?);
        }
        // Inside the thread pool, so that each op finds itself on one of its threads: from outside,
        // every op would hand its work over and be woken when it is done, some 200 times a step.
        Ok(rayon::scope(|_| self.run(batch, &rows, cache))?)
    }

    fn run(&self, batch: &DecoderBatch, rows: &PagedRows, cache: &KvCache) -> DeviceResult<Tensor> {
        let Some((last, layers)) = self.layers.split_last() else {
            bail!("a decoder has at least one layer");
        };
        let Some((last_cache, caches)) = cache.layers.split_last() else {
            bail!("a cache has at least one layer");
        };
        if caches.len() != layers.len() {
            bail!("the cache is of another model");
        }
        let x = self
            .embedding
            .rows(&batch.tokens, self.spec.embedding_scale)?;
        let mut normed = self.first_norm.apply(&x)?;
        for (layer, cache) in layers.iter().zip(caches) {
            let attended = layer.attend(&normed, cache, rows)?;
            normed = layer.feed(&x, &attended)?;
        }
        let attended = last.attend(&normed, last_cache, rows)?;
        if batch.logit_tokens.is_empty() {
            return no_logits(self.spec.vocabulary);
        }
        let normed = if batch
            .logit_tokens
            .iter()
            .copied()
            .eq(0..batch.tokens.len() as u32)
        {
            last.feed(&x, &attended)?
        } else {
            let wanted = batch.logit_tokens.as_slice();
            let wanted = Tensor::from_slice(wanted, wanted.len(), &self.device)?;
            let pick = |tensor: &Tensor| tensor.index_select(&wanted, 0);
            last.feed(&pick(&x)?, &pick(&attended)?)?
        };
        // The one wait of a step on a device; on the CPU this is nothing.
        let logits = self.head.apply(&normed)?.to_device(&Device::Cpu)?;
        if let Some(cap) = self.spec.logit_softcap {
            soft_cap(&logits, cap)?;
        }
        Ok(logits)
    }
}

/// `[0, vocabulary]`, on the CPU: a device has no memory without bytes.
fn no_logits(vocabulary: usize) -> DeviceResult<Tensor> {
    Tensor::zeros((0, vocabulary), DType::F32, &Device::Cpu)
}
