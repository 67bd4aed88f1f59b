//! Every tensor that a decoder needs, by name and shape, derived from its spec before a weight is
//! read. The check of the header and the loading read the same plan, so they cannot disagree.

use super::super::source::Source;
use super::super::tensor_plan::{ProjectionPlan, TensorPlan};
use super::spec::{Architecture, DecoderSpec};

/// The tensors of one layer.
#[derive(Debug, Clone)]
pub(in crate::models) struct LayerPlan {
    pub attention_norm: TensorPlan,
    pub qkv: ProjectionPlan,
    /// Of q and of k, per head.
    pub head_norms: Option<[TensorPlan; 2]>,
    pub attention_out: ProjectionPlan,
    pub post_attention_norm: Option<TensorPlan>,
    pub feed_norm: TensorPlan,
    pub gate_up: ProjectionPlan,
    pub down: ProjectionPlan,
    pub post_feed_norm: Option<TensorPlan>,
}

/// The tensors of a model.
#[derive(Debug, Clone)]
pub(in crate::models) struct DecoderPlan {
    pub embedding: TensorPlan,
    pub layers: Vec<LayerPlan>,
    pub norm: TensorPlan,
    /// `None` where the table of embeddings is the output projection too.
    pub head: Option<TensorPlan>,
}

/// Who named the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::models) enum Naming {
    /// llama.cpp.
    Gguf,
    /// transformers; what stands before the names of the backbone, and before that of the head.
    Transformers {
        backbone: &'static str,
        head: &'static str,
    },
}

/// What may stand before names in safetensors: nothing but the base model's name, or that of the
/// text model among others.
const PREFIXES: [(&str, &str); 4] = [
    ("model.", ""),
    ("language_model.model.", "language_model."),
    ("model.language_model.", ""),
    ("", ""),
];

impl Naming {
    /// How the tensors of a safetensors checkpoint are named, by where its embeddings are.
    pub fn of_checkpoint(has: impl Fn(&str) -> bool) -> Self {
        let found = PREFIXES
            .into_iter()
            .find(|(backbone, _)| has(&format!("{backbone}embed_tokens.weight")));
        let (backbone, head) = found.unwrap_or(PREFIXES[0]);
        Self::Transformers { backbone, head }
    }
}

impl DecoderPlan {
    /// Under the names that the files have.
    pub fn of(source: &Source, spec: &DecoderSpec) -> Self {
        Self::new(
            spec,
            match source {
                Source::Gguf(_) => Naming::Gguf,
                Source::Safetensors(..) => Naming::of_checkpoint(|name| source.has(name)),
            },
        )
    }

    pub fn new(spec: &DecoderSpec, naming: Naming) -> Self {
        let table = [spec.vocabulary, spec.hidden];
        let (embedding, norm, head) = match naming {
            Naming::Gguf => (
                "token_embd.weight".to_owned(),
                "output_norm.weight".to_owned(),
                "output.weight".to_owned(),
            ),
            Naming::Transformers { backbone, head } => (
                format!("{backbone}embed_tokens.weight"),
                format!("{backbone}norm.weight"),
                format!("{head}lm_head.weight"),
            ),
        };
        Self {
            embedding: TensorPlan::new(embedding, &table),
            layers: (0..spec.layers)
                .map(|index| LayerPlan::new(spec, naming, index))
                .collect(),
            norm: TensorPlan::new(norm, &[spec.hidden]),
            head: (!spec.tied_embeddings).then(|| TensorPlan::new(head, &table)),
        }
    }

    /// All tensors, in the order of the forward pass.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorPlan> {
        [&self.embedding]
            .into_iter()
            .chain(self.layers.iter().flat_map(LayerPlan::tensors))
            .chain([&self.norm])
            .chain(&self.head)
    }
}

