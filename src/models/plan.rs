//! Every tensor that a model needs, by name and shape, derived from its spec and head before a
//! file is opened. The check of the header and the loading read the same plan, so they cannot
//! disagree.

use super::heads::Head;
use super::spec::{EncoderSpec, Family};
use crate::ops::{Activation, Pool};

/// An embedding table, `name.weight` `[rows, width]`.
#[derive(Debug, Clone)]
pub(crate) struct TablePlan {
    pub name: Name,
    pub rows: usize,
    pub width: usize,
}

/// A linear layer, `name.weight` `[outputs, inputs]` and `name.bias` `[outputs]`.
#[derive(Debug, Clone)]
pub(crate) struct LinearPlan {
    pub name: Name,
    pub outputs: usize,
    pub inputs: usize,
}

/// A layer norm, `name.weight` and `name.bias`, or `gamma` and `beta` in old files; `[size]`.
#[derive(Debug, Clone)]
pub(crate) struct NormPlan {
    pub name: Name,
    pub size: usize,
}

/// The tensors of one encoder layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerPlan {
    pub query: LinearPlan,
    pub key: LinearPlan,
    pub value: LinearPlan,
    pub attention_out: LinearPlan,
    pub attention_norm: NormPlan,
    pub feed_in: LinearPlan,
    pub feed_out: LinearPlan,
    pub feed_norm: NormPlan,
}

/// The tensors of a head.
#[derive(Debug, Clone)]
pub(crate) enum HeadPlan {
    /// Pooling has no weights.
    Embed(Pool),
    /// `out(activation(dense(x)))` on one token per row.
    Sequence {
        dense: LinearPlan,
        activation: Activation,
        out: LinearPlan,
    },
    /// `out(x)` on every token.
    Tokens { out: LinearPlan },
}

/// The tensors of a model.
#[derive(Debug, Clone)]
pub(crate) struct EncoderPlan {
    pub word: TablePlan,
    pub position: TablePlan,
    pub token_type: Option<TablePlan>,
    pub embed_norm: NormPlan,
    pub layers: Vec<LayerPlan>,
    pub head: HeadPlan,
}

/// A module's name: in the backbone, where files may put a prefix before it, or beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Backbone(String),
    Head(&'static str),
}

/// One tensor of the plan.
#[derive(Debug, Clone)]
pub(crate) struct TensorPlan {
    pub module: Name,
    /// The name after the module's, and the one that old files use instead.
    pub leaf: &'static str,
    pub legacy_leaf: Option<&'static str>,
    pub shape: Vec<usize>,
}

impl EncoderPlan {
    pub fn new(spec: &EncoderSpec, head: &Head) -> Self {
        let table = |name: &str, rows| TablePlan {
            name: backbone(name),
            rows,
            width: spec.hidden,
        };
        Self {
            word: table("embeddings.word_embeddings", spec.vocabulary),
            position: table("embeddings.position_embeddings", spec.positions),
            token_type: (spec.type_vocabulary > 0)
                .then(|| table("embeddings.token_type_embeddings", spec.type_vocabulary)),
            embed_norm: NormPlan {
                name: backbone("embeddings.LayerNorm"),
                size: spec.hidden,
            },
            layers: (0..spec.layers).map(|i| LayerPlan::new(spec, i)).collect(),
            head: HeadPlan::new(spec, head),
        }
    }

    /// All tensors, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorPlan> {
        let mut tensors = Vec::with_capacity(16 * (self.layers.len() + 1));
        for table in [&self.word, &self.position]
            .into_iter()
            .chain(&self.token_type)
        {
            tensors.push(table.tensor());
        }
        tensors.extend(self.embed_norm.tensors());
        for layer in &self.layers {
            let linears = [&layer.query, &layer.key, &layer.value, &layer.attention_out];
            tensors.extend(linears.into_iter().flat_map(LinearPlan::tensors));
            tensors.extend(layer.attention_norm.tensors());
            tensors.extend(layer.feed_in.tensors());
            tensors.extend(layer.feed_out.tensors());
            tensors.extend(layer.feed_norm.tensors());
        }
        match &self.head {
            HeadPlan::Embed(_) => {}
            HeadPlan::Sequence { dense, out, .. } => {
                tensors.extend(dense.tensors());
                tensors.extend(out.tensors());
            }
            HeadPlan::Tokens { out } => tensors.extend(out.tensors()),
        }
        tensors
    }
}

