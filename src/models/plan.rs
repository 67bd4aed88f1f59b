//! Every tensor that an encoder needs, by name and shape, derived from its spec and head before a
//! weight is read.

use super::heads::Head;
use super::source::Source;
use super::spec::{EncoderSpec, Family};
use super::tensor_plan::{ProjectionPlan, TensorPlan};
use crate::ops::{Activation, Pool};

/// Gain and offset of a layer norm, `[size]` each.
#[derive(Debug, Clone)]
pub(super) struct NormPlan {
    pub weight: TensorPlan,
    pub bias: TensorPlan,
}

/// The tensors of one encoder layer.
#[derive(Debug, Clone)]
pub(super) struct LayerPlan {
    pub qkv: ProjectionPlan,
    pub attention_out: ProjectionPlan,
    pub attention_norm: NormPlan,
    pub feed_in: ProjectionPlan,
    pub feed_out: ProjectionPlan,
    pub feed_norm: NormPlan,
}

/// The tensors of a head.
#[derive(Debug, Clone)]
pub(super) enum HeadPlan {
    /// Pooling has no weights.
    Embed(Pool),
    /// `out(activation(dense(x)))` on one token per row.
    Sequence {
        dense: ProjectionPlan,
        activation: Activation,
        out: ProjectionPlan,
    },
    /// `out(x)` on every token.
    Tokens { out: ProjectionPlan },
}

/// The tensors of a model.
#[derive(Debug, Clone)]
pub(super) struct EncoderPlan {
    pub word: TensorPlan,
    pub position: TensorPlan,
    pub token_type: Option<TensorPlan>,
    pub embed_norm: NormPlan,
    pub layers: Vec<LayerPlan>,
    pub head: HeadPlan,
}

/// Who named the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// llama.cpp.
    Gguf,
    /// transformers: what stands before the names of the backbone, and how the gain and the offset
    /// of a norm are called.
    Transformers {
        prefix: &'static str,
        norm: [&'static str; 2],
    },
}

/// What may stand before a backbone tensor's name: the task models of transformers put their base
/// model's name there.
const PREFIXES: [&str; 4] = ["", "bert.", "roberta.", "distilbert."];

impl Naming {
    /// How the tensors of a safetensors checkpoint are named, by where its embeddings are.
    fn of_checkpoint(has: impl Fn(&str) -> bool) -> Self {
        let begins = |prefix: &&str| has(&format!("{prefix}embeddings.word_embeddings.weight"));
        let prefix = PREFIXES.into_iter().find(begins).unwrap_or("");
        // Checkpoints converted from TensorFlow have the old names.
        let old = has(&format!("{prefix}embeddings.LayerNorm.gamma"));
        let norm = if old {
            ["gamma", "beta"]
        } else {
            ["weight", "bias"]
        };
        Self::Transformers { prefix, norm }
    }

    fn norm_leaves(self) -> [&'static str; 2] {
        match self {
            Self::Gguf => ["weight", "bias"],
            Self::Transformers { norm, .. } => norm,
        }
    }
}

impl EncoderPlan {
    /// Under the names that the files have.
    pub fn of(source: &Source, spec: &EncoderSpec, head: &Head) -> Self {
        let naming = match source {
            Source::Gguf(_) => Naming::Gguf,
            Source::Safetensors(..) => Naming::of_checkpoint(|name| source.has(name)),
        };
        Self::new(spec, head, naming)
    }

    pub fn new(spec: &EncoderSpec, head: &Head, naming: Naming) -> Self {
        let module = |part: Part| part.name(spec.family, naming);
        let table =
            |part, rows| TensorPlan::new(format!("{}.weight", module(part)), &[rows, spec.hidden]);
        Self {
            word: table(Part::Words, spec.vocabulary),
            position: table(Part::Positions, spec.positions),
            token_type: (spec.type_vocabulary > 0)
                .then(|| table(Part::Types, spec.type_vocabulary)),
            embed_norm: NormPlan::new(&module(Part::EmbedNorm), spec.hidden, naming),
            layers: (0..spec.layers)
                .map(|index| LayerPlan::new(spec, naming, index))
                .collect(),
            head: HeadPlan::new(spec, head, naming),
        }
    }

