//! From `tokenizer.json` and its companions to the `tokenizer.*` keys of a GGUF file, as llama.cpp's
//! converter writes them; and the file itself, for Ferry.
//!
//! The four kinds of tokenizers that the supported models have: `WordPiece` (BERT), byte-level BPE
//! (`RoBERTa`, Llama 3, Qwen), BPE over `SentencePiece` pieces (Llama 2, Gemma), and Unigram (XLM-R).

use std::collections::HashMap;
use std::path::Path;

use base64::Engine;
use serde_json::{Map, Value as Json};
use tokenizers::Tokenizer;

use super::super::config_json::{MAX_CONFIG_BYTES, read_json};
use super::super::gguf::{MetadataValue, TOKENIZER_JSON};
use super::error::QuantizeError;
use super::pre_tokenizer::pre_tokenizer_name;

/// Bytes that `tokenizer.json` may have.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;
/// How `SentencePiece` writes a space.
const SPACE_MARK: char = '▁';

/// What a token is, as llama.cpp numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The key of a file without a tokenizer, as llama.cpp knows it; `notes` tell of it.
pub(super) fn none(notes: &mut Vec<String>) -> (String, MetadataValue) {
    notes.push("there is no tokenizer.json, so the file has no tokenizer".to_owned());
    ("tokenizer.ggml.model".to_owned(), "none".into())
}

/// Reads the tokenizer of a model whose table has `table` rows. `None` where the folder has none.
pub(super) fn read(
    dir: &Path,
    config: &Map<String, Json>,
    table: usize,
    encoder: bool,
) -> Result<Option<Vec<(String, MetadataValue)>>, QuantizeError> {
    let path = dir.join("tokenizer.json");
    if !path.is_file() {
        return Ok(None);
    }
    let failed = |reason: String| QuantizeError::Tokenizer {
        path: path.clone(),
        reason,
    };
    let json = Json::Object(read_json(&path, MAX_TOKENIZER_BYTES)?);
    let text = std::fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
    let tokenizer =
        Tokenizer::from_bytes(text.as_bytes()).map_err(|error| failed(error.to_string()))?;
    let optional = |name: &str| {
        let path = dir.join(name);
        if path.is_file() {
            read_json(&path, MAX_CONFIG_BYTES)
        } else {
            Ok(Map::new())
        }
    };
    let reader = Reader {
        json: &json,
        tokenizer: &tokenizer,
        settings: optional("tokenizer_config.json")?,
        generation: optional("generation_config.json")?,
        config,
        table,
        encoder,
    };
    let mut metadata = reader.metadata().map_err(failed)?;
    if !encoder && let Some(template) = reader.chat_template(dir)? {
        metadata.push((
            "tokenizer.chat_template".to_owned(),
            MetadataValue::Text(template),
        ));
    }
    metadata.push((TOKENIZER_JSON.to_owned(), MetadataValue::Text(text)));
    Ok(Some(metadata))
}

struct Reader<'a> {
    json: &'a Json,
    tokenizer: &'a Tokenizer,
    settings: Map<String, Json>,
    generation: Map<String, Json>,
    config: &'a Map<String, Json>,
    table: usize,
    encoder: bool,
}

