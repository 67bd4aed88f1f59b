//! A generating model's text, whole: prompts and chats to token ids, token ids to text, from a GGUF
//! file's vocabulary or from a folder in Hugging Face's layout.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use tokenizers::Tokenizer;

use super::{
    ChatError, ChatMessage, ChatOptions, ChatTemplate, ConstraintError, ConstraintFactory,
    Detokenizer, EncodeError, GgufVocabulary, SpecialTokens, TokenizerError, VocabularyError,
    folder::{self, FolderText},
    gguf_tokenizer::GgufTokenizer,
    stop_tokens::stop_tokens,
    token_table::TokenTable,
    vocabulary::CheckedVocabulary,
};

/// The text side of a generating model. Shared by its requests.
#[derive(Debug)]
pub struct GenerationText {
    encoder: Encoder,
    table: Arc<TokenTable>,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// The texts of BOS and EOS, as chat templates want them.
    marks: [String; 2],
    chat_template: Option<ChatTemplate>,
    constraints: OnceLock<Result<ConstraintFactory, ConstraintError>>,
}

#[derive(Debug)]
enum Encoder {
    Gguf(Box<GgufTokenizer>),
    /// `tokenizer.json` as it is, and a copy that reads control tokens as text, made when one is
    /// first needed.
    Json {
        tokenizer: Box<Tokenizer>,
        plain: OnceLock<Box<Tokenizer>>,
    },
}

impl GenerationText {
    /// Builds it from a GGUF file's metadata. Encodes as llama.cpp does.
    ///
    /// # Errors
    /// [`VocabularyError`] when the vocabulary is of an unknown kind or contradicts itself.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, VocabularyError> {
        let vocabulary = CheckedVocabulary::new(vocabulary)?;
        let (tokenizer, table) = GgufTokenizer::new(&vocabulary)?;
        let raw = &vocabulary.raw;
        let mark =
            |id: Option<u32>| id.map_or_else(String::new, |id| raw.tokens[id as usize].clone());
        let text = Self {
            encoder: Encoder::Gguf(Box::new(tokenizer)),
            bos: raw.bos,
            eos: stop_tokens(&table, raw.eos.into_iter().chain(raw.eot)),
            table,
            marks: [mark(raw.bos), mark(raw.eos)],
            chat_template: None,
            constraints: OnceLock::new(),
        };
        match &raw.chat_template {
            Some(source) => text
                .with_chat_template(source)
                .map_err(|error| VocabularyError::ChatTemplate(error.to_string())),
            None => Ok(text),
        }
    }

    /// Loads `tokenizer.json` from `dir`, with what `tokenizer_config.json`, `chat_template.jinja`
    /// and `generation_config.json` add to it where they are there.
    ///
    /// # Errors
    /// [`TokenizerError`] with the file that is missing or wrong.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let FolderText {
            tokenizer,
            table,
            bos,
            eos,
            marks,
            chat_template,
        } = folder::read(dir)?;
        Ok(Self {
            encoder: Encoder::Json {
                tokenizer: Box::new(tokenizer),
                plain: OnceLock::new(),
            },
            eos: stop_tokens(&table, eos.into_iter()),
            table: Arc::new(table),
            bos,
            marks,
            chat_template,
            constraints: OnceLock::new(),
        })
    }

    /// Takes another chat template than the files have.
    ///
    /// # Errors
    /// [`ChatError::Syntax`] when it isn't one.
    pub fn with_chat_template(mut self, source: &str) -> Result<Self, ChatError> {
        let [bos, eos] = &self.marks;
        self.chat_template = Some(ChatTemplate::parse(source, bos, eos)?);
        Ok(self)
    }

    /// Tokenizes a prompt. Control tokens that stand in it are taken as such; `add_special` adds
    /// BOS and EOS where the model wants them.
    ///
    /// # Errors
    /// [`EncodeError::Failed`] when the tokenizer fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, EncodeError> {
        match &self.encoder {
            Encoder::Gguf(tokenizer) => tokenizer.encode(text, add_special, true),
            Encoder::Json { tokenizer, .. } => encode_json(tokenizer, text, add_special),
        }
    }

    /// Tokenizes a text that isn't trusted with control tokens: what reads like one stays text.
    ///
    /// # Errors
    /// [`EncodeError::Failed`] when the tokenizer fails.
    pub fn encode_plain(&self, text: &str, add_special: bool) -> Result<Vec<u32>, EncodeError> {
        match &self.encoder {
            Encoder::Gguf(tokenizer) => tokenizer.encode(text, add_special, false),
            Encoder::Json { tokenizer, plain } => {
                let plain = plain.get_or_init(|| {
                    let mut plain = tokenizer.clone();
                    plain.set_encode_special_tokens(true);
                    plain
                });
                encode_json(plain, text, add_special)
            }
        }
    }

    /// Renders a chat and tokenizes it. BOS comes first where the model wants it, once, whether
    /// the template writes it or not.
    ///
    /// # Errors
    /// [`ChatError`] when there is no template, or it fails or refuses.
    pub fn encode_chat(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
    ) -> Result<Vec<u32>, ChatError> {
        let template = self.chat_template.as_ref().ok_or(ChatError::NoTemplate)?;
        let text = template.render(messages, options)?;
        let mut ids = self.encode(&text, false)?;
        // A template in Hugging Face's layout writes all that the model wants.
        if let Encoder::Gguf(tokenizer) = &self.encoder
            && let Some(bos) = tokenizer.added_bos()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Checks token ids that come from outside.
    ///
    /// # Errors
    /// [`EncodeError::Empty`], or [`EncodeError::UnknownId`] with the first that is no token.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), EncodeError> {
        let vocabulary = self.vocabulary();
        if ids.is_empty() {
            return Err(EncodeError::Empty);
        }
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => Err(EncodeError::UnknownId { id, vocabulary }),
            None => Ok(()),
        }
    }

    /// The number of token ids. A model may have more rows of logits; those are never text.
    pub fn vocabulary(&self) -> usize {
        self.table.len()
    }

    /// The token that begins a text, if there is one.
    pub fn bos_token(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a generation, in ascending order.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.eos
    }

    /// The bytes that a token stands for, control tokens written out. May be a part of a character;
    /// empty for ids beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.table.bytes(id)
    }

    /// [`Self::token_bytes`] as text, with U+FFFD for what isn't UTF-8 by itself.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// Whether a token is a mark of the model's format, such as `<|im_end|>`, and no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_control(id)
    }

    /// The text of token ids that begin a text.
    pub fn decode(&self, ids: &[u32], shown: SpecialTokens) -> String {
        let mut detokenizer = Detokenizer::new(Arc::clone(&self.table), shown, true);
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// For the tokens that follow a prompt.
    pub fn detokenizer(&self, shown: SpecialTokens) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.table), shown, false)
    }

    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// What turns constraints on the output into token masks; built when first asked for.
    ///
    /// # Errors
    /// [`ConstraintError`] when this vocabulary can't be constrained.
    pub fn constraints(&self) -> Result<&ConstraintFactory, ConstraintError> {
        let built = self
            .constraints
            .get_or_init(|| ConstraintFactory::new(&self.table, &self.eos));
        built.as_ref().map_err(Clone::clone)
    }
}

