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

use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Result as DeviceResult, Tensor};

use super::error::{ForwardError, LoadError};
use super::heads::{Head, LoadedHead, RowOutput};
use super::loader::Loader;
use super::packed::PackedBatch;
use super::plan::{EncoderPlan, LayerPlan, NormPlan};
use super::prepared::PreparedWeights;
use super::projection::Projection;
use super::source::Source;
use super::spec::EncoderSpec;
use super::tensor_plan::ProjectionPlan;
use crate::ops::{Attention, BiasActivation, EmbedNorm, Pool, Pooling, ResidualNorm, upload};

/// How to load an encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// What it is for.
    pub head: Head,
    /// The type that matrices in f32, f16 and bf16 become, or a near one where its blocks do not
    /// divide their rows, see [`fitting`](super::quantize::fitting). `None` keeps them in f32.
    /// Matrices that the file has quantized stay as they are.
    pub quantize: Option<GgmlDType>,
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
        let mut loader = Loader::new(&source, device, options.quantize, prepared);
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
            return Ok(self.run(batch)?);
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

    /// Bytes that the weights take on the device.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Tensors of the checkpoint that the model does not use.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused_tensors
    }

    fn run(&self, batch: &PackedBatch) -> DeviceResult<Vec<RowOutput>> {
        let lists = [batch.tokens(), batch.type_ids(), batch.cu_seqlens()];
        let [tokens, type_ids, mut cu_seqlens] = upload(&self.device, lists)?;
        let mut x = self.embed.apply(&tokens, &type_ids, &cu_seqlens)?;
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            let keep = self.single_token.filter(|_| i == last);
            x = layer.forward(&x, &cu_seqlens, batch.max_len(), keep)?;
        }
        if self.single_token.is_some() {
            let ends: Vec<u32> = (0..=batch.rows() as u32).collect();
            [cu_seqlens] = upload(&self.device, [&ends])?;
        }
        self.head.forward(&x, &cu_seqlens, batch.lengths())
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

#[derive(Debug)]
struct Layer {
    /// q, k and v in one matrix.
    qkv: Projection,
    attention: Attention,
    attention_out: Projection,
    attention_norm: ResidualNorm,
    feed_in: Projection,
    feed_bias: Tensor,
    activation: BiasActivation,
    feed_out: Projection,
    feed_norm: ResidualNorm,
}

impl Layer {
    fn load(
        plan: &LayerPlan,
        spec: &EncoderSpec,
        loader: &mut Loader<'_>,
    ) -> Result<Self, LoadError> {
        let mut residual_norm = |linear: &ProjectionPlan, norm: &NormPlan| {
            Ok::<_, LoadError>(ResidualNorm {
                bias: loader.vectors(&linear.biases)?,
                weight: loader.plain(&norm.weight)?,
                norm_bias: loader.plain(&norm.bias)?,
                epsilon: spec.norm_epsilon,
            })
        };
        let attention_norm = residual_norm(&plan.attention_out, &plan.attention_norm)?;
        let feed_norm = residual_norm(&plan.feed_out, &plan.feed_norm)?;
        Ok(Self {
            qkv: loader.product_only(&plan.qkv)?,
            attention: Attention {
                heads: spec.heads,
                bias: Some(loader.vectors(&plan.qkv.biases)?),
            },
            attention_out: loader.product_only(&plan.attention_out)?,
            attention_norm,
            feed_in: loader.product_only(&plan.feed_in)?,
            feed_bias: loader.vectors(&plan.feed_in.biases)?,
            activation: BiasActivation(spec.activation),
            feed_out: loader.product_only(&plan.feed_out)?,
            feed_norm,
        })
    }

    /// `x` `[tokens, hidden]` to the same shape, or to `[rows, hidden]` if one token per row is
    /// all that is kept. No row has more than `longest` tokens.
    fn forward(
        &self,
        x: &Tensor,
        cu_seqlens: &Tensor,
        longest: usize,
        keep: Option<Pooling>,
    ) -> DeviceResult<Tensor> {
        let qkv = self.qkv.apply(x)?;
        let attended = self.attention.apply_within(&qkv, cu_seqlens, longest)?;
        let (attended, x) = match keep {
            None => (attended, x.clone()),
            Some(pooling) => {
                let pool = Pool::plain(pooling);
                (
                    pool.apply(&attended, cu_seqlens)?,
                    pool.apply(x, cu_seqlens)?,
                )
            }
        };
        let y = self.attention_out.apply(&attended)?;
        self.attention_norm.apply(&y, &x)?;
        let inner = self.feed_in.apply(&y)?;
        self.activation.apply(&inner, &self.feed_bias)?;
        let out = self.feed_out.apply(&inner)?;
        self.feed_norm.apply(&out, &y)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        HIDDEN, TempDir, Tensors, bert_config, bert_tensors, write_config, write_safetensors,
    };
    use super::*;
    use safetensors::Dtype;
    use serde_json::{Value, json};

