//! What an encoder tells of itself.

use std::path::Path;

use serde_json::json;

use super::Description;
use crate::{cli::Failure, models::ModelSummary};

/// Describes the encoder in a folder or a GGUF file, of which a row is asked to have `asked` tokens (0: all).
pub(super) fn describe(source: &Path, asked: usize) -> Result<Description, Failure> {
    let summary = ModelSummary::read(source)?;
    let mut rows = vec![("architecture", summary.architectures.join(", "))];
    match &summary.spec {
        Ok(spec) => {
            let encoder = format!(
                "{}, {} layers, hidden {}, {} heads, feed-forward {}",
                spec.model_type, spec.layers, spec.hidden, spec.heads, spec.intermediate
            );
            rows.push(("encoder", encoder));
            rows.push(("vocabulary", spec.vocabulary.to_string()));
            let allowed = spec.max_tokens();
            let used = if asked == 0 { allowed } else { asked };
            let tokens = format!("{used} a row (the model has {allowed} positions)");
            rows.push(("tokens", tokens));
        }
        Err(error) => rows.push(("unsupported", error.to_string())),
    }
    Ok(Description {
        rows,
        json: json!({
            "model_type": summary.model_type,
            "architectures": summary.architectures,
            "unsupported": summary.spec.as_ref().err().map(ToString::to_string),
        }),
        contents: summary.contents,
        memory: "for weights, activations beside",
    })
}
