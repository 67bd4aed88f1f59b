//! `/v1/embeddings`: texts to vectors.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Serialize;

use super::{
    errors::ApiError,
    fields::{Field, Fields, Kind},
    output::{anomalous_header, cached_header, model_headers},
    parameters::one_or_more,
    request::Incoming,
};
use crate::{
    admission::{Call, WhenUnsure},
    api::{
        account::{Answered, answer_call},
        grpc::{Shared, shorten},
    },
    config::Task,
    error::RequestError,
    models::RowOutput,
    text::{EncodeOptions, RowInput},
};

const INPUT: &str = "a text, a list of texts, a list of token ids, or a list of such lists";

/// A request that has been read.
#[derive(Debug)]
struct Request {
    call: Call,
    base64: bool,
}

#[derive(Serialize)]
struct Embeddings<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
#[allow(clippy::struct_field_names, reason = "OpenAI's names")]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    /// The numbers' bytes, little-endian.
    Base64(String),
}

/// Tokens of a request that only reads.
#[derive(Debug, Serialize)]
pub struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    /// The tokens of all rows.
    pub fn of(answered: &Answered) -> Self {
        let rows = answered.rows.iter().flatten();
        let tokens = rows.map(|row| row.tokens).sum();
        Self {
            prompt_tokens: tokens,
            total_tokens: tokens,
        }
    }
}

/// Answers a request; fails as a whole when a row fails.
pub async fn embed(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let incoming = Incoming::take(&shared, &headers, body).await?;
    let Request { mut call, base64 } = incoming.read(&shared, read)?;
    call.version = incoming.version;
    let dimensions = call.dimensions as u32;
    let response = answer_call(
        &shared.admission,
        &shared.metrics,
        call,
        incoming.context,
        |answered| encode(answered, dimensions, base64),
    );
    Ok(response.await?)
}

fn read(body: &[u8]) -> Result<Request, RequestError> {
    const FORMATS: &str = "\"float\" or \"base64\"";
    let mut fields = Fields::parse(body)?;
    let rows = read_input(&fields.needed("input", INPUT)?)?;
    let model = fields.read("model", "a model's name")?.unwrap_or_default();
    let base64 = match fields.take("encoding_format") {
        None => false,
        Some(format) => match format.read::<String>(FORMATS)?.as_str() {
            "float" => false,
            "base64" => true,
            _ => return Err(format.refuse(FORMATS)),
        },
    };
    let dimensions = match fields.take("dimensions") {
        None => 0,
        Some(field) => match field.read::<u32>("1 or more")? {
            0 => return Err(field.refuse("1 or more")),
            dimensions => dimensions,
        },
    };
    fields.ignore(&["user"]);
    fields.finish()?;
    let call = Call {
        model,
        version: String::new(),
        task: Some(Task::Embed),
        rows,
        options: EncodeOptions::default(),
        dimensions: dimensions as usize,
        when_unsure: WhenUnsure::default(),
        keeps_no_answer: false,
        field: "input",
    };
    Ok(Request { call, base64 })
}

fn read_input(field: &Field<'_>) -> Result<Vec<RowInput>, RequestError> {
    Ok(match (field.kind(), field.first_kind()) {
        (Kind::Text, _) | (Kind::List, Some(Kind::Text)) => {
            let texts = one_or_more(field, INPUT)?;
            texts.into_iter().map(RowInput::Text).collect()
        }
        (Kind::List, Some(Kind::List)) => {
            let rows: Vec<Vec<u32>> = field.read(INPUT)?;
            rows.into_iter().map(RowInput::Tokens).collect()
        }
        (Kind::List, Some(_)) => vec![RowInput::Tokens(field.read(INPUT)?)],
        _ => return Err(field.refuse(INPUT)),
    })
}

fn encode(answered: &Answered, dimensions: u32, base64: bool) -> Result<Response, RequestError> {
    let mut data = Vec::with_capacity(answered.rows.len());
    for (index, row) in answered.rows.iter().enumerate() {
        let row = row.as_ref().map_err(Clone::clone)?;
        let RowOutput::Embedding(values) = &row.answer.output else {
            return Err(RequestError::internal("the model's output is no embedding"));
        };
        let values = shorten(values, dimensions);
        data.push(Embedding {
            object: "embedding",
            index,
            embedding: if base64 {
                let bytes: Vec<u8> = values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            } else {
                Vector::Numbers(values)
            },
        });
    }
    let embeddings = Embeddings {
        object: "list",
        data,
        model: &answered.model.name,
        usage: Usage::of(answered),
    };
    let headers = (
        model_headers(&answered.model),
        cached_header(answered.cached()),
        anomalous_header(answered.anomalous_rows()),
    );
    Ok((headers, Json(embeddings)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(json: &str) -> Result<Vec<RowInput>, String> {
        let body = format!("{{\"input\":{json}}}");
        let request = read(body.as_bytes()).map_err(|error| error.to_string())?;
        Ok(request.call.rows)
    }

    #[test]
    fn input_comes_in_four_forms() {
        let text = |text: &str| RowInput::Text(text.to_owned());
        assert_eq!(rows("\"a\""), Ok(vec![text("a")]));
        assert_eq!(rows("[\"a\",\"b\"]"), Ok(vec![text("a"), text("b")]));
        assert_eq!(rows("[1,2]"), Ok(vec![RowInput::Tokens(vec![1, 2])]));
        let lists = vec![RowInput::Tokens(vec![1]), RowInput::Tokens(vec![2])];
        assert_eq!(rows("[[1],[2]]"), Ok(lists));
        assert!(rows("[]").unwrap_err().starts_with("input: found []"));
    }

    #[test]
    fn formats_and_dimensions_are_checked() {
        let read = |more: &str| {
            let body = format!("{{\"input\":\"a\",{more}}}");
            read(body.as_bytes()).map_err(|error| error.to_string())
        };
        assert!(
            read(r#""encoding_format":"base64","user":"u""#)
                .unwrap()
                .base64
        );
        assert_eq!(read(r#""dimensions":8"#).unwrap().call.dimensions, 8);
        for (more, says) in [
            (
                r#""encoding_format":"int8""#,
                "encoding_format: found \"int8\"",
            ),
            (
                r#""dimensions":0"#,
                "dimensions: found 0; allowed: 1 or more",
            ),
            (r#""truncate":true"#, "truncate: found a parameter"),
        ] {
            let error = read(more).unwrap_err();
            assert!(error.starts_with(says), "{error}");
        }
    }
}
