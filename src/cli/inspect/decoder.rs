//! What a decoder tells of itself.

use std::path::Path;

use serde_json::json;

use super::Description;
use crate::{
    cli::Failure,
    models::{DecoderSummary, KvCache},
    ops::CacheType,
};

/// Describes a GGUF file, or the folder of a causal language model, of which a sequence is asked to
/// have `asked` tokens (0: all).
pub(super) fn describe(source: &Path, asked: usize) -> Result<Description, Failure> {
    let summary = DecoderSummary::read(source)?;
    let mut rows = Vec::new();
    let mut architecture = None;
    match &summary.spec {
        Ok(spec) => {
            architecture = Some(spec.architecture.to_string());
            let decoder = format!(
                "{}, {} layers, hidden {}, {} heads ({} of keys and values) of {}, feed-forward {}",
                spec.architecture,
                spec.layers,
                spec.hidden,
                spec.heads,
                spec.kv_heads,
                spec.head_dim,
                spec.intermediate
            );
            rows.push(("decoder", decoder));
            rows.push(("vocabulary", spec.vocabulary.to_string()));
            let context = spec.context_length;
            let used = if asked == 0 { context } else { asked };
            let tokens = format!("{used} a sequence (the model's context is {context})");
            rows.push(("tokens", tokens));
            let bytes = KvCache::bytes_per_block(spec, 1, CacheType::F16);
            rows.push(("cache", format!("{bytes} bytes a token in f16")));
        }
        Err(error) => rows.push(("unsupported", error.to_string())),
    }
    Ok(Description {
        rows,
        json: json!({
            "architecture": architecture,
            "unsupported": summary.spec.as_ref().err().map(ToString::to_string),
        }),
        contents: summary.contents,
        memory: "for weights, the cache beside",
    })
}
