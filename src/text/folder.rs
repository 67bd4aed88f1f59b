//! What a folder in Hugging Face's layout says about a generating model's text.

use std::{fs, io::Read, path::Path};

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use super::{
    ChatTemplate, TokenizerError,
    token_table::TokenTable,
    tokenizer_json::read_tokenizer,
    vocabulary::{Spelling, TokenKind, byte_of},
};

/// Bytes that a file beside `tokenizer.json` may have.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Bytes that `tokenizer.json` may have.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// What the files say.
pub(super) struct FolderText {
    pub(super) tokenizer: Tokenizer,
    pub(super) table: TokenTable,
    pub(super) bos: Option<u32>,
    pub(super) eos: Vec<u32>,
    /// Texts of BOS and EOS; empty where there is none.
    pub(super) marks: [String; 2],
    pub(super) chat_template: Option<ChatTemplate>,
}

pub(super) fn read(dir: &Path) -> Result<FolderText, TokenizerError> {
    let path = dir.join("tokenizer.json");
    let failed = |reason: String| TokenizerError {
        path: path.clone(),
        reason,
    };
    let json = read_text(&path, MAX_TOKENIZER_BYTES)?;
    let json = json.ok_or_else(|| failed("no such file".into()))?;
    let mut tokenizer = read_tokenizer(json.as_bytes()).map_err(failed)?;
    drop(json);
    tokenizer
        .with_truncation(None)
        .map_err(|error| failed(error.to_string()))?;
    tokenizer.with_padding(None);
    let table = table_of(&tokenizer).map_err(failed)?;

    let settings = read_json(&dir.join("tokenizer_config.json"))?;
    let generation = read_json(&dir.join("generation_config.json"))?;
    let model = read_json(&dir.join("config.json"))?;
    let marks = ["bos_token", "eos_token"].map(|key| text_of(&settings[key]).to_owned());
    let [bos, eos] = marks.each_ref().map(|mark| tokenizer.token_to_id(mark));
    let bos = bos.or_else(|| ids_of(&model["bos_token_id"]).next());
    let mut ends: Vec<u32> = ids_of(&generation["eos_token_id"]).collect();
    if ends.is_empty() {
        ends.extend(ids_of(&model["eos_token_id"]));
    }
    ends.extend(eos);
    let chat_template = chat_template(dir, &settings, &marks)?;
    Ok(FolderText {
        tokenizer,
        table,
        bos,
        eos: ends,
        marks,
        chat_template,
    })
}

/// The template of `chat_template.jinja`, or of `tokenizer_config.json`: there it is a text, or a
/// list of which the one named `default` counts.
fn chat_template(
    dir: &Path,
    settings: &Json,
    [bos, eos]: &[String; 2],
) -> Result<Option<ChatTemplate>, TokenizerError> {
    let mut path = dir.join("chat_template.jinja");
    let mut source = read_text(&path, MAX_FILE_BYTES)?;
    if source.is_none() {
        let said = &settings["chat_template"];
        let mut named = said.as_array().into_iter().flatten();
        let default = named.find(|one| one["name"] == "default");
        path = dir.join("tokenizer_config.json");
        source = default
            .map_or(said, |one| &one["template"])
            .as_str()
            .map(Into::into);
    }
    let Some(source) = source else {
        return Ok(None);
    };
    match ChatTemplate::parse(&source, bos, eos) {
        Ok(template) => Ok(Some(template)),
        Err(error) => Err(TokenizerError {
            path,
            reason: error.to_string(),
        }),
    }
}

