//! A decoder's weights from a GGUF file or a safetensors checkpoint, tensor by tensor: checked
//! against the plan by the headers alone, then read in the type in which they will be used.
//!
//! A weight that the file has in f32, f16 or bf16 becomes f32, or is quantized at load if that is
//! asked for; one that the file has quantized stays as it is.

use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use safetensors::Dtype;

use super::super::error::LoadError;
use super::super::gguf::GgufFile;
use super::super::weights::Checkpoint;
use super::plan::{DecoderPlan, Naming, ProjectionPlan, TensorPlan};
use super::projection::{Embedding, Projection};
use super::spec::DecoderSpec;
use crate::ops::{Linear, QuantizedLinear, RmsNorm};

/// A folder's GGUF file, if it has no safetensors.
const GGUF: &str = "model.gguf";
/// Values that a thread quantizes at a time, or a row if that is more.
const QUANTIZED_VALUES: usize = 1 << 16;

/// Where a model's description and weights come from.
#[derive(Debug)]
pub(in crate::models) enum Source {
    Gguf(GgufFile),
    Safetensors(PathBuf, Checkpoint),
}

impl Source {
    /// Opens a `*.gguf` file, or a folder with `config.json` and a safetensors checkpoint, or a
    /// folder with a `model.gguf`.
    pub fn open(path: &Path, device: &Device) -> Result<Self, LoadError> {
        if path.is_file() {
            return Ok(Self::Gguf(GgufFile::open(path)?));
        }
        if !path.join("config.json").is_file() && path.join(GGUF).is_file() {
            return Ok(Self::Gguf(GgufFile::open(&path.join(GGUF))?));
        }
        let checkpoint = Checkpoint::open(path, device)?;
        Ok(Self::Safetensors(path.to_owned(), checkpoint))
    }

    /// What the model is made of; its context is cut to `max_context`.
    pub fn spec(&self, max_context: Option<usize>) -> Result<DecoderSpec, LoadError> {
        match self {
            Self::Gguf(file) => DecoderSpec::from_gguf(file, max_context),
            Self::Safetensors(dir, _) => DecoderSpec::read_config(dir, max_context),
        }
    }

    /// The tensors that the model needs, under the names that the files have.
    pub fn plan(&self, spec: &DecoderSpec) -> DecoderPlan {
        DecoderPlan::new(
            spec,
            match self {
                Self::Gguf(_) => Naming::Gguf,
                Self::Safetensors(_, checkpoint) => {
                    Naming::of_checkpoint(|name| checkpoint.entries().contains_key(name))
                }
            },
        )
    }

