//! The encoder once more, in ops that have a way back: how its output changes with the embeddings of its
//! words, along the straight line from a baseline's embeddings to the text's.
//!
//! ```text
//! x(α) = word[b] + α (word[t] − word[b]) + position + type        b: baseline, t: text
//! share[token] = Σ (word[t] − word[b]) · ∂ (c · F(x(α))) / ∂x     c: what is made of the outputs
//! ```
//! The integrals of these shares over α are integrated gradients (Sundararajan, Taly and Yan 2017). The
//! ops that serve are fused and have no backward pass; these are candle's, with the same weights in f32,
//! read from the same files. Always on the CPU, some points of the line at a time.

use std::path::Path;

use candle_core::{
    CpuStorage, CustomOp1, D, Device, Layout, Result as DeviceResult, Shape, Storage, Tensor, Var,
    backend::BackendStorage as _, bail,
};

use super::super::error::{ForwardError, LoadError};
use super::super::heads::Head;
use super::super::loader::Loader;
use super::super::plan::{EncoderPlan, HeadPlan, LayerPlan, NormPlan};
use super::super::prepared::PreparedWeights;
use super::super::source::Source;
use super::super::spec::EncoderSpec;
use super::super::tensor_plan::{ProjectionPlan, TensorPlan};
use crate::ops::{Activation, Pool, Pooling};

/// An encoder whose outputs have gradients.
#[derive(Debug)]
pub struct DifferentiableEncoder {
    spec: EncoderSpec,
    /// `[vocabulary, hidden]`
    word: Tensor,
    /// `[positions, hidden]`
    position: Tensor,
    /// `[types, hidden]`
    token_type: Option<Tensor>,
    embed_norm: Norm,
    layers: Vec<Layer>,
    head: DifferentiableHead,
}

/// The line from a baseline to a text; all three have a value a token.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Token ids of the text.
    pub ids: &'a [u32],
    /// Their segments.
    pub type_ids: &'a [u32],
    /// Token ids of the baseline.
    pub baseline: &'a [u32],
}

#[derive(Debug)]
struct Layer {
    heads: usize,
    qkv: Product,
    attention_out: Product,
    attention_norm: Norm,
    feed_in: Product,
    activation: Activation,
    feed_out: Product,
    feed_norm: Norm,
}

#[derive(Debug)]
enum DifferentiableHead {
    Embed(Pool),
    Sequence {
        dense: Product,
        activation: Activation,
        out: Product,
    },
}

#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

/// `x·Wᵀ + b` as an op of one argument: candle's own product would find gradients of the weights, too,
/// at twice the time.
#[derive(Debug, Clone)]
struct Product {
    /// `[out, in]`
    weight: Tensor,
    /// `[out]`
    bias: Vec<f32>,
}

impl DifferentiableEncoder {
    /// Loads the model that [`EncoderModel::load`](super::EncoderModel::load) loads, for its gradients.
    ///
    /// # Errors
    /// As there, and if the head is one a token.
    pub fn load(source: &Path, head: &Head) -> Result<Self, LoadError> {
        let source = Source::open(source)?;
        let spec = EncoderSpec::of(&source)?;
        head.check(&spec)?;
        let plan = EncoderPlan::of(&source, &spec, head);
        source.check(plan.tensors())?;
        let prepared = PreparedWeights::off();
        let mut loader = Loader::new(&source, &Device::Cpu, None, &prepared);
        let loader = &mut loader;
        Ok(Self {
            word: loader.plain(&plan.word)?,
            position: loader.plain(&plan.position)?,
            token_type: match &plan.token_type {
                Some(table) => Some(loader.plain(table)?),
                None => None,
            },
            embed_norm: Norm::load(&plan.embed_norm, &spec, loader)?,
            layers: plan
                .layers
                .iter()
                .map(|layer| Layer::load(layer, &spec, loader))
                .collect::<Result<_, _>>()?,
            head: DifferentiableHead::load(&plan.head, head, loader)?,
            spec,
        })
    }

    /// The outputs at some points of a line, `[points, outputs]`: logits, or vectors that are not
    /// normalised.
    ///
    /// # Errors
    /// If the line is not one of this model's, or the device fails.
    pub fn outputs(&self, line: &Line<'_>, points: &[f64]) -> Result<Vec<Vec<f32>>, ForwardError> {
        let ends = self.ends(line)?;
        Ok(self.forward(&ends.at(points)?)?.to_vec2()?)
    }