    /// All tensors, in the order of the forward pass, the same whoever named them.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorPlan> {
        let (dense, out) = match &self.head {
            HeadPlan::Embed(_) => (None, None),
            HeadPlan::Sequence { dense, out, .. } => (Some(dense), Some(out)),
            HeadPlan::Tokens { out } => (None, Some(out)),
        };
        [&self.word, &self.position]
            .into_iter()
            .chain(&self.token_type)
            .chain(self.embed_norm.tensors())
            .chain(self.layers.iter().flat_map(LayerPlan::tensors))
            .chain(dense.into_iter().flat_map(ProjectionPlan::tensors))
            .chain(out.into_iter().flat_map(ProjectionPlan::tensors))
    }
}

impl LayerPlan {
    fn new(spec: &EncoderSpec, naming: Naming, index: usize) -> Self {
        let module = |part: LayerPart| part.name(spec.family, naming, index);
        let linear = |part, outputs, inputs| side_by_side(&[module(part)], outputs, inputs);
        let norm = |part| NormPlan::new(&module(part), spec.hidden, naming);
        let hidden = spec.hidden;
        Self {
            qkv: side_by_side(
                &[LayerPart::Query, LayerPart::Key, LayerPart::Value].map(module),
                hidden,
                hidden,
            ),
            attention_out: linear(LayerPart::AttentionOut, hidden, hidden),
            attention_norm: norm(LayerPart::AttentionNorm),
            feed_in: linear(LayerPart::FeedIn, spec.intermediate, hidden),
            feed_out: linear(LayerPart::FeedOut, hidden, spec.intermediate),
            feed_norm: norm(LayerPart::FeedNorm),
        }
    }

    fn tensors(&self) -> impl Iterator<Item = &TensorPlan> {
        self.qkv
            .tensors()
            .chain(self.attention_out.tensors())
            .chain(self.attention_norm.tensors())
            .chain(self.feed_in.tensors())
            .chain(self.feed_out.tensors())
            .chain(self.feed_norm.tensors())
    }
}

impl HeadPlan {
    fn new(spec: &EncoderSpec, head: &Head, naming: Naming) -> Self {
        let linear = |module: String, outputs| side_by_side(&[module], outputs, spec.hidden);
        let labels = spec.labels.len();
        match head {
            Head::Embed {
                pooling,
                normalize,
                dimension,
            } => Self::Embed(Pool {
                pooling: *pooling,
                dimension: *dimension,
                normalize: *normalize,
            }),
            Head::TokenClass => Self::Tokens {
                out: linear(Part::TokenHead.name(spec.family, naming), labels),
            },
            Head::SequenceClass | Head::PairScore => Self::Sequence {
                dense: linear(Part::HeadDense.name(spec.family, naming), spec.hidden),
                activation: spec.head_activation,
                out: linear(Part::HeadOut.name(spec.family, naming), labels),
            },
        }
    }
}

impl NormPlan {
    fn new(module: &str, size: usize, naming: Naming) -> Self {
        let [weight, bias] = naming
            .norm_leaves()
            .map(|leaf| TensorPlan::new(format!("{module}.{leaf}"), &[size]));
        Self { weight, bias }
    }

    fn tensors(&self) -> [&TensorPlan; 2] {
        [&self.weight, &self.bias]
    }
}

/// Linears with the same input side by side, each `[outputs, inputs]` with a bias `[outputs]`.
fn side_by_side(modules: &[String], outputs: usize, inputs: usize) -> ProjectionPlan {
    let tensors = |leaf: &str, shape: &[usize]| {
        let names = modules.iter().map(|module| format!("{module}.{leaf}"));
        names.map(|name| TensorPlan::new(name, shape)).collect()
    };
    ProjectionPlan {
        weights: tensors("weight", &[outputs, inputs]),
        biases: tensors("bias", &[outputs]),
    }
}