impl LayerPlan {
    fn new(spec: &DecoderSpec, naming: Naming, index: usize) -> Self {
        let name = |part: Part, leaf: &str| part.name(spec, naming, index, leaf);
        let norm = |part, size| TensorPlan::new(name(part, "weight"), &[size]);
        let projection = |parts: &[(Part, usize)], inputs: usize, bias: bool| ProjectionPlan {
            weights: parts
                .iter()
                .map(|&(part, outputs)| TensorPlan::new(name(part, "weight"), &[outputs, inputs]))
                .collect(),
            biases: parts
                .iter()
                .filter(|_| bias)
                .map(|&(part, outputs)| TensorPlan::new(name(part, "bias"), &[outputs]))
                .collect(),
        };
        let (query, key) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let fused = spec.architecture == Architecture::Phi3;
        let qkv: &[_] = if fused {
            &[(Part::Qkv, query + 2 * key)]
        } else {
            &[(Part::Query, query), (Part::Key, key), (Part::Value, key)]
        };
        let gate_up: &[_] = if fused {
            &[(Part::GateUp, 2 * spec.intermediate)]
        } else {
            &[
                (Part::Gate, spec.intermediate),
                (Part::Up, spec.intermediate),
            ]
        };
        let hidden = spec.hidden;
        let head_norm = |part| norm(part, spec.head_dim);
        let post_norm = |part| spec.post_norms.then(|| norm(part, hidden));
        let (out, down) = ([(Part::AttentionOut, hidden)], [(Part::Down, hidden)]);
        Self {
            attention_norm: norm(Part::AttentionNorm, hidden),
            qkv: projection(qkv, hidden, spec.qkv_bias),
            head_norms: spec
                .head_norms
                .then(|| [head_norm(Part::QueryNorm), head_norm(Part::KeyNorm)]),
            attention_out: projection(&out, query, spec.attention_out_bias),
            post_attention_norm: post_norm(Part::PostAttentionNorm),
            feed_norm: norm(Part::FeedNorm, hidden),
            gate_up: projection(gate_up, hidden, false),
            down: projection(&down, spec.intermediate, false),
            post_feed_norm: post_norm(Part::PostFeedNorm),
        }
    }

    fn tensors(&self) -> impl Iterator<Item = &TensorPlan> {
        [&self.attention_norm]
            .into_iter()
            .chain(self.qkv.tensors())
            .chain(self.head_norms.iter().flatten())
            .chain(self.attention_out.tensors())
            .chain(&self.post_attention_norm)
            .chain([&self.feed_norm])
            .chain(self.gate_up.tensors())
            .chain(self.down.tensors())
            .chain(&self.post_feed_norm)
    }
}

/// A module of a layer.
#[derive(Debug, Clone, Copy)]
enum Part {
    AttentionNorm,
    Query,
    Key,
    Value,
    Qkv,
    QueryNorm,
    KeyNorm,
    AttentionOut,
    PostAttentionNorm,
    FeedNorm,
    Gate,
    Up,
    GateUp,
    Down,
    PostFeedNorm,
}

impl Part {
    fn name(self, spec: &DecoderSpec, naming: Naming, index: usize, leaf: &str) -> String {
        match naming {
            Naming::Gguf => format!("blk.{index}.{}.{leaf}", self.gguf()),
            Naming::Transformers { backbone, .. } => {
                format!(
                    "{backbone}layers.{index}.{}.{leaf}",
                    self.transformers(spec)
                )
            }
        }
    }

    fn gguf(self) -> &'static str {
        match self {
            Self::AttentionNorm => "attn_norm",
            Self::Query => "attn_q",
            Self::Key => "attn_k",
            Self::Value => "attn_v",
            Self::Qkv => "attn_qkv",
            Self::QueryNorm => "attn_q_norm",
            Self::KeyNorm => "attn_k_norm",
            Self::AttentionOut => "attn_output",
            Self::PostAttentionNorm => "post_attention_norm",
            Self::FeedNorm => "ffn_norm",
            Self::Gate => "ffn_gate",
            // Phi 3 has gate and up in one, under this name.
            Self::Up | Self::GateUp => "ffn_up",
            Self::Down => "ffn_down",
            Self::PostFeedNorm => "post_ffw_norm",
        }
    }

    fn transformers(self, spec: &DecoderSpec) -> &'static str {
        match self {
            Self::AttentionNorm => "input_layernorm",
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Qkv => "self_attn.qkv_proj",
            Self::QueryNorm => "self_attn.q_norm",
            Self::KeyNorm => "self_attn.k_norm",
            Self::AttentionOut => "self_attn.o_proj",
            // The same name is the norm of what attention adds in Gemma, and elsewhere that of
            // what the feed-forward block reads.
            Self::FeedNorm if spec.post_norms => "pre_feedforward_layernorm",
            Self::FeedNorm | Self::PostAttentionNorm => "post_attention_layernorm",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::GateUp => "mlp.gate_up_proj",
            Self::Down => "mlp.down_proj",
            Self::PostFeedNorm => "post_feedforward_layernorm",
        }
    }
}