    /// The tokens' shares at some points of a line, `[points, tokens]`: along the line, by how much
    /// `slope · outputs` rises with each token, `slope` being made of the point's outputs.
    ///
    /// # Errors
    /// As [`DifferentiableEncoder::outputs`].
    pub fn shares(
        &self,
        line: &Line<'_>,
        points: &[f64],
        slope: &dyn Fn(&[f32]) -> Vec<f32>,
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        let ends = self.ends(line)?;
        let x = Var::from_tensor(&ends.at(points)?)?;
        let outputs = self.forward(x.as_tensor())?;
        let slopes: Vec<f32> = outputs
            .to_vec2::<f32>()?
            .iter()
            .flat_map(|outputs| slope(outputs))
            .collect();
        let slopes = Tensor::from_vec(slopes, outputs.shape(), &Device::Cpu)?;
        let gradients = (outputs * slopes)?.sum_all()?.backward()?;
        let Some(gradient) = gradients.get(&x) else {
            return Err(candle_core::Error::Msg("no gradient came back".to_owned()).into());
        };
        let shares = gradient.broadcast_mul(&ends.difference)?.sum(D::Minus1)?;
        Ok(shares.to_vec2()?)
    }

    /// Bytes that one point of a line with so many tokens takes, about: what each op has made is kept
    /// until its gradient is found.
    pub fn point_bytes(spec: &EncoderSpec, tokens: usize) -> usize {
        let of_tokens = tokens * (24 * spec.hidden + 6 * spec.intermediate);
        let of_pairs = 6 * spec.heads * tokens * tokens;
        size_of::<f32>() * spec.layers * (of_tokens + of_pairs)
    }

    /// Looks a line's ends up.
    fn ends(&self, line: &Line<'_>) -> Result<Ends, ForwardError> {
        let tokens = line.ids.len();
        let max = self.spec.max_tokens();
        if tokens == 0 || line.baseline.len() != tokens || line.type_ids.len() != tokens {
            return Err(ForwardError::EmptyRow { row: 0 });
        }
        if tokens > max {
            return Err(ForwardError::TooLong {
                row: 0,
                len: tokens,
                max,
            });
        }
        let rows = |table: &Tensor, indices: &[u32]| {
            table.index_select(&Tensor::new(indices, &Device::Cpu)?, 0)
        };
        let baseline = rows(&self.word, line.baseline)?;
        let difference = (rows(&self.word, line.ids)? - &baseline)?;
        let first = self.spec.position_offset as u32;
        let positions: Vec<u32> = (first..first + tokens as u32).collect();
        let mut begin = (baseline + rows(&self.position, &positions)?)?;
        if let Some(table) = &self.token_type {
            begin = (begin + rows(table, line.type_ids)?)?;
        }
        Ok(Ends { begin, difference })
    }

    /// `[points, tokens, hidden]` to `[points, outputs]`.
    fn forward(&self, x: &Tensor) -> DeviceResult<Tensor> {
        let mut x = self.embed_norm.apply(x)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        match &self.head {
            DifferentiableHead::Embed(pool) => {
                let vectors = match pool.pooling {
                    Pooling::Mean => x.mean(1)?,
                    Pooling::Cls => x.narrow(1, 0, 1)?.squeeze(1)?,
                    Pooling::Last => x.narrow(1, x.dim(1)? - 1, 1)?.squeeze(1)?,
                };
                match pool.dimension {
                    Some(dimension) => vectors.narrow(1, 0, dimension),
                    None => Ok(vectors),
                }
            }
            DifferentiableHead::Sequence {
                dense,
                activation,
                out,
            } => {
                let first = x.narrow(1, 0, 1)?.squeeze(1)?;
                out.apply(&activate(*activation, &dense.apply(&first)?)?)
            }
        }
    }
}

/// Where a line begins, positions and types included, and how far it goes: `[tokens, hidden]` each.
struct Ends {
    begin: Tensor,
    difference: Tensor,
}

impl Ends {
    /// `[points, tokens, hidden]`
    fn at(&self, points: &[f64]) -> DeviceResult<Tensor> {
        let points: DeviceResult<Vec<Tensor>> = points
            .iter()
            .map(|&point| &self.begin + (&self.difference * point)?)
            .collect();
        Tensor::stack(&points?, 0)
    }
}