/// The bytes of each token, in the spelling that the decoder undoes.
fn table_of(tokenizer: &Tokenizer) -> Result<TokenTable, String> {
    let decoder = tokenizer.get_decoder();
    let decoder = decoder.map(serde_json::to_value).transpose();
    let decoder = decoder.map_err(|error| error.to_string())?;
    let steps: Vec<&Json> = match &decoder {
        Some(one) if one["type"] == "Sequence" => {
            one["decoders"].as_array().into_iter().flatten().collect()
        }
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let has = |kind: &str| steps.iter().any(|step| step["type"] == kind);
    let spelling = if has("ByteLevel") {
        Spelling::ByteLevel
    } else if has("ByteFallback") || has("Metaspace") {
        Spelling::SentencePiece
    } else {
        return Err(
            "only byte-level and SentencePiece tokenizers generate text; \
             the decoder is neither"
                .into(),
        );
    };
    let strips_first_space = steps.iter().any(|step| match step["type"].as_str() {
        Some("Strip") => step["content"] == " " && step["start"] != 0,
        Some("Metaspace") => step["prepend_scheme"] != "never",
        _ => false,
    });
    let added = tokenizer.get_added_tokens_decoder();
    let count = tokenizer.get_vocab_size(true);
    let last = added.keys().copied().max().map_or(0, |id| id as usize + 1);
    // An id far beyond the vocabulary would only make a table of gaps.
    if last > count.saturating_mul(2) + 1024 {
        return Err(format!(
            "an added token has id {}; {count} tokens in all",
            last - 1
        ));
    }
    let mut table = TokenTable::new(strips_first_space);
    for id in 0..count.max(last) as u32 {
        let kind = added.get(&id).map(|token| {
            if token.special {
                TokenKind::Control
            } else {
                TokenKind::UserDefined
            }
        });
        let text = tokenizer.id_to_token(id).unwrap_or_default();
        let is_byte = || spelling == Spelling::SentencePiece && byte_of(&text).is_some();
        let kind = kind.unwrap_or_else(|| {
            if is_byte() {
                TokenKind::Byte
            } else {
                TokenKind::Text
            }
        });
        table.push(&text, kind, spelling);
    }
    Ok(table)
}

/// A token's text: given as it is, or with how it is to be found.
fn text_of(token: &Json) -> &str {
    let text = token.as_str().or_else(|| token["content"].as_str());
    text.unwrap_or_default()
}

/// One id or several.
fn ids_of(value: &Json) -> impl Iterator<Item = u32> {
    let several = value.as_array().map_or(&[][..], Vec::as_slice);
    let ids = std::iter::once(value).chain(several);
    ids.filter_map(|id| u32::try_from(id.as_u64()?).ok())
}

/// A file as JSON; null if it isn't there.
fn read_json(path: &Path) -> Result<Json, TokenizerError> {
    let Some(text) = read_text(path, MAX_FILE_BYTES)? else {
        return Ok(Json::Null);
    };
    serde_json::from_str(&text).map_err(|error| TokenizerError {
        path: path.into(),
        reason: error.to_string(),
    })
}

fn read_text(path: &Path, max_bytes: u64) -> Result<Option<String>, TokenizerError> {
    let failed = |reason: String| TokenizerError {
        path: path.into(),
        reason,
    };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    let mut text = String::new();
    file.take(max_bytes + 1)
        .read_to_string(&mut text)
        .map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > max_bytes {
        return Err(failed(format!("more than {max_bytes} bytes")));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::super::{ChatMessage, ChatOptions, GenerationText, SpecialTokens};
    use serde_json::json;
    use std::fs;

    /// A byte-level tokenizer of the letters a to c and a space, in a folder.
    fn folder(files: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
        let special = |id: u32, text: &str| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        };
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": [special(6, "<bos>"), special(7, "<end>"), special(8, "<|im_end|>")],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "Ã": 5}, "merges": ["a b"]}
        });
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        for (name, content) in files {
            let content = content
                .as_str()
                .map_or_else(|| content.to_string(), Into::into);
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn what_the_files_say_comes_together() {
        let dir = folder(&[
            (
                "tokenizer_config.json",
                json!({"bos_token": {"content": "<bos>"}, "eos_token": "<end>",
                       "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}),
            ),
            ("generation_config.json", json!({"eos_token_id": [7, 4]})),
            ("config.json", json!({"eos_token_id": 0})),
        ]);
        let text = GenerationText::load(dir.path()).unwrap();
        assert_eq!(text.vocabulary(), 9);
        assert_eq!(text.bos_token(), Some(6));
        assert_eq!(text.eos_tokens(), [4, 7, 8]);
        assert_eq!(text.encode("ab c<end>", true).unwrap(), [4, 3, 2, 7]);
        assert_eq!(text.token_bytes(5), b"\xc3");
        let messages = [ChatMessage::new("user", "ab")];
        let ids = text
            .encode_chat(&messages, &ChatOptions::default())
            .unwrap();
        assert_eq!(ids, [6, 4, 7]);
        assert_eq!(text.decode(&ids, SpecialTokens::Show), "<bos>ab<end>");
    }

    #[test]
    fn control_tokens_in_plain_text_are_text() {
        let text = GenerationText::load(folder(&[]).path()).unwrap();
        assert!(!text.encode_plain("a<end>b", false).unwrap().contains(&7));
        assert!(text.encode("a<end>b", false).unwrap().contains(&7));
    }

    #[test]
    fn a_template_of_its_own_file_comes_first_and_of_several_the_default() {
        let listed = json!({"chat_template": [
            {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "listed"},
        ]});
        let render = |files: &[(&str, serde_json::Value)]| {
            let text = GenerationText::load(folder(files).path()).unwrap();
            let template = text.chat_template().unwrap().clone();
            template.render(&[], &ChatOptions::default()).unwrap()
        };
        assert_eq!(
            render(&[("tokenizer_config.json", listed.clone())]),
            "listed"
        );
        let own = ("chat_template.jinja", json!("own"));
        assert_eq!(render(&[("tokenizer_config.json", listed), own]), "own");
    }

    #[test]
    fn a_file_that_is_missing_or_wrong_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let error = GenerationText::load(empty.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: no such file"), "{error}");
        let dir = folder(&[("generation_config.json", json!("{"))]);
        let error = GenerationText::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json"), "{error}");
        let dir = folder(&[("chat_template.jinja", json!("{% if %}"))]);
        let error = GenerationText::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja"), "{error}");
    }
}