fn encode_json(
    tokenizer: &Tokenizer,
    text: &str,
    add_special: bool,
) -> Result<Vec<u32>, EncodeError> {
    let encoding = tokenizer.encode_fast(text, add_special);
    let encoding = encoding.map_err(|error| EncodeError::Failed(error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    use super::super::vocabulary::tests::{small_byte_level, small_sentence_piece};
    use super::*;

    #[test]
    fn bos_comes_once_whether_the_template_writes_it_or_not() {
        for source in [
            "{{ bos_token }}{{ messages[0].content }}",
            "{{ messages[0].content }}",
        ] {
            let text = GenerationText::from_gguf(small_sentence_piece()).unwrap();
            let text = text.with_chat_template(source).unwrap();
            let messages = [ChatMessage::new("user", "a")];
            let ids = text
                .encode_chat(&messages, &ChatOptions::default())
                .unwrap();
            assert_eq!(text.decode(&ids, SpecialTokens::Show), "<s> a");
            assert_eq!(text.decode(&ids, SpecialTokens::Skip), "a");
            assert_eq!(ids.len(), 2);
        }
    }

    #[test]
    fn a_chat_without_a_template_is_refused() {
        let text = GenerationText::from_gguf(small_byte_level()).unwrap();
        let error = text.encode_chat(&[], &ChatOptions::default()).unwrap_err();
        assert_eq!(error, ChatError::NoTemplate);
        assert!(text.chat_template().is_none());
    }

    #[test]
    fn texts_come_back_from_their_tokens() {
        let byte_level = GenerationText::from_gguf(small_byte_level()).unwrap();
        let pieces = GenerationText::from_gguf(small_sentence_piece()).unwrap();
        for text in ["hello w", " a  b", "日本🦀\n", "", "a▁b"] {
            let ids = byte_level.encode(text, true).unwrap();
            assert_eq!(byte_level.decode(&ids, SpecialTokens::Skip), text);
            let ids = pieces.encode(text, true).unwrap();
            let back = pieces.decode(&ids, SpecialTokens::Skip);
            assert_eq!(back, text.replace('▁', " "), "{ids:?}");
        }
    }

    #[test]
    fn the_end_of_turn_ends_a_generation_too() {
        let text = GenerationText::from_gguf(small_byte_level()).unwrap();
        assert_eq!(text.eos_tokens(), [0, 1]);
        assert_eq!(text.token_text(1), "<|im_end|>");
        assert!(text.is_special(1) && !text.is_special(2));
    }

    #[test]
    fn token_ids_from_outside_are_checked() {
        let text = GenerationText::from_gguf(small_byte_level()).unwrap();
        let vocabulary = text.vocabulary();
        assert_eq!(text.check_ids(&[0, 5]), Ok(()));
        assert_eq!(text.check_ids(&[]), Err(EncodeError::Empty));
        let id = vocabulary as u32;
        assert_eq!(
            text.check_ids(&[0, id]),
            Err(EncodeError::UnknownId { id, vocabulary })
        );
        assert_eq!(text.token_text(id), "");
    }
}