impl Reader<'_> {
    fn metadata(&self) -> Result<Vec<(String, MetadataValue)>, String> {
        let model = &self.json["model"];
        let (mut tokens, mut kinds) = self.tokens()?;
        let mut out = Vec::new();
        let mut set = |key: &str, value| out.push((format!("tokenizer.ggml.{key}"), value));
        match model["type"].as_str() {
            Some("WordPiece") => {
                // Words begin with a space, and their continuations with nothing.
                for (token, kind) in tokens.iter_mut().zip(&kinds) {
                    if *kind == Kind::Control {
                        continue;
                    }
                    *token = match token.strip_prefix("##") {
                        Some(rest) => rest.to_owned(),
                        None => format!("{SPACE_MARK}{token}"),
                    };
                }
                set("model", "bert".into());
                set("pre", "default".into());
            }
            Some("Unigram") => {
                set("model", "t5".into());
                set("pre", "default".into());
                set("scores", MetadataValue::F32s(self.unigram_scores()?));
            }
            Some("BPE") if self.is_byte_level() => {
                set("model", "gpt2".into());
                let pre = pre_tokenizer_name(&self.json["pre_tokenizer"])?;
                set("pre", pre.into());
                set("merges", MetadataValue::Texts(merges(model)?));
            }
            Some("BPE") if model["byte_fallback"] == true => {
                set("model", "llama".into());
                set("pre", "default".into());
                set(
                    "scores",
                    MetadataValue::F32s(piece_scores(&tokens, &merges(model)?)),
                );
                for (token, kind) in tokens.iter().zip(&mut kinds) {
                    if *kind == Kind::Normal && is_byte(token) {
                        *kind = Kind::Byte;
                    }
                }
            }
            other => {
                return Err(format!(
                    "a tokenizer of type {} {}; supported: WordPiece, Unigram, and BPE over bytes \
                     or with byte fallback",
                    other.unwrap_or("unknown"),
                    self.json["pre_tokenizer"]
                ));
            }
        }
        if let Some(unknown) = self
            .unknown()
            .and_then(|token| self.tokenizer.token_to_id(token))
            && let Some(kind) = kinds.get_mut(unknown as usize)
            && matches!(model["type"].as_str(), Some("Unigram" | "BPE"))
            && !self.is_byte_level()
        {
            *kind = Kind::Unknown;
        }
        let kinds = kinds.into_iter().map(|kind| kind as i32).collect();
        set("tokens", MetadataValue::Texts(tokens));
        set("token_type", MetadataValue::I32s(kinds));
        self.add_special(&mut set);
        self.add_normalizer(&mut set);
        Ok(out)
    }

    /// A text and a kind for every row of the table.
    fn tokens(&self) -> Result<(Vec<String>, Vec<Kind>), String> {
        let added = self.tokenizer.get_added_tokens_decoder();
        let last = self.tokenizer.get_vocab(true).into_values().max();
        if last.is_some_and(|last| last as usize >= self.table) {
            let (last, table) = (last.unwrap_or(0), self.table);
            return Err(format!(
                "it has a token {last}; the weights have {table} rows"
            ));
        }
        let mut tokens = Vec::with_capacity(self.table);
        let mut kinds = Vec::with_capacity(self.table);
        for id in 0..self.table as u32 {
            let (token, kind) = match (self.tokenizer.id_to_token(id), added.get(&id)) {
                (None, _) => (format!("[PAD{id}]"), Kind::Unused),
                (Some(token), None) => (token, Kind::Normal),
                (Some(token), Some(added)) if added.special || looks_special(&token) => {
                    (token, Kind::Control)
                }
                (Some(token), Some(_)) => (token.replace(SPACE_MARK, " "), Kind::UserDefined),
            };
            tokens.push(token);
            kinds.push(kind);
        }
        Ok((tokens, kinds))
    }

    fn is_byte_level(&self) -> bool {
        fn has(step: &Json) -> bool {
            let nested = step["pretokenizers"].as_array().into_iter().flatten();
            step["type"] == "ByteLevel" || nested.into_iter().any(has)
        }
        has(&self.json["pre_tokenizer"])
    }

    fn unigram_scores(&self) -> Result<Vec<f32>, String> {
        let vocabulary = self.json["model"]["vocab"].as_array();
        let vocabulary = vocabulary.ok_or("its model has no list of pieces")?;
        let mut scores = vec![-10_000.0; self.table];
        for (score, piece) in scores.iter_mut().zip(vocabulary) {
            *score = piece[1].as_f64().ok_or("a piece without a score")? as f32;
        }
        Ok(scores)
    }

    /// The token for what has none.
    fn unknown(&self) -> Option<&str> {
        let model = &self.json["model"];
        let by_id = || {
            let id = model["unk_id"].as_u64()? as usize;
            model["vocab"][id][0].as_str()
        };
        model["unk_token"].as_str().or_else(by_id)
    }

    fn add_special(&self, set: &mut impl FnMut(&str, MetadataValue)) {
        let [first, last] = self.ends();
        let named = |key: &str| text_of(self.settings.get(key)).map(str::to_owned);
        let present = |token: &str| {
            let found = self.tokenizer.token_to_id(token).is_some();
            found.then(|| token.to_owned())
        };
        let cls = named("cls_token").or_else(|| first.clone().filter(|_| self.encoder));
        let sep = named("sep_token").or_else(|| last.clone().filter(|_| self.encoder));
        let any = |tokens: [&str; 2]| tokens.into_iter().find_map(present);
        let encoder_only = |token: Option<String>| token.filter(|_| self.encoder);
        let special = [
            (
                "bos",
                named("bos_token")
                    .or_else(|| cls.clone())
                    .or_else(|| first.clone()),
            ),
            (
                "eos",
                named("eos_token")
                    .or_else(|| sep.clone())
                    .or_else(|| last.clone()),
            ),
            (
                "unknown",
                named("unk_token").or_else(|| self.unknown().map(str::to_owned)),
            ),
            ("seperator", sep),
            (
                "padding",
                named("pad_token").or_else(|| encoder_only(any(["[PAD]", "<pad>"]))),
            ),
            ("cls", cls),
            (
                "mask",
                named("mask_token").or_else(|| encoder_only(any(["[MASK]", "<mask>"]))),
            ),
        ];
        for (kind, token) in special {
            let id = token.and_then(|token| self.tokenizer.token_to_id(&token));
            let by_config = |key: &str| {
                let files = [self.config, &self.generation];
                files.into_iter().find_map(|file| first_id(file.get(key)))
            };
            let id = id.or_else(|| match kind {
                "bos" => by_config("bos_token_id"),
                "eos" => by_config("eos_token_id"),
                "padding" => by_config("pad_token_id"),
                _ => None,
            });
            if let Some(id) = id.filter(|&id| (id as usize) < self.table) {
                set(&format!("{kind}_token_id"), MetadataValue::U32(id));
            }
        }
        for (key, end) in [("bos", &first), ("eos", &last)] {
            let said = self.settings.get(&format!("add_{key}_token"));
            let added = said.and_then(Json::as_bool).unwrap_or(end.is_some());
            set(&format!("add_{key}_token"), MetadataValue::Bool(added));
        }
        let pieces = self.json["model"]["type"] == "Unigram"
            || self.json["model"]["byte_fallback"] == true && !self.is_byte_level();
        if pieces {
            set("add_space_prefix", MetadataValue::Bool(self.adds_space()));
        }
    }

    /// The special tokens that the tokenizer itself puts at the ends of a text.
    fn ends(&self) -> [Option<String>; 2] {
        let processor = &self.json.get("post_processor").cloned().unwrap_or_default();
        let several = processor["processors"].as_array().cloned();
        for step in several.unwrap_or_else(|| vec![processor.clone()]) {
            match step["type"].as_str() {
                Some("TemplateProcessing") => {
                    let single = step["single"].as_array().cloned().unwrap_or_default();
                    let special = |piece: Option<&Json>| {
                        piece?["SpecialToken"]["id"].as_str().map(str::to_owned)
                    };
                    return [special(single.first()), special(single.last())];
                }
                Some("BertProcessing" | "RobertaProcessing") => {
                    let token = |key: &str| step[key][0].as_str().map(str::to_owned);
                    return [token("cls"), token("sep")];
                }
                _ => {}
            }
        }
        [None, None]
    }

    /// Whether a text is given a space before it.
    fn adds_space(&self) -> bool {
        fn any(step: &Json, is: &dyn Fn(&Json) -> bool) -> bool {
            let nested = ["pretokenizers", "normalizers"].into_iter();
            let mut nested = nested.filter_map(|key| step[key].as_array()).flatten();
            is(step) || nested.any(|step| any(step, is))
        }
        let metaspace = |step: &Json| {
            step["type"] == "Metaspace"
                && step["prepend_scheme"] != "never"
                && step["add_prefix_space"] != false
        };
        let prepend = |step: &Json| step["type"] == "Prepend";
        any(&self.json["pre_tokenizer"], &metaspace) || any(&self.json["normalizer"], &prepend)
    }

    fn add_normalizer(&self, set: &mut impl FnMut(&str, MetadataValue)) {
        let normalizer = &self.json["normalizer"];
        let nested = normalizer["normalizers"].as_array().into_iter().flatten();
        for step in std::iter::once(normalizer).chain(nested) {
            if step["type"] == "BertNormalizer" {
                if let Some(lowercase) = step["lowercase"].as_bool() {
                    set("normalizer.lowercase", MetadataValue::Bool(lowercase));
                }
                if let Some(strip) = step["strip_accents"].as_bool() {
                    set("normalizer.strip_accents", MetadataValue::Bool(strip));
                }
            }
            if let Some(map) = step["precompiled_charsmap"].as_str()
                && let Ok(map) = base64::engine::general_purpose::STANDARD.decode(map)
            {
                set("precompiled_charsmap", MetadataValue::U8s(map));
            }
        }
        if self.json["model"]["type"] == "Unigram" {
            set("remove_extra_whitespaces", MetadataValue::Bool(true));
        }
    }

    /// The template of `chat_template.jinja`, or of `tokenizer_config.json`: there it is a text, or
    /// a list of which the one named `default` counts.
    fn chat_template(&self, dir: &Path) -> Result<Option<String>, QuantizeError> {
        let path = dir.join("chat_template.jinja");
        if path.is_file() {
            let read = std::fs::read_to_string(&path);
            return read.map(Some).map_err(|error| QuantizeError::Tokenizer {
                path,
                reason: error.to_string(),
            });
        }
        let said = self.settings.get("chat_template");
        let mut listed = said.and_then(Json::as_array).into_iter().flatten();
        let default = listed.find(|one| one["name"] == "default");
        let said = default.map(|one| &one["template"]).or(said);
        Ok(said.and_then(Json::as_str).map(str::to_owned))
    }
}