impl Layer {
    fn load(
        plan: &LayerPlan,
        spec: &EncoderSpec,
        loader: &mut Loader<'_>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            heads: spec.heads,
            qkv: Product::load(&plan.qkv, loader)?,
            attention_out: Product::load(&plan.attention_out, loader)?,
            attention_norm: Norm::load(&plan.attention_norm, spec, loader)?,
            feed_in: Product::load(&plan.feed_in, loader)?,
            activation: spec.activation,
            feed_out: Product::load(&plan.feed_out, loader)?,
            feed_norm: Norm::load(&plan.feed_norm, spec, loader)?,
        })
    }

    /// `[points, tokens, hidden]` to the same.
    fn forward(&self, x: &Tensor) -> DeviceResult<Tensor> {
        let attended = self.attend(&self.qkv.apply(x)?)?;
        let x = self
            .attention_norm
            .apply(&(self.attention_out.apply(&attended)? + x)?)?;
        let inner = activate(self.activation, &self.feed_in.apply(&x)?)?;
        self.feed_norm.apply(&(self.feed_out.apply(&inner)? + x)?)
    }

    /// `[points, tokens, 3 · hidden]` to `[points, tokens, hidden]`: `softmax(q·kᵀ / √d)·v` a head.
    fn attend(&self, qkv: &Tensor) -> DeviceResult<Tensor> {
        let (points, tokens, three) = qkv.dims3()?;
        let width = three / 3 / self.heads;
        let qkv = qkv.reshape((points, tokens, 3, self.heads, width))?;
        let part = |at| {
            let part = qkv.narrow(2, at, 1)?.squeeze(2)?;
            part.transpose(1, 2)?.contiguous()
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scale = 1.0 / (width as f64).sqrt();
        let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?;
        // The largest only keeps the powers finite: what is subtracted from all has no gradient.
        let largest = scores.max_keepdim(D::Minus1)?.detach();
        let powers = scores.broadcast_sub(&largest)?.exp()?;
        let weights = powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?;
        let attended = weights.matmul(&v)?.transpose(1, 2)?.contiguous()?;
        attended.reshape((points, tokens, three / 3))
    }
}

impl DifferentiableHead {
    fn load(plan: &HeadPlan, head: &Head, loader: &mut Loader<'_>) -> Result<Self, LoadError> {
        Ok(match plan {
            HeadPlan::Embed(pool) => Self::Embed(*pool),
            HeadPlan::Sequence {
                dense,
                activation,
                out,
            } => Self::Sequence {
                dense: Product::load(dense, loader)?,
                activation: *activation,
                out: Product::load(out, loader)?,
            },
            HeadPlan::Tokens { .. } => {
                return Err(LoadError::Head {
                    head: head.name(),
                    reason: "it has an output a token, no gradient is made of those".to_owned(),
                });
            }
        })
    }
}

impl Norm {
    fn load(
        plan: &NormPlan,
        spec: &EncoderSpec,
        loader: &mut Loader<'_>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            weight: loader.plain(&plan.weight)?,
            bias: loader.plain(&plan.bias)?,
            epsilon: spec.norm_epsilon.into(),
        })
    }

    fn apply(&self, x: &Tensor) -> DeviceResult<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let scaled = centred.broadcast_div(&(variance + self.epsilon)?.sqrt()?)?;
        scaled
            .broadcast_mul(&self.weight)?
            .broadcast_add(&self.bias)
    }
}

impl Product {
    fn load(plan: &ProjectionPlan, loader: &mut Loader<'_>) -> Result<Self, LoadError> {
        let plain = |plan: &TensorPlan| loader.plain(plan);
        let weights: Vec<Tensor> = plan.weights.iter().map(plain).collect::<Result<_, _>>()?;
        Ok(Self {
            weight: Tensor::cat(&weights, 0)?,
            bias: loader.vectors(&plan.biases)?.to_vec1()?,
        })
    }

    /// `[…, in]` to `[…, out]`
    fn apply(&self, x: &Tensor) -> DeviceResult<Tensor> {
        x.contiguous()?.apply_op1(self.clone())
    }
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> DeviceResult<(CpuStorage, Shape)> {
        let (outputs, inputs) = self.weight.dims2()?;
        let mut shape = layout.dims().to_vec();
        if shape.pop() != Some(inputs) {
            bail!("{:?} has not {inputs} values a row", layout.shape());
        }
        let rows = shape.iter().product();
        shape.push(outputs);
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let Storage::Cpu(weight) = &*weight else {
            bail!("the weights are not on the CPU");
        };
        let flat = Layout::contiguous_with_offset((rows, inputs), layout.start_offset());
        let transposed = weight_layout.transpose(0, 1)?;
        let product = x.matmul(weight, (1, rows, outputs, inputs), &flat, &transposed)?;
        let CpuStorage::F32(mut values) = product else {
            bail!("a product is not f32");
        };
        for row in values.chunks_exact_mut(outputs.max(1)) {
            for (value, bias) in row.iter_mut().zip(&self.bias) {
                *value += bias;
            }
        }
        Ok((CpuStorage::F32(values), shape.into()))
    }

    /// `∂x = ∂y·W`
    fn bwd(&self, arg: &Tensor, _: &Tensor, gradient: &Tensor) -> DeviceResult<Option<Tensor>> {
        let (outputs, _) = self.weight.dims2()?;
        let rows = gradient.elem_count() / outputs.max(1);
        let flat = gradient.contiguous()?.reshape((rows, outputs))?;
        Ok(Some(flat.matmul(&self.weight)?.reshape(arg.shape())?))
    }
}

fn activate(activation: Activation, x: &Tensor) -> DeviceResult<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
        Activation::Tanh => x.tanh(),
        Activation::Silu => x.silu(),
    }
}
