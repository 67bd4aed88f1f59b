//! The tokenizer of a version: beside the weights, or inside a GGUF file, from its metadata to the
//! text room's vocabulary.

use std::path::Path;

use super::LoadError;
use crate::{
    config::{Truncation, manifest::find_gguf},
    models::{self, EncoderSpec, gguf::GgufFile},
    text::{EncoderLimits, GenerationText, GgufVocabulary, TextEncoder},
};

/// The tokenizer of an encoder's version: that inside its GGUF file if it has one, else
/// `tokenizer.json`. Of a GGUF file, the tokenizer that Hugging Face's library reads comes first;
/// llama.cpp's own keys are read where they describe `WordPiece`.
///
/// # Errors
/// [`LoadError`] when there is none, or it is damaged.
pub fn encoder_text(
    dir: &Path,
    spec: &EncoderSpec,
    max_tokens: usize,
    truncation: Truncation,
) -> Result<TextEncoder, LoadError> {
    let limits = EncoderLimits {
        vocabulary: spec.vocabulary,
        segments: spec.type_vocabulary > 1,
        max_tokens,
        truncation,
    };
    let Some(path) = find_gguf(dir) else {
        return Ok(TextEncoder::load(dir, limits)?);
    };
    let file = GgufFile::open(&path)?;
    let metadata = file.metadata();
    if let Some(json) = metadata.text(models::gguf::TOKENIZER_JSON)? {
        return Ok(TextEncoder::from_json(json, &path, limits)?);
    }
    let lowercase = metadata.bool("tokenizer.ggml.normalizer.lowercase")?;
    let separator = metadata.u32("tokenizer.ggml.seperator_token_id")?;
    let vocabulary = read_vocabulary(&file)?;
    let text = TextEncoder::from_word_pieces(&vocabulary, separator, lowercase, limits);
    text.map_err(|source| LoadError::Vocabulary { path, source })
}

/// Reads the tokenizer and chat template of a GGUF file. Keys as in ggml's `docs/gguf.md`.
///
/// # Errors
/// [`LoadError`] when the file or what it holds is damaged.
pub fn read_gguf_text(path: &Path) -> Result<GenerationText, LoadError> {
    let file = GgufFile::open(path)?;
    let vocabulary = read_vocabulary(&file)?;
    GenerationText::from_gguf(vocabulary).map_err(|source| LoadError::Vocabulary {
        path: path.to_owned(),
        source,
    })
}

fn read_vocabulary(file: &GgufFile) -> Result<GgufVocabulary, models::LoadError> {
    let metadata = file.metadata();
    let text = |key| Ok::<_, models::LoadError>(metadata.text(key)?.map(str::to_owned));
    let texts = |key| {
        let texts = metadata.texts(key)?.unwrap_or_default();
        Ok::<_, models::LoadError>(texts.into_iter().map(str::to_owned).collect())
    };
    Ok(GgufVocabulary {
        model: text("tokenizer.ggml.model")?.unwrap_or_default(),
        pre: text("tokenizer.ggml.pre")?,
        tokens: texts("tokenizer.ggml.tokens")?,
        scores: metadata.f32s("tokenizer.ggml.scores")?.unwrap_or_default(),
        types: metadata
            .i32s("tokenizer.ggml.token_type")?
            .unwrap_or_default(),
        merges: texts("tokenizer.ggml.merges")?,
        bos: metadata.u32("tokenizer.ggml.bos_token_id")?,
        eos: metadata.u32("tokenizer.ggml.eos_token_id")?,
        eot: metadata.u32("tokenizer.ggml.eot_token_id")?,
        unknown: metadata.u32("tokenizer.ggml.unknown_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        chat_template: text("tokenizer.chat_template")?,
    })
}
