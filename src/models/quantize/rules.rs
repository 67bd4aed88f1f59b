//! Which type each tensor gets: what was asked for, except where llama.cpp's experience says
//! otherwise. The rules are those of its `llama-quant.cpp`, for the `_M` mixes of the k-quants.

use candle_core::quantized::GgmlDType;

use super::error::QuantizeError;
use super::types::fitting;

/// Tensors of these names get another type than the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// A name, in which `*` stands for anything.
    pub pattern: String,
    /// Their type.
    pub dtype: GgmlDType,
}

/// What the rules look at beside a tensor's name and shape.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    pub target: GgmlDType,
    pub keep: &'a [Keep],
    pub layers: usize,
    /// Query heads that share a head of keys and values.
    pub heads_per_kv: usize,
    /// Whether the table of embeddings is the output projection too, or there is none.
    pub tied: bool,
    pub has_importance: bool,
}

impl Rules<'_> {
    /// The type that a tensor shall have; `None` if it is none that is quantized, and shall stay.
    pub fn choose(&self, name: &str, shape: &[usize]) -> Result<Option<GgmlDType>, QuantizeError> {
        let &[_, row] = shape else {
            return Ok(None);
        };
        if let Some(keep) = self.keep.iter().find(|keep| matches(&keep.pattern, name)) {
            let block = keep.dtype.block_size();
            if !row.is_multiple_of(block) {
                return Err(QuantizeError::Unfit {
                    pattern: keep.pattern.clone(),
                    tensor: name.to_owned(),
                    row,
                    block,
                });
            }
            return Ok(Some(keep.dtype));
        }
        if !is_quantized(name) {
            return Ok(None);
        }
        let wanted = self.wanted(name, row);
        // Blocks of 32 don't fit either: half precision is what is left.
        Ok(Some(fitting(wanted, row).unwrap_or(GgmlDType::F16)))
    }

    fn wanted(&self, name: &str, row: usize) -> GgmlDType {
        let target = self.target;
        if target.block_size() == 1 {
            return target;
        }
        let is_output = name == "output.weight" || (self.tied && name == "token_embd.weight");
        if is_output {
            return if target == GgmlDType::Q8_0 || !row.is_multiple_of(target.block_size()) {
                GgmlDType::Q8_0
            } else {
                GgmlDType::Q6K
            };
        }
        let Some((layer, module)) = layer_and_module(name) else {
            return target;
        };
        let layers = self.layers;
        let early = layer < layers / 8;
        // The first and the last eighth of the layers, and every third between.
        let more_bits =
            early || layer >= 7 * layers / 8 || (layer.wrapping_sub(layers / 8)) % 3 == 2;
        match (target, module) {
            (GgmlDType::Q2K, "attn_v") if self.heads_per_kv >= 4 => GgmlDType::Q4K,
            (GgmlDType::Q2K, "attn_v" | "ffn_down" | "attn_output") => GgmlDType::Q3K,
            (GgmlDType::Q3K, "attn_v") if layer < 2 => GgmlDType::Q5K,
            (GgmlDType::Q3K, "ffn_down") if layer < layers / 16 => GgmlDType::Q5K,
            (GgmlDType::Q3K, "attn_v" | "ffn_down" | "attn_output" | "attn_qkv") => GgmlDType::Q4K,
            (GgmlDType::Q4K | GgmlDType::Q5K, "attn_v" | "ffn_down") if more_bits => GgmlDType::Q6K,
            (GgmlDType::Q4K, "attn_qkv") => GgmlDType::Q5K,
            (GgmlDType::Q5K, "attn_qkv") => GgmlDType::Q6K,
            // By importance, these types go astray in the first layers.
            (GgmlDType::Q4_0, "ffn_down") if early && self.has_importance => GgmlDType::Q4_1,
            (GgmlDType::Q5_0, "ffn_down") if early && self.has_importance => GgmlDType::Q5_1,
            _ => target,
        }
    }
}

/// Whether a matrix is one that is quantized. Norms, tables of positions and types are small and
/// dear; so is the last layer of a classifier.
fn is_quantized(name: &str) -> bool {
    const KEPT: [&str; 3] = [
        "position_embd.weight",
        "token_types.weight",
        "cls.output.weight",
    ];
    name.ends_with("weight") && !name.ends_with("_norm.weight") && !KEPT.contains(&name)
}

/// Of `blk.7.attn_v.weight`, 7 and `attn_v`.
fn layer_and_module(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest.strip_suffix(".weight")?))
}

/// Whether a name is as a pattern says, `*` being any text.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(target: GgmlDType, name: &str, row: usize) -> Option<GgmlDType> {
        let rules = Rules {
            target,
            keep: &[],
            layers: 24,
            heads_per_kv: 4,
            tied: true,
            has_importance: false,
        };
        rules.choose(name, &[64, row]).expect("a type")
    }

    #[test]
    fn types_are_those_of_llama_cpp() {
        use GgmlDType::{F16, Q2K, Q3K, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
        for (target, name, row, expected) in [
            (Q4K, "blk.5.attn_q.weight", 512, Some(Q4K)),
            (Q4K, "blk.0.attn_v.weight", 512, Some(Q6K)),
            (Q4K, "blk.3.attn_v.weight", 512, Some(Q4K)),
            (Q4K, "blk.5.ffn_down.weight", 512, Some(Q6K)),
            (Q4K, "blk.23.ffn_down.weight", 384, Some(Q8_0)),
            (Q4K, "blk.3.ffn_down.weight", 384, Some(Q5_0)),
            (Q4K, "token_embd.weight", 512, Some(Q6K)),
            (Q4K, "token_embd.weight", 384, Some(Q8_0)),
            (Q4_0, "token_embd.weight", 576, Some(Q8_0)),
            (Q8_0, "token_embd.weight", 512, Some(Q8_0)),
            (Q2K, "blk.9.attn_v.weight", 256, Some(Q4K)),
            (Q2K, "blk.9.attn_output.weight", 256, Some(Q3K)),
            (Q3K, "blk.1.attn_v.weight", 256, Some(Q5K)),
            (Q4_0, "blk.1.attn_q.weight", 24, Some(F16)),
            (F16, "token_embd.weight", 24, Some(F16)),
            (Q4K, "position_embd.weight", 512, None),
            (Q4K, "cls.output.weight", 512, None),
            (Q4K, "blk.1.attn_q.bias", 512, None),
        ] {
            assert_eq!(
                choose(target, name, row),
                expected,
                "{target:?} {name} {row}"
            );
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("output.weight", "output.weight", true),
            ("output.weight", "cls.output.weight", false),
            ("*output.weight", "cls.output.weight", true),
            ("blk.*.attn_v.weight", "blk.11.attn_v.weight", true),
            ("blk.*.attn_v.weight", "blk.11.attn_v.bias", false),
            ("*", "anything", true),
            ("blk.1.*", "blk.11.attn_v.weight", false),
            ("*attn*weight", "blk.1.attn_q.weight", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_kept_must_fit() {
        let keep = [Keep {
            pattern: "position*".to_owned(),
            dtype: GgmlDType::Q4K,
        }];
        let rules = Rules {
            target: GgmlDType::Q8_0,
            keep: &keep,
            layers: 1,
            heads_per_kv: 1,
            tied: true,
            has_importance: false,
        };
        let name = "position_embd.weight";
        assert_eq!(
            rules.choose(name, &[2, 256]).ok().flatten(),
            Some(GgmlDType::Q4K)
        );
        let error = rules.choose(name, &[2, 384]).expect_err("384");
        assert!(error.to_string().contains("384"), "{error}");
    }
}