    /// Checks that every tensor of the plan is there, with its shape and a type that can be read.
    /// Returns the number of their values.
    pub fn check(&self, plan: &DecoderPlan) -> Result<usize, LoadError> {
        let mut values = 0;
        for tensor in plan.tensors() {
            let found = match self {
                Self::Gguf(file) => file.tensors().get(&tensor.name).map(|info| &info.shape),
                Self::Safetensors(_, checkpoint) => checkpoint
                    .entries()
                    .get(&tensor.name)
                    .map(|entry| &entry.shape),
            };
            let Some(found) = found else {
                return Err(LoadError::MissingTensor {
                    name: tensor.name.clone(),
                    expected: tensor.shape.clone(),
                    why: format!("the file has {} tensors", self.tensor_count()),
                });
            };
            if *found != tensor.shape {
                return Err(LoadError::Shape {
                    name: tensor.name.clone(),
                    found: found.clone(),
                    expected: tensor.shape.clone(),
                });
            }
            match self {
                Self::Gguf(file) => {
                    file.tensors()[&tensor.name].dtype.supported(&tensor.name)?;
                }
                Self::Safetensors(_, checkpoint) => {
                    let dtype = checkpoint.entries()[&tensor.name].dtype;
                    if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                        return Err(LoadError::Dtype {
                            name: tensor.name.clone(),
                            found: format!("{dtype:?}"),
                        });
                    }
                }
            }
            values += tensor.shape.iter().product::<usize>();
        }
        Ok(values)
    }

    fn tensor_count(&self) -> usize {
        match self {
            Self::Gguf(file) => file.tensors().len(),
            Self::Safetensors(_, checkpoint) => checkpoint.entries().len(),
        }
    }
}

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

    /// A norm; `offset` is added to its weights.
    pub fn norm(
        &mut self,
        plan: &TensorPlan,
        offset: f32,
        epsilon: f32,
    ) -> Result<RmsNorm, LoadError> {
        let mut values = self.values(plan)?;
        for value in &mut values {
            *value += offset;
        }
        let weight = self.dense(values, &plan.shape)?;
        self.memory_bytes += 4 * weight.elem_count();
        Ok(RmsNorm::new(weight, epsilon))
    }

    pub fn projection(&mut self, plan: &ProjectionPlan) -> Result<Projection, LoadError> {
        let weights = plan.weights.iter().map(|plan| self.weight(plan));
        let weights = weights.collect::<Result<Vec<_>, _>>()?;
        let bias = if plan.biases.is_empty() {
            None
        } else {
            let mut values = Vec::new();
            for plan in &plan.biases {
                values.extend(self.values(plan)?);
            }
            let shape = [values.len()];
            self.memory_bytes += 4 * values.len();
            Some(self.dense(values, &shape)?)
        };
        let projection = side_by_side(weights, bias)?;
        self.memory_bytes += bytes_of(&projection, plan);
        Ok(projection)
    }

    /// The table of embeddings and the output projection, which are the same weights if there is
    /// no `head`.
    pub fn embedding_and_head(
        &mut self,
        table: &TensorPlan,
        head: Option<&TensorPlan>,
    ) -> Result<(Embedding, Projection), LoadError> {
        let plan = |tensor: &TensorPlan| ProjectionPlan {
            weights: vec![tensor.clone()],
            biases: Vec::new(),
        };
        let weight = self.weight(table)?;
        let embedding = match &weight {
            Weight::Dense(tensor) => {
                self.memory_bytes += 4 * tensor.elem_count();
                Embedding::Dense(tensor.clone())
            }
            Weight::Quantized(_) => {
                let Projection::Quantized(shared) = side_by_side(vec![weight], None)? else {
                    unreachable!("a quantized weight makes a quantized projection");
                };
                self.memory_bytes += shared.memory_bytes();
                let embedding = Embedding::Quantized(shared.clone());
                return Ok(match head {
                    None => (embedding, Projection::Quantized(shared)),
                    Some(head) => (embedding, self.projection(&plan(head))?),
                });
            }
        };
        if let Some(head) = head {
            return Ok((embedding, self.projection(&plan(head))?));
        }
        let head = side_by_side(vec![weight], None)?;
        self.memory_bytes += bytes_of(&head, &plan(table));
        Ok((embedding, head))
    }

    /// A matrix in the type in which it will be used.
    fn weight(&self, plan: &TensorPlan) -> Result<Weight, LoadError> {
        if let Source::Gguf(file) = self.source {
            let tensor = file.tensor(&plan.name, self.device)?;
            if !is_plain(tensor.dtype()) {
                return Ok(Weight::Quantized(tensor));
            }
        }
        let values = self.values(plan)?;
        match self.quantize.and_then(|dtype| fitting(dtype, plan)) {
            Some(dtype) => Ok(Weight::Quantized(quantize(
                &values,
                plan,
                dtype,
                self.device,
            )?)),
            None => Ok(Weight::Dense(self.dense(values, &plan.shape)?)),
        }
    }

    /// A tensor's values in f32; none is NaN or infinite.
    fn values(&self, plan: &TensorPlan) -> Result<Vec<f32>, LoadError> {
        match self.source {
            Source::Safetensors(_, checkpoint) => checkpoint.values(&plan.name),
            Source::Gguf(file) => {
                let tensor = file.tensor(&plan.name, &Device::Cpu)?;
                let tensor = tensor.dequantize(&Device::Cpu)?;
                let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
                match values.iter().position(|value| !value.is_finite()) {
                    None => Ok(values),
                    Some(index) => Err(LoadError::NonFinite {
                        name: plan.name.clone(),
                        index,
                    }),
                }
            }
        }
    }

    fn dense(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor, LoadError> {
        Ok(Tensor::from_vec(values, shape, self.device)?)
    }
}

/// One projection of weights with the same input. If one of them is quantized, the f32 ones beside
/// it are kept in that op too, as they are.
fn side_by_side(weights: Vec<Weight>, bias: Option<Tensor>) -> candle_core::Result<Projection> {
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
        return Ok(Projection::Dense(Linear::new(&weight, bias)?));
    }
    let parts = weights.into_iter().map(|weight| match weight {
        Weight::Dense(tensor) => QTensor::quantize(&tensor, GgmlDType::F32),
        Weight::Quantized(tensor) => Ok(tensor),
    });
    let parts = parts.collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Projection::Quantized(QuantizedLinear::new(&parts, bias)?))
}

fn bytes_of(projection: &Projection, plan: &ProjectionPlan) -> usize {
    match projection {
        Projection::Quantized(linear) => linear.memory_bytes(),
        Projection::Dense(_) => {
            let values = plan
                .weights
                .iter()
                .map(|plan| plan.shape.iter().product::<usize>());
            4 * values.sum::<usize>()
        }
    }
}

/// Whether a type's blocks are single numbers.
fn is_plain(dtype: GgmlDType) -> bool {
    dtype.block_size() == 1
}

/// The asked-for type if its blocks divide the rows, or `Q8_0`, or none.
fn fitting(dtype: GgmlDType, plan: &TensorPlan) -> Option<GgmlDType> {
    let row = plan.shape.last().copied()?;
    [dtype, GgmlDType::Q8_0]
        .into_iter()
        .find(|dtype| row.is_multiple_of(dtype.block_size()))
}

/// Quantizes a matrix, some rows at a time on each thread.
fn quantize(
    values: &[f32],
    plan: &TensorPlan,
    dtype: GgmlDType,
    device: &Device,
) -> candle_core::Result<QTensor> {
    let row = plan.shape[plan.shape.len() - 1];
    let rows = (QUANTIZED_VALUES / row).max(1);
    let parts = values.par_chunks(rows * row).map(|values| {
        let tensor = Tensor::from_slice(values, (values.len() / row, row), &Device::Cpu)?;
        Ok(QTensor::quantize(&tensor, dtype)?.data()?.into_owned())
    });
    let parts = parts.collect::<candle_core::Result<Vec<Vec<u8>>>>()?;
    let storage = QStorage::from_data(parts.concat().into(), device, dtype)?;
    QTensor::new(storage, plan.shape.clone())
}
