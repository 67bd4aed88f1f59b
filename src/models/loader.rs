//! A model's weights, tensor by tensor, in the type in which they will be used; they have been
//! checked against the plan by the headers alone.
//!
//! A weight that the file has in f32, f16 or bf16 becomes f32, or is quantized at load if that is
//! asked for; one that the file has quantized stays as it is.

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};

use super::error::LoadError;
use super::projection::{Embedding, Projection};
use super::quantize::{encode, fitting};
use super::source::Source;
use super::tensor_plan::{ProjectionPlan, TensorPlan};
use crate::ops::{Linear, QuantizedLinear, RmsNorm};

/// Reads weights of a checked source, and adds up what they take.
#[derive(Debug)]
pub(super) struct Loader<'a> {
    source: &'a Source,
    device: &'a Device,
    quantize: Option<GgmlDType>,
    memory_bytes: usize,
}

/// A weight as it came.
enum Weight {
    /// f32.
    Dense(Tensor),
    Quantized(QTensor),
}

impl<'a> Loader<'a> {
    /// `quantize`: the type that f32, f16 and bf16 matrices become; `None` is f32.
    pub fn new(source: &'a Source, device: &'a Device, quantize: Option<GgmlDType>) -> Self {
        Self {
            source,
            device,
            quantize,
            memory_bytes: 0,
        }
    }

    /// Bytes that the weights read so far take on the device.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// An RMS norm; `offset` is added to its weights.
    pub fn norm(
        &mut self,
        plan: &TensorPlan,
        offset: f32,
        epsilon: f32,
    ) -> Result<RmsNorm, LoadError> {
        let mut values = self.source.values(&plan.name)?;
        for value in &mut values {
            *value += offset;
        }
        Ok(RmsNorm::new(self.dense(values, &plan.shape)?, epsilon))
    }

    /// A tensor that is never quantized: a norm's weights, a bias, a small table.
    pub fn plain(&mut self, plan: &TensorPlan) -> Result<Tensor, LoadError> {
        let values = self.source.values(&plan.name)?;
        self.dense(values, &plan.shape)
    }

    /// Vectors, one after the other.
    pub fn vectors(&mut self, plans: &[TensorPlan]) -> Result<Tensor, LoadError> {
        let mut values = Vec::with_capacity(plans.iter().map(TensorPlan::elements).sum());
        for plan in plans {
            values.extend(self.source.values(&plan.name)?);
        }
        let shape = [values.len()];
        self.dense(values, &shape)
    }

    /// A linear layer with its biases, if it has any.
    pub fn projection(&mut self, plan: &ProjectionPlan) -> Result<Projection, LoadError> {
        let bias = if plan.biases.is_empty() {
            None
        } else {
            Some(self.vectors(&plan.biases)?)
        };
        self.product(&plan.weights, bias, self.quantize)
    }

    /// The same without biases: the next op adds them.
    pub fn product_only(&mut self, plan: &ProjectionPlan) -> Result<Projection, LoadError> {
        self.product(&plan.weights, None, self.quantize)
    }

    /// A linear layer that is not quantized at load, as what it takes is little beside the harm:
    /// the last one of a classifier.
    pub fn unquantized_projection(
        &mut self,
        plan: &ProjectionPlan,
    ) -> Result<Projection, LoadError> {
        let bias = self.vectors(&plan.biases)?;
        self.product(&plan.weights, Some(bias), None)
    }

    /// The table of embeddings and the output projection, which are the same weights if there is
    /// no `head`.
    pub fn embedding_and_head(
        &mut self,
        table: &TensorPlan,
        head: Option<&TensorPlan>,
    ) -> Result<(Embedding, Projection), LoadError> {
        if let Some(head) = head {
            let embedding = self.embedding(table)?;
            let head = self.product(std::slice::from_ref(head), None, self.quantize)?;
            return Ok((embedding, head));
        }
        match self.weight(table, self.quantize)? {
            weight @ Weight::Dense(_) => {
                let Weight::Dense(tensor) = &weight else {
                    unreachable!("matched just now");
                };
                self.memory_bytes += 4 * tensor.elem_count();
                let embedding = Embedding::Dense(tensor.clone());
                Ok((embedding, self.side_by_side(vec![weight], None)?))
            }
            Weight::Quantized(weight) => {
                let shared = QuantizedLinear::new(&[weight], None)?;
                self.memory_bytes += shared.memory_bytes();
                let embedding = Embedding::Quantized(shared.clone());
                Ok((embedding, Projection::Quantized(shared)))
            }
        }
    }