impl LayerPlan {
    fn new(spec: &EncoderSpec, index: usize) -> Self {
        let [
            query,
            key,
            value,
            attention_out,
            attention_norm,
            feed_in,
            feed_out,
            feed_norm,
        ] = match spec.family {
            Family::Bert | Family::Roberta => [
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "attention.output.LayerNorm",
                "intermediate.dense",
                "output.dense",
                "output.LayerNorm",
            ],
            Family::DistilBert => [
                "attention.q_lin",
                "attention.k_lin",
                "attention.v_lin",
                "attention.out_lin",
                "sa_layer_norm",
                "ffn.lin1",
                "ffn.lin2",
                "output_layer_norm",
            ],
        };
        let stack = match spec.family {
            Family::Bert | Family::Roberta => "encoder",
            Family::DistilBert => "transformer",
        };
        let linear = |name: &str, outputs, inputs| LinearPlan {
            name: backbone(&format!("{stack}.layer.{index}.{name}")),
            outputs,
            inputs,
        };
        let norm = |name: &str| NormPlan {
            name: backbone(&format!("{stack}.layer.{index}.{name}")),
            size: spec.hidden,
        };
        Self {
            query: linear(query, spec.hidden, spec.hidden),
            key: linear(key, spec.hidden, spec.hidden),
            value: linear(value, spec.hidden, spec.hidden),
            attention_out: linear(attention_out, spec.hidden, spec.hidden),
            attention_norm: norm(attention_norm),
            feed_in: linear(feed_in, spec.intermediate, spec.hidden),
            feed_out: linear(feed_out, spec.hidden, spec.intermediate),
            feed_norm: norm(feed_norm),
        }
    }
}

impl HeadPlan {
    fn new(spec: &EncoderSpec, head: &Head) -> Self {
        let linear = |name, outputs| LinearPlan {
            name,
            outputs,
            inputs: spec.hidden,
        };
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
                out: linear(Name::Head("classifier"), labels),
            },
            Head::SequenceClass | Head::PairScore => {
                let (dense, activation, out) = match spec.family {
                    Family::Bert => (backbone("pooler.dense"), Activation::Tanh, "classifier"),
                    Family::Roberta => (
                        Name::Head("classifier.dense"),
                        Activation::Tanh,
                        "classifier.out_proj",
                    ),
                    Family::DistilBert => {
                        (Name::Head("pre_classifier"), Activation::Relu, "classifier")
                    }
                };
                Self::Sequence {
                    dense: linear(dense, spec.hidden),
                    activation,
                    out: linear(Name::Head(out), labels),
                }
            }
        }
    }
}

impl TablePlan {
    pub fn tensor(&self) -> TensorPlan {
        tensor(&self.name, "weight", None, vec![self.rows, self.width])
    }
}

impl LinearPlan {
    pub fn tensors(&self) -> [TensorPlan; 2] {
        [
            tensor(&self.name, "weight", None, vec![self.outputs, self.inputs]),
            tensor(&self.name, "bias", None, vec![self.outputs]),
        ]
    }
}

impl NormPlan {
    pub fn tensors(&self) -> [TensorPlan; 2] {
        [
            tensor(&self.name, "weight", Some("gamma"), vec![self.size]),
            tensor(&self.name, "bias", Some("beta"), vec![self.size]),
        ]
    }
}

fn backbone(name: &str) -> Name {
    Name::Backbone(name.to_owned())
}

fn tensor(
    module: &Name,
    leaf: &'static str,
    legacy_leaf: Option<&'static str>,
    shape: Vec<usize>,
) -> TensorPlan {
    TensorPlan {
        module: module.clone(),
        leaf,
        legacy_leaf,
        shape,
    }
}