/// What transformers' tokenizers forget to mark as special.
fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

fn is_byte(token: &str) -> bool {
    let digits = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// A token's text: given as it is, or with how it is to be found.
fn text_of(token: Option<&Json>) -> Option<&str> {
    let token = token?;
    token.as_str().or_else(|| token["content"].as_str())
}

/// One id, or the first of several.
fn first_id(value: Option<&Json>) -> Option<u32> {
    let value = value?;
    let value = value.as_array().map_or(Some(value), |ids| ids.first())?;
    u32::try_from(value.as_u64()?).ok()
}

/// `left right` per merge; a space inside a part as byte-level vocabularies write it.
fn merges(model: &Json) -> Result<Vec<String>, String> {
    let merges = model["merges"]
        .as_array()
        .ok_or("its model has no list of merges")?;
    let merge = |merge: &Json| match merge {
        Json::String(merge) => Some(merge.clone()),
        Json::Array(parts) => {
            let [left, right] = parts.as_slice() else {
                return None;
            };
            let part = |part: &Json| Some(part.as_str()?.replace(' ', "Ġ"));
            Some(format!("{} {}", part(left)?, part(right)?))
        }
        _ => None,
    };
    let merges: Option<Vec<String>> = merges.iter().map(merge).collect();
    merges.ok_or_else(|| "a merge is not a pair of texts".to_owned())
}

/// Scores by which llama.cpp joins pieces in the order in which the merges do.
fn piece_scores(tokens: &[String], merges: &[String]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        ranks.entry(merge.replacen(' ', "", 1)).or_insert(rank);
    }
    let scores = tokens.iter().map(|token| match ranks.get(token) {
        Some(&rank) => -(rank as f32) - 1.0,
        // Never the result of a merge, so never compared; below all others all the same.
        None => -(merges.len() as f32) - 2.0,
    });
    scores.collect()
}