    /// A table of embeddings.
    pub fn embedding(&mut self, table: &TensorPlan) -> Result<Embedding, LoadError> {
        Ok(match self.weight(table, self.quantize)? {
            Weight::Dense(tensor) => {
                self.memory_bytes += 4 * tensor.elem_count();
                Embedding::Dense(tensor)
            }
            Weight::Quantized(weight) => {
                let table = QuantizedLinear::new(&[weight], None)?;
                self.memory_bytes += table.memory_bytes();
                Embedding::Quantized(table)
            }
        })
    }

    fn product(
        &mut self,
        weights: &[TensorPlan],
        bias: Option<Tensor>,
        quantize: Option<GgmlDType>,
    ) -> Result<Projection, LoadError> {
        let weights = weights.iter().map(|plan| self.weight(plan, quantize));
        let weights = weights.collect::<Result<Vec<_>, _>>()?;
        self.side_by_side(weights, bias)
    }

    /// One projection of weights with the same input. If one of them is quantized, the f32 ones
    /// beside it are kept in that op too, as they are.
    fn side_by_side(
        &mut self,
        weights: Vec<Weight>,
        bias: Option<Tensor>,
    ) -> Result<Projection, LoadError> {
        let mut dense = Vec::with_capacity(weights.len());
        for weight in &weights {
            if let Weight::Dense(tensor) = weight {
                dense.push(tensor.clone());
            }
        }
        if dense.len() == weights.len() {
            let weight = match dense.as_slice() {
                [one] => one.clone(),
                many => Tensor::cat(many, 0)?,
            };
            let linear = Linear::new(&weight, bias)?;
            self.memory_bytes += linear.memory_bytes();
            return Ok(Projection::Dense(linear));
        }
        let parts = weights.into_iter().map(|weight| match weight {
            Weight::Dense(tensor) => QTensor::quantize(&tensor, GgmlDType::F32),
            Weight::Quantized(tensor) => Ok(tensor),
        });
        let parts = parts.collect::<candle_core::Result<Vec<_>>>()?;
        let linear = QuantizedLinear::new(&parts, bias)?;
        self.memory_bytes += linear.memory_bytes();
        Ok(Projection::Quantized(linear))
    }

    /// A matrix in the type in which it will be used.
    fn weight(&self, plan: &TensorPlan, quantize: Option<GgmlDType>) -> Result<Weight, LoadError> {
        if let Source::Gguf(file) = self.source {
            let info = &file.tensors()[&plan.name];
            if !is_plain(info.dtype.supported(&plan.name)?) {
                return Ok(Weight::Quantized(file.tensor(&plan.name, self.device)?));
            }
        }
        let values = self.source.values(&plan.name)?;
        let row = plan.shape.last().copied().unwrap_or(0);
        match quantize.and_then(|dtype| fitting(dtype, row)) {
            Some(dtype) => {
                let bytes = encode(&values, row, dtype, None)?;
                drop(values);
                let storage = QStorage::from_data(bytes.into(), self.device, dtype)?;
                Ok(Weight::Quantized(QTensor::new(
                    storage,
                    plan.shape.clone(),
                )?))
            }
            None => Ok(Weight::Dense(Tensor::from_vec(
                values,
                plan.shape.as_slice(),
                self.device,
            )?)),
        }
    }

    fn dense(&mut self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor, LoadError> {
        self.memory_bytes += 4 * values.len();
        Ok(Tensor::from_vec(values, shape, self.device)?)
    }
}

/// Whether a type's blocks are single numbers.
fn is_plain(dtype: GgmlDType) -> bool {
    dtype.block_size() == 1
}
