//! A model's weights, tensor by tensor, in the type in which they will be used; they have been
//! checked against the plan by the headers alone.
//!
//! A weight that the file has in f32, f16 or bf16 becomes f32, or is quantized at load if that is
//! asked for; one that the file has quantized stays as it is.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::error::LoadError;
use super::prepared::PreparedWeights;
use super::projection::{Embedding, Projection};
use super::quantize::{encode, fitting};
use super::source::Source;
use super::tensor_plan::{ProjectionPlan, TensorPlan};
use crate::ops::{Compute, Linear, QuantizedLinear, QuantizedWeight, RmsNorm, WordTable};

/// Reads weights of a checked source, and adds up what they take.
#[derive(Debug)]
pub(super) struct Loader<'a> {
    source: &'a Source,
    device: &'a Device,
    quantize: Option<GgmlDType>,
    compute: Compute,
    prepared: &'a PreparedWeights,
    memory_bytes: usize,
}

/// The type in which a matrix will be used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// f32.
    Dense,
    /// As the file has it.
    Kept(GgmlDType),
    /// Quantized as it is loaded.
    Quantized(GgmlDType),
}

impl<'a> Loader<'a> {
    /// `quantize`: the type that f32, f16 and bf16 matrices become; `None` is f32. What is laid out
    /// already is taken from `prepared`.
    pub fn new(
        source: &'a Source,
        device: &'a Device,
        quantize: Option<GgmlDType>,
        prepared: &'a PreparedWeights,
    ) -> Self {
        Self {
            source,
            device,
            quantize,
            compute: Compute::F32,
            prepared,
            memory_bytes: 0,
        }
    }

    /// As it is, but for f32 matrices, whose products are computed in another precision.
    pub fn computing(self, compute: Compute) -> Self {
        Self { compute, ..self }
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
        self.product(&plan.weights, bias, self.quantize, self.compute)
    }

    /// The same without biases: the next op adds them.
    pub fn product_only(&mut self, plan: &ProjectionPlan) -> Result<Projection, LoadError> {
        self.product(&plan.weights, None, self.quantize, self.compute)
    }

