//! `/v1/completions`: prompts to text.

use serde::Serialize;

use super::{
    fields::{Field, Fields, Kind},
    logprobs::CompletionLogprobs,
    output::{Envelope, Gathered, Surface, finish_reason, write_json},
    parameters::{GenerationRequest, one_or_more, read_common, switch},
};
use crate::{
    admission::{Finish, GenerateCall, Piece, PieceToken, Prompt},
    error::RequestError,
};

/// OpenAI's default; ten words are soon read, and a forgotten limit does no harm.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Alternatives told beside each token, at most.
pub const MAX_LOGPROBS: u32 = 20;

const PROMPT: &str = "a text, a list of texts, a list of token ids, or a list of such lists";

/// How completions are written.
#[derive(Debug, Default)]
pub struct Completions {
    logprobs: bool,
    /// Characters of each choice that a stream has told so far.
    told: Vec<usize>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f32>,
}

/// Reads a request.
///
/// # Errors
/// [`RequestError::InvalidArgument`] naming the parameter that is wrong.
pub fn read(body: &[u8]) -> Result<GenerationRequest<Completions>, RequestError> {
    let mut fields = Fields::parse(body)?;
    let prompts = read_prompts(&fields.needed("prompt", PROMPT)?)?;
    let (mut call, delivery) = read_common(&mut fields)?;
    let max_tokens = fields.read("max_tokens", "a whole number")?;
    call.max_tokens = Some(max_tokens.unwrap_or(DEFAULT_MAX_TOKENS));
    let logprobs = read_logprobs(&mut fields)?;
    call.sampling.top_logprobs = logprobs.unwrap_or(0);
    call.echo = switch(&mut fields, "echo", false)?;
    call.score_prompt = call.echo && logprobs.is_some();
    if let Some(suffix) = fields.read::<String>("suffix", "a text")?
        && !suffix.is_empty()
    {
        let allowed = "nothing: filling in between prompt and suffix is not supported";
        return Err(RequestError::invalid("suffix", "a text", allowed));
    }
    if let Some(best_of) = fields.read::<u32>("best_of", "a whole number")?
        && best_of != call.continuations
    {
        let allowed = format!(
            "n, {}: choosing among more is not supported",
            call.continuations
        );
        return Err(RequestError::invalid("best_of", best_of, allowed));
    }
    fields.finish()?;
    let calls = prompts.into_iter().map(|prompt| GenerateCall {
        prompt,
        ..call.clone()
    });
    Ok(GenerationRequest {
        calls: calls.collect(),
        delivery,
        surface: Completions {
            logprobs: logprobs.is_some(),
            told: Vec::new(),
        },
    })
}

fn read_prompts(field: &Field<'_>) -> Result<Vec<Prompt>, RequestError> {
    Ok(match (field.kind(), field.first_kind()) {
        (Kind::Text, _) | (Kind::List, Some(Kind::Text)) => {
            let texts = one_or_more(field, PROMPT)?;
            texts.into_iter().map(Prompt::Text).collect()
        }
        (Kind::List, Some(Kind::List)) => {
            let prompts: Vec<Vec<u32>> = field.read(PROMPT)?;
            prompts.into_iter().map(Prompt::Tokens).collect()
        }
        (Kind::List, Some(_)) => vec![Prompt::Tokens(field.read(PROMPT)?)],
        _ => return Err(field.refuse(PROMPT)),
    })
}

fn read_logprobs(fields: &mut Fields<'_>) -> Result<Option<u32>, RequestError> {
    const ALLOWED: &str = "0 to 20";
    let Some(field) = fields.take("logprobs") else {
        return Ok(None);
    };
    match field.read::<u32>(ALLOWED)? {
        count if count <= MAX_LOGPROBS => Ok(Some(count)),
        _ => Err(field.refuse(ALLOWED)),
    }
}

impl Completions {
    fn write_logprobs(
        &self,
        tokens: &[PieceToken],
        offset: &mut usize,
    ) -> Option<CompletionLogprobs> {
        self.logprobs
            .then(|| CompletionLogprobs::new(tokens, offset))
    }
}