    const MEAN: Head = Head::Embed {
        pooling: Pooling::Mean,
        normalize: true,
        dimension: None,
    };

    fn load(config: &Value, tensors: &Tensors, head: Head) -> Result<EncoderModel, LoadError> {
        let dir = TempDir::new().expect("a temporary directory");
        write_config(dir.path(), config);
        write_safetensors(&dir.path().join("model.safetensors"), tensors);
        EncoderModel::load(
            dir.path(),
            &LoadOptions {
                head,
                quantize: None,
            },
            &Device::Cpu,
        )
    }

    fn values(output: &RowOutput) -> &[f32] {
        match output {
            RowOutput::Embedding(values)
            | RowOutput::Logits(values)
            | RowOutput::TokenLogits { values, .. } => values,
        }
    }

    fn heads() -> [Head; 5] {
        let embed = |pooling, dimension| Head::Embed {
            pooling,
            normalize: true,
            dimension,
        };
        [
            embed(Pooling::Mean, None),
            embed(Pooling::Cls, Some(5)),
            embed(Pooling::Last, None),
            Head::SequenceClass,
            Head::TokenClass,
        ]
    }

    #[test]
    fn a_row_in_a_batch_equals_the_row_alone() -> Result<(), Box<dyn std::error::Error>> {
        let rows: Vec<(Vec<u32>, Vec<u32>)> = [1, 7, 70, 33, 2, 16, 49]
            .iter()
            .map(|&len| {
                let ids = |step: u32, bound| (0..len).map(|i| (i * step + len) % bound).collect();
                (ids(17, 50), ids(3, 2))
            })
            .collect();
        for head in heads() {
            let model = load(&bert_config(), &bert_tensors("bert."), head.clone())?;
            let mut batch = PackedBatch::new();
            for (tokens, types) in &rows {
                batch.push_row(tokens, Some(types));
            }
            let together = model.forward(&batch)?;
            assert_eq!(together.len(), rows.len());
            for ((tokens, types), packed) in rows.iter().zip(&together) {
                let mut single = PackedBatch::new();
                single.push_row(tokens, Some(types));
                let alone = model.forward(&single)?;
                let (a, b) = (values(&alone[0]), values(packed));
                let per_token = if head == Head::TokenClass {
                    tokens.len()
                } else {
                    1
                };
                assert_eq!(a.len(), model.output_dim() * per_token);
                // On the CPU even to the last bit: no sum's order depends on the batch.
                assert_eq!(a, b, "{head:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn dropping_tokens_before_the_head_changes_nothing() -> Result<(), Box<dyn std::error::Error>> {
        let mut model = load(&bert_config(), &bert_tensors(""), Head::SequenceClass)?;
        let mut batch = PackedBatch::new();
        batch.push_row(&[1, 2, 3, 4, 5], None);
        batch.push_row(&[9, 8, 7], None);
        let trimmed = model.forward(&batch)?;
        model.single_token = None;
        for (a, b) in trimmed.iter().zip(&model.forward(&batch)?) {
            for (a, b) in values(a).iter().zip(values(b)) {
                assert!((a - b).abs() < 1e-5);
            }
        }
        Ok(())
    }

    #[test]
    fn prefix_legacy_names_and_half_precision_load_the_same() -> Result<(), LoadError> {
        let plain = bert_tensors("");
        let expected = load(&bert_config(), &plain, Head::SequenceClass)?;
        let mut legacy = Tensors::new();
        for (name, tensor) in plain {
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            let head = name.starts_with("classifier");
            let name = if head { name } else { format!("bert.{name}") };
            legacy.insert(name, tensor);
        }
        legacy.insert("extra".to_owned(), (Dtype::I64, vec![1], vec![0; 8]));
        let model = load(&bert_config(), &legacy, Head::SequenceClass)?;
        assert_eq!(model.unused_tensors(), ["extra"]);
        assert_eq!(model.parameters(), expected.parameters());
        // As f32, and what the last panel of each matrix is padded with.
        let bytes = 4 * model.parameters();
        assert!((bytes..2 * bytes).contains(&model.memory_bytes()));
        assert_eq!(model.labels(), ["a", "b", "c"]);

        let mut batch = PackedBatch::new();
        batch.push_row(&[3, 1, 4, 1, 5], None);
        let run = |model: &EncoderModel| model.forward(&batch).expect("a forward");
        assert_eq!(run(&model), run(&expected));

        for (dtype, tolerance) in [(Dtype::F16, 5e-2), (Dtype::BF16, 0.3)] {
            let mut half = legacy.clone();
            for (kind, _, bytes) in half.values_mut().filter(|t| t.0 == Dtype::F32) {
                *kind = dtype;
                let wide: Vec<f32> = bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b))
                    .collect();
                *bytes = wide
                    .iter()
                    .flat_map(|x| match dtype {
                        Dtype::F16 => half::f16::from_f32(*x).to_le_bytes(),
                        _ => half::bf16::from_f32(*x).to_le_bytes(),
                    })
                    .collect();
            }
            let narrow = run(&load(&bert_config(), &half, Head::SequenceClass)?);
            for (a, b) in values(&narrow[0]).iter().zip(values(&run(&expected)[0])) {
                assert!((a - b).abs() < tolerance, "{dtype:?}: {a} {b}");
            }
        }
        Ok(())
    }

    #[test]
    fn load_errors_name_the_tensor() {
        let check = |edit: &dyn Fn(&mut Tensors), expected: &[&str]| {
            let mut tensors = bert_tensors("bert.");
            edit(&mut tensors);
            let error = load(&bert_config(), &tensors, Head::SequenceClass).expect_err("refused");
            for part in expected {
                assert!(error.to_string().contains(part), "{error} lacks {part}");
            }
        };
        let name = "bert.encoder.layer.1.attention.self.key.weight";
        check(&|t| drop(t.remove(name)), &[name, "missing"]);
        check(
            &|t| drop(t.remove("classifier.bias")),
            &["classifier.bias", "missing"],
        );
        check(
            &|t| {
                let shape = vec![HIDDEN / 2, HIDDEN];
                let bytes = vec![0; HIDDEN * HIDDEN * 2];
                t.insert(name.to_owned(), (Dtype::F32, shape, bytes));
            },
            &[name, "[12, 24]", "[24, 24]"],
        );
        check(
            &|t| {
                let bytes = vec![0; HIDDEN * HIDDEN];
                t.insert(name.to_owned(), (Dtype::I8, vec![HIDDEN, HIDDEN], bytes));
            },
            &[name, "I8", "F32"],
        );
        check(
            &|t| {
                let tensor = t.get_mut(name).expect("a tensor");
                tensor.2[400..404].copy_from_slice(&f32::NAN.to_le_bytes());
            },
            &[name, "100"],
        );
    }

    #[test]
    fn a_config_that_promises_more_than_the_file_is_refused() {
        let config = |key: &str, value: Value| {
            let mut config = bert_config();
            config[key] = value;
            load(&config, &bert_tensors(""), MEAN)
                .expect_err(key)
                .to_string()
        };
        assert!(config("vocab_size", json!(1 << 24)).contains("word_embeddings"));
        assert!(config("num_hidden_layers", json!(512)).contains("encoder.layer.2."));
        assert!(config("intermediate_size", json!(262_144)).contains("intermediate.dense"));
    }

    #[test]
    fn heads_that_do_not_fit_are_refused() {
        let tensors = bert_tensors("");
        let error = load(&bert_config(), &tensors, Head::PairScore).expect_err("three labels");
        assert!(error.to_string().contains("one label"), "{error}");
        for dimension in [0, HIDDEN + 1] {
            let head = Head::Embed {
                pooling: Pooling::Mean,
                normalize: false,
                dimension: Some(dimension),
            };
            assert!(load(&bert_config(), &tensors, head).is_err());
        }
    }

    #[test]
    fn bad_batches_are_errors_and_an_empty_one_is_not() -> Result<(), LoadError> {
        let model = load(&bert_config(), &bert_tensors(""), MEAN)?;
        let forward = |rows: &[(&[u32], Option<&[u32]>)]| {
            let mut batch = PackedBatch::new();
            for (tokens, types) in rows {
                batch.push_row(tokens, *types);
            }
            model.forward(&batch)
        };
        assert!(forward(&[]).is_ok_and(|outputs| outputs.is_empty()));
        let error = forward(&[(&[1, 2], None), (&[3, 50], None)]);
        assert!(matches!(
            error,
            Err(ForwardError::Token {
                row: 1,
                token: 50,
                ..
            })
        ));
        let error = forward(&[(&[1, u32::MAX], None), (&[3], None)]);
        assert!(matches!(error, Err(ForwardError::Token { row: 0, .. })));
        let error = forward(&[(&[1], None), (&[], None)]);
        assert!(matches!(error, Err(ForwardError::EmptyRow { row: 1 })));
        let error = forward(&[(&[1; 71], None)]);
        assert!(matches!(
            error,
            Err(ForwardError::TooLong {
                len: 71,
                max: 70,
                ..
            })
        ));
        let error = forward(&[(&[1], Some(&[2]))]);
        assert!(matches!(
            error,
            Err(ForwardError::TokenType { type_id: 2, .. })
        ));
        Ok(())
    }

    #[test]
    fn a_model_can_move_to_its_executor_thread() {
        fn is_send<T: Send>() {}
        is_send::<EncoderModel>();
    }
}
