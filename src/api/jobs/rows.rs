//! From a typed row, or a line of a file, to the row that is kept.

use prost::Message as _;
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    api::json::from_json,
    api::proto::ferry::v1::{JobRow, ModelOptions, job_row::Request},
    error::RequestError,
    jobs::{Endpoint, LineFault, NewRow, RowForm, http_row, read_http_row},
};

const REQUESTS: &str =
    "one of embed, classify, rerank, classify_tokens, tokenize, generate, chat, http";

/// Reads a typed row; `field` is how errors name it.
///
/// # Errors
/// [`RequestError::InvalidArgument`] when it is no request. What is wrong with the request itself is
/// its result.
pub fn read_row(row: JobRow, field: &str) -> Result<NewRow, RequestError> {
    let body = row.encode_to_vec();
    let named = |options: Option<&ModelOptions>| {
        options.map_or_else(String::new, |options| options.model.clone())
    };
    let (model, generates, weight) = match row.request {
        None => return Err(RequestError::invalid(field, "no request", REQUESTS)),
        Some(Request::Http(request)) => {
            let Some(endpoint) = Endpoint::of_path(&request.url) else {
                let found = request.url.chars().take(64).collect::<String>();
                let paths = Endpoint::ALL.map(Endpoint::path).join(", ");
                return Err(RequestError::invalid(
                    format!("{field}.http.url"),
                    found,
                    paths,
                ));
            };
            return http_row(row.id, endpoint, &request.body).ok_or_else(|| {
                let field = format!("{field}.http.body");
                RequestError::invalid(field, "something else", "a JSON object")
            });
        }
        Some(Request::Embed(request)) => {
            let rows = request.texts.len() + request.token_ids.len();
            (named(request.options.as_ref()), false, rows)
        }
        Some(Request::Classify(request)) => {
            let rows = request.texts.len() + request.token_ids.len();
            (named(request.options.as_ref()), false, rows)
        }
        Some(Request::Rerank(request)) => {
            let rows = request.documents.len();
            (named(request.options.as_ref()), false, rows)
        }
        Some(Request::ClassifyTokens(request)) => {
            let rows = request.texts.len();
            (named(request.options.as_ref()), false, rows)
        }
        Some(Request::Tokenize(request)) => {
            let rows = request.texts.len();
            (named(request.options.as_ref()), false, rows)
        }
        Some(Request::Generate(request)) => {
            let n = request.options.as_ref().map_or(1, |options| options.n);
            (request.model, true, n as usize)
        }
        Some(Request::Chat(request)) => {
            let n = request.options.as_ref().map_or(1, |options| options.n);
            (request.model, true, n as usize)
        }
    };
    Ok(NewRow {
        id: row.id,
        model,
        generates,
        weight: weight.clamp(1, u32::MAX as usize) as u32,
        form: RowForm::Typed,
        body,
    })
}

/// Which of the two kinds of lines it is.
#[derive(Deserialize)]
struct Look {
    #[serde(default)]
    custom_id: Option<IgnoredAny>,
    #[serde(default)]
    url: Option<IgnoredAny>,
}

/// Reads line `number` of a file: a `JobRow` in JSON, or one of OpenAI's batches.
///
/// # Errors
/// [`RequestError::InvalidArgument`] naming the line.
pub fn read_line(number: u32, line: &[u8]) -> Result<NewRow, RequestError> {
    let look: Look = serde_json::from_slice(line).map_err(|error| {
        let found = format!("no JSON object: {error}");
        RequestError::invalid(format!("line {number}"), found, "a JSON object")
    })?;
    if look.custom_id.is_some() || look.url.is_some() {
        return read_http_row(number, line, None).map_err(|fault| line_error(&fault));
    }
    let field = format!("line {number}");
    let row: JobRow = from_json(line, "ferry.v1.JobRow").map_err(|error| {
        RequestError::invalid(
            &field,
            error,
            "a ferry.v1.JobRow in JSON, or custom_id, method, url and body",
        )
    })?;
    read_row(row, &field)
}

/// The error of a line that is refused.
pub fn line_error(fault: &LineFault) -> RequestError {
    RequestError::invalid(
        format!("line {}", fault.line),
        format_args!("{} ({})", fault.message, fault.code),
        "a line with a request",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_typed_or_as_openai_has_it() {
        let line = br#"{"id":"a","embed":{"options":{"model":"m"},"texts":["x","y"]}}"#;
        let row = read_line(1, line).unwrap();
        assert_eq!((row.id.as_str(), row.model.as_str()), ("a", "m"));
        assert_eq!((row.weight, row.form), (2, RowForm::Typed));
        let line = br#"{"custom_id":"b","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}"#;
        let row = read_line(2, line).unwrap();
        assert_eq!(row.form, RowForm::Http(Endpoint::Embeddings));
        let line = br#"{"id":"c","chat":{"model":"g","messages":[{"role":"user","content":"x"}],"options":{"n":3}}}"#;
        let row = read_line(3, line).unwrap();
        assert_eq!((row.weight, row.generates), (3, true));
    }

    #[test]
    fn a_line_that_is_wrong_is_named() {
        for (line, says) in [
            ("{", "line 7: found no JSON object"),
            (r#"{"id":"a"}"#, "line 7: found no request"),
            (r#"{"id":"a","embed":{"text":["x"]}}"#, "line 7: found "),
            (
                r#"{"custom_id":"a","method":"PUT"}"#,
                "line 7: found method is",
            ),
            (
                r#"{"http":{"url":"/v1/models","body":"{}"}}"#,
                "line 7.http.url: found /v1/models",
            ),
            (
                r#"{"http":{"url":"/v1/rerank","body":"[]"}}"#,
                "line 7.http.body: found something else",
            ),
        ] {
            let error = read_line(7, line.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(says), "{line}: {error}");
        }
    }
}