impl Surface for Completions {
    const ID: &'static str = "cmpl";
    const ANSWER: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";

    fn wants_tokens(&self) -> bool {
        self.logprobs
    }

    fn write_events(&mut self, index: u32, piece: &Piece, envelope: &Envelope, out: &mut Vec<u8>) {
        let tells_tokens = self.logprobs && !piece.tokens.is_empty();
        if piece.text.is_empty() && !tells_tokens && piece.finish.is_none() {
            return;
        }
        let at = index as usize;
        if self.told.len() <= at {
            self.told.resize(at + 1, 0);
        }
        let mut told = self.told[at];
        let logprobs = self.write_logprobs(&piece.tokens, &mut told);
        self.told[at] = told;
        envelope.write_chunk(
            &Choice::new(index, &piece.text, logprobs, piece.finish.as_ref()),
            out,
        );
    }

    fn write_choice(&self, index: u32, gathered: &Gathered, out: &mut Vec<u8>) {
        let logprobs = self.write_logprobs(&gathered.tokens, &mut 0);
        let finish = gathered.finish.as_ref();
        write_json(out, &Choice::new(index, &gathered.text, logprobs, finish));
    }
}

impl<'a> Choice<'a> {
    fn new(
        index: u32,
        text: &'a str,
        logprobs: Option<CompletionLogprobs>,
        finish: Option<&Finish>,
    ) -> Self {
        Self {
            index,
            text,
            logprobs,
            finish_reason: finish.map(finish_reason),
            confidence: finish.map(|finish| finish.confidence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(json: &str) -> Result<Vec<Prompt>, String> {
        let body = format!("{{\"prompt\":{json}}}");
        let request = read(body.as_bytes()).map_err(|error| error.to_string())?;
        Ok(request.calls.into_iter().map(|call| call.prompt).collect())
    }

    #[test]
    fn a_prompt_comes_in_four_forms() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(prompts("\"a\""), Ok(vec![text("a")]));
        assert_eq!(prompts("[\"a\", \"b\"]"), Ok(vec![text("a"), text("b")]));
        assert_eq!(prompts("[1, 2]"), Ok(vec![Prompt::Tokens(vec![1, 2])]));
        let lists = vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])];
        assert_eq!(prompts("[[1], [2, 3]]"), Ok(lists));
        for wrong in [
            "[]",
            "7",
            "{}",
            "[1, \"a\"]",
            "[\"a\", 1]",
            "[-1]",
            "[[1.5]]",
            "null",
        ] {
            let error = prompts(wrong).unwrap_err();
            assert!(error.starts_with("prompt: found"), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_openai_leaves_to_the_default_is_16_tokens_without_logprobs() {
        let request = read(br#"{"prompt":"a"}"#).unwrap();
        assert_eq!(request.calls[0].max_tokens, Some(16));
        assert!(!request.surface.wants_tokens() && !request.calls[0].score_prompt);
        let request = read(br#"{"prompt":"a","echo":true,"logprobs":0,"max_tokens":0}"#).unwrap();
        assert_eq!(request.calls[0].max_tokens, Some(0));
        assert!(request.surface.wants_tokens() && request.calls[0].score_prompt);
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        for (json, says) in [
            (r#""suffix":"x""#, "suffix: found a text"),
            (r#""best_of":3"#, "best_of: found 3; allowed: n, 1"),
            (r#""logprobs":21"#, "logprobs: found 21; allowed: 0 to 20"),
            (r#""logprobs":true"#, "logprobs: found true"),
            (
                r#""messages":[]"#,
                "messages: found a parameter that is not known",
            ),
        ] {
            let body = format!("{{\"prompt\":\"a\",{json}}}");
            let error = read(body.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(says), "{json}: {error}");
        }
        assert!(read(br#"{"prompt":"a","suffix":"","best_of":2,"n":2}"#).is_ok());
    }
}