    /// A linear layer that is neither quantized at load nor computed in less than f32, as what it
    /// takes is little beside the harm: the last one of a classifier.
    pub fn unquantized_projection(
        &mut self,
        plan: &ProjectionPlan,
    ) -> Result<Projection, LoadError> {
        let bias = self.vectors(&plan.biases)?;
        self.product(&plan.weights, Some(bias), None, Compute::F32)
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
            let weights = std::slice::from_ref(head);
            let head = self.product(weights, None, self.quantize, self.compute)?;
            return Ok((embedding, head));
        }
        match self.embedding(table)? {
            Embedding::Dense(tensor) => {
                let read = || Ok(tensor.clone());
                let shape = shape_of(table)?;
                let head = self.linear(&table.name, shape, self.compute, read)?;
                if self.device.is_cpu() {
                    self.memory_bytes += head.memory_bytes();
                }
                Ok((Embedding::Dense(tensor), Projection::Dense(head)))
            }
            Embedding::Quantized(shared) => {
                let head = Projection::Quantized(shared.clone());
                Ok((Embedding::Quantized(shared), head))
            }
        }
    }

    /// A table of embeddings.
    pub fn embedding(&mut self, table: &TensorPlan) -> Result<Embedding, LoadError> {
        if self.form(table, self.quantize)? == Form::Dense {
            let values = self.source.values(&table.name)?;
            return Ok(Embedding::Dense(self.dense(values, &table.shape)?));
        }
        let part = self.part(table, self.quantize)?;
        let table = QuantizedLinear::of(vec![part], None)?;
        self.memory_bytes += table.memory_bytes();
        Ok(Embedding::Quantized(table))
    }

    /// An encoder's table of words.
    pub fn words(&mut self, table: &TensorPlan) -> Result<WordTable, LoadError> {
        if !self.device.is_cpu() || self.form(table, self.quantize)? != Form::Dense {
            return Ok(match self.embedding(table)? {
                Embedding::Dense(table) => WordTable::Dense(table),
                Embedding::Quantized(table) => WordTable::Quantized(table),
            });
        }
        let shape = shape_of(table)?;
        let read = || self.source.values(&table.name);
        let values = self.prepared.table(&table.name, shape, read)?;
        self.memory_bytes += 4 * values.len();
        let hidden = shape[1];
        Ok(WordTable::Rows { values, hidden })
    }

    /// One projection of weights with the same input. If one of them is quantized, the f32 ones
    /// beside it are kept in that op too, as they are.
    fn product(
        &mut self,
        weights: &[TensorPlan],
        bias: Option<Tensor>,
        quantize: Option<GgmlDType>,
        compute: Compute,
    ) -> Result<Projection, LoadError> {
        let mut all_dense = true;
        for plan in weights {
            all_dense &= self.form(plan, quantize)? == Form::Dense;
        }
        if !all_dense {
            let parts = weights.iter().map(|plan| self.part(plan, quantize));
            let parts = parts.collect::<Result<_, _>>()?;
            let linear = QuantizedLinear::of(parts, bias)?;
            self.memory_bytes += linear.memory_bytes();
            return Ok(Projection::Quantized(linear));
        }
        let names: Vec<&str> = weights.iter().map(|plan| plan.name.as_str()).collect();
        let mut shape = [0; 2];
        for plan in weights {
            let [outputs, inputs] = shape_of(plan)?;
            shape = [shape[0] + outputs, inputs];
        }
        let linear = self.linear(&names.join("+"), shape, compute, || {
            let mut values = Vec::with_capacity(shape[0] * shape[1]);
            for plan in weights {
                values.append(&mut self.source.values(&plan.name)?);
            }
            Ok(Tensor::from_vec(values, &shape, self.device)?)
        })?;
        self.memory_bytes += linear.memory_bytes();
        Ok(Projection::Dense(linear.with_bias(bias)))
    }

    /// A dense matrix, laid out for the CPU if it is not so already. A device takes it as it is.
    fn linear(
        &self,
        name: &str,
        shape: [usize; 2],
        compute: Compute,
        read: impl FnOnce() -> Result<Tensor, LoadError>,
    ) -> Result<Linear, LoadError> {
        if self.device.is_cpu() {
            return self.prepared.linear(name, shape, compute, read);
        }
        Ok(Linear::new(&read()?, None)?)
    }

    /// A matrix of a projection that is not all f32.
    fn part(
        &self,
        plan: &TensorPlan,
        quantize: Option<GgmlDType>,
    ) -> Result<QuantizedWeight, LoadError> {
        let shape = shape_of(plan)?;
        let [outputs, inputs] = shape;
        let form = self.form(plan, quantize)?;
        let dtype = match form {
            Form::Dense => GgmlDType::F32,
            Form::Kept(dtype) | Form::Quantized(dtype) => dtype,
        };
        self.prepared.quantized(&plan.name, dtype, shape, || {
            Ok(match (form, self.source) {
                (Form::Kept(_), Source::Gguf(file)) => {
                    let blocks = file.bytes(&plan.name)?;
                    QuantizedWeight::of_blocks(dtype, outputs, inputs, blocks)?
                }
                (Form::Quantized(_), _) => {
                    let values = self.source.values(&plan.name)?;
                    let blocks = encode(&values, inputs, dtype, None)?;
                    QuantizedWeight::of_blocks(dtype, outputs, inputs, &blocks)?
                }
                _ => {
                    let values = self.source.values(&plan.name)?;
                    let values = Tensor::from_vec(values, plan.shape.as_slice(), self.device)?;
                    QuantizedWeight::new(&QTensor::quantize(&values, GgmlDType::F32)?)?
                }
            })
        })
    }

    /// What becomes of a matrix. On a device all are dense: quantized ones have no kernel there yet.
    fn form(&self, plan: &TensorPlan, quantize: Option<GgmlDType>) -> Result<Form, LoadError> {
        if !self.device.is_cpu() {
            return Ok(Form::Dense);
        }
        if let Source::Gguf(file) = self.source {
            let dtype = file.tensors()[&plan.name].dtype.supported(&plan.name)?;
            if !is_plain(dtype) {
                return Ok(Form::Kept(dtype));
            }
        }
        let row = plan.shape.last().copied().unwrap_or(0);
        let asked = quantize.and_then(|dtype| fitting(dtype, row));
        Ok(asked.map_or(Form::Dense, Form::Quantized))
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

/// `[outputs, inputs]`
fn shape_of(plan: &TensorPlan) -> Result<[usize; 2], LoadError> {
    match *plan.shape {
        [outputs, inputs] => Ok([outputs, inputs]),
        _ => Err(LoadError::Shape {
            name: plan.name.clone(),
            found: plan.shape.clone(),
            expected: vec![0, 0],
        }),
    }
}