/// A module beside the layers.
#[derive(Debug, Clone, Copy)]
enum Part {
    Words,
    Positions,
    Types,
    EmbedNorm,
    HeadDense,
    HeadOut,
    TokenHead,
}

impl Part {
    fn name(self, family: Family, naming: Naming) -> String {
        let prefix = match naming {
            Naming::Gguf => return self.gguf().to_owned(),
            Naming::Transformers { prefix, .. } => prefix,
        };
        let backbone = |name: &str| format!("{prefix}{name}");
        match (self, family) {
            (Self::Words, _) => backbone("embeddings.word_embeddings"),
            (Self::Positions, _) => backbone("embeddings.position_embeddings"),
            (Self::Types, _) => backbone("embeddings.token_type_embeddings"),
            (Self::EmbedNorm, _) => backbone("embeddings.LayerNorm"),
            (Self::HeadDense, Family::Bert) => backbone("pooler.dense"),
            (Self::HeadDense, Family::Roberta) => "classifier.dense".to_owned(),
            (Self::HeadDense, Family::DistilBert) => "pre_classifier".to_owned(),
            (Self::HeadOut, Family::Roberta) => "classifier.out_proj".to_owned(),
            (Self::HeadOut | Self::TokenHead, _) => "classifier".to_owned(),
        }
    }

    fn gguf(self) -> &'static str {
        match self {
            Self::Words => "token_embd",
            Self::Positions => "position_embd",
            Self::Types => "token_types",
            Self::EmbedNorm => "token_embd_norm",
            Self::HeadDense => "cls",
            // llama.cpp classifies no tokens; its name for a classifier's last layer is one that
            // it reads without complaint.
            Self::HeadOut | Self::TokenHead => "cls.output",
        }
    }
}

/// A module of a layer.
#[derive(Debug, Clone, Copy)]
enum LayerPart {
    Query,
    Key,
    Value,
    AttentionOut,
    AttentionNorm,
    FeedIn,
    FeedOut,
    FeedNorm,
}

impl LayerPart {
    fn name(self, family: Family, naming: Naming, index: usize) -> String {
        match (naming, family) {
            (Naming::Gguf, _) => format!("blk.{index}.{}", self.gguf()),
            (Naming::Transformers { prefix, .. }, Family::DistilBert) => {
                format!("{prefix}transformer.layer.{index}.{}", self.distil_bert())
            }
            (Naming::Transformers { prefix, .. }, _) => {
                format!("{prefix}encoder.layer.{index}.{}", self.bert())
            }
        }
    }

    fn gguf(self) -> &'static str {
        match self {
            Self::Query => "attn_q",
            Self::Key => "attn_k",
            Self::Value => "attn_v",
            Self::AttentionOut => "attn_output",
            Self::AttentionNorm => "attn_output_norm",
            Self::FeedIn => "ffn_up",
            Self::FeedOut => "ffn_down",
            Self::FeedNorm => "layer_output_norm",
        }
    }

    fn bert(self) -> &'static str {
        match self {
            Self::Query => "attention.self.query",
            Self::Key => "attention.self.key",
            Self::Value => "attention.self.value",
            Self::AttentionOut => "attention.output.dense",
            Self::AttentionNorm => "attention.output.LayerNorm",
            Self::FeedIn => "intermediate.dense",
            Self::FeedOut => "output.dense",
            Self::FeedNorm => "output.LayerNorm",
        }
    }

    fn distil_bert(self) -> &'static str {
        match self {
            Self::Query => "attention.q_lin",
            Self::Key => "attention.k_lin",
            Self::Value => "attention.v_lin",
            Self::AttentionOut => "attention.out_lin",
            Self::AttentionNorm => "sa_layer_norm",
            Self::FeedIn => "ffn.lin1",
            Self::FeedOut => "ffn.lin2",
            Self::FeedNorm => "output_layer_norm",
        }
    }
}
