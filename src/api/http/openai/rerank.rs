//! `/v1/rerank`: documents by their relevance to a query, in the form that Cohere, Jina and vLLM
//! share.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    embeddings::Usage,
    errors::ApiError,
    fields::{Field, Fields, Kind},
    output::{anomalous_header, cached_header, escalated_header, model_headers, new_id},
    parameters::switch,
    request::Incoming,
};
use crate::{
    admission::{Call, WhenUnsure},
    api::{
        account::{Answered, answer_call},
        grpc::Shared,
    },
    config::Task,
    error::RequestError,
    models::RowOutput,
    text::{EncodeOptions, RowInput},
};

const DOCUMENTS: &str = "a list of texts, or of objects with a text";

/// A request that has been read.
#[derive(Debug)]
struct Request {
    call: Call,
    /// The documents that are to be returned; empty for none.
    kept: Vec<String>,
    /// Results at most.
    top_n: usize,
}

#[derive(Serialize)]
struct Ranking<'a> {
    id: String,
    model: &'a str,
    results: Vec<Ranked<'a>>,
    usage: Usage,
}

#[derive(Serialize)]
struct Ranked<'a> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

#[derive(Serialize)]
struct Document<'a> {
    text: &'a str,
}

/// Answers a request; fails as a whole when a row fails.
pub async fn rerank(
    State(shared): State<Shared>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let incoming = Incoming::take(&shared, &headers, body).await?;
    let mut request = incoming.read(&shared, read)?;
    request.call.version = incoming.version;
    let (kept, top_n) = (request.kept, request.top_n);
    let response = answer_call(
        &shared.admission,
        &shared.metrics,
        request.call,
        incoming.context,
        |answered| encode(answered, &kept, top_n),
    );
    Ok(response.await?)
}

fn read(body: &[u8]) -> Result<Request, RequestError> {
    let mut fields = Fields::parse(body)?;
    let query: String = fields.need("query", "a text")?;
    let documents = read_documents(&fields.needed("documents", DOCUMENTS)?)?;
    let model = fields.read("model", "a model's name")?.unwrap_or_default();
    let top_n = match fields.take("top_n") {
        None => usize::MAX,
        Some(field) => match field.read::<usize>("1 or more")? {
            0 => return Err(field.refuse("1 or more")),
            top_n => top_n,
        },
    };
    let kept = if switch(&mut fields, "return_documents", false)? {
        documents.clone()
    } else {
        Vec::new()
    };
    fields.ignore(&["user"]);
    fields.finish()?;
    let pairs = documents
        .into_iter()
        .map(|document| RowInput::Pair(query.clone(), document));
    let call = Call {
        model,
        version: String::new(),
        task: Some(Task::Rerank),
        rows: pairs.collect(),
        options: EncodeOptions::default(),
        dimensions: 0,
        when_unsure: WhenUnsure::default(),
        keeps_no_answer: false,
        field: "documents",
    };
    Ok(Request { call, kept, top_n })
}

fn read_documents(field: &Field<'_>) -> Result<Vec<String>, RequestError> {
    if field.first_kind() == Some(Kind::Text) {
        return field.read(DOCUMENTS);
    }
    let texts = field.items(DOCUMENTS)?.into_iter().map(|document| {
        let mut fields = document.object(DOCUMENTS)?;
        let text = fields.need("text", "a text")?;
        fields.finish()?;
        Ok(text)
    });
    texts.collect()
}

fn encode(answered: &Answered, kept: &[String], top_n: usize) -> Result<Response, RequestError> {
    let mut scored = Vec::with_capacity(answered.rows.len());
    for (index, row) in answered.rows.iter().enumerate() {
        let row = row.as_ref().map_err(Clone::clone)?;
        match &row.answer.output {
            RowOutput::Logits(logits) if logits.len() == 1 => {
                let by = row.answered_by(&answered.model);
                scored.push((index, by.score(logits[0]), logits[0]));
            }
            _ => return Err(RequestError::internal("the model's output is no score")),
        }
    }
    // By logit: far from 0 the scores of different ones are the same number. But two models' logits
    // can't be compared.
    if answered.escalated_rows() > 0 {
        scored.sort_by(|(_, one, _), (_, other, _)| other.total_cmp(one));
    } else {
        scored.sort_by(|(_, _, one), (_, _, other)| other.total_cmp(one));
    }
    let results = scored
        .into_iter()
        .take(top_n)
        .map(|(index, score, _)| Ranked {
            index,
            relevance_score: score,
            document: kept.get(index).map(|text| Document { text }),
        });
    let ranking = Ranking {
        id: new_id("rerank"),
        model: &answered.model.name,
        results: results.collect(),
        usage: Usage::of(answered),
    };
    let headers = (
        model_headers(&answered.model),
        cached_header(answered.cached()),
        escalated_header(answered.escalated_rows()),
        anomalous_header(answered.anomalous_rows()),
    );
    Ok((headers, Json(ranking)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Request, String> {
        super::read(json.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn documents_are_texts_or_objects_with_one() {
        let pair = |document: &str| RowInput::Pair("q".to_owned(), document.to_owned());
        let texts = read(r#"{"query":"q","documents":["a","b"]}"#).unwrap();
        assert_eq!(texts.call.rows, [pair("a"), pair("b")]);
        assert_eq!((texts.kept.len(), texts.top_n), (0, usize::MAX));
        let objects = r#"{"query":"q","documents":[{"text":"a"}],"return_documents":true}"#;
        assert_eq!(read(objects).unwrap().kept, ["a"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, says) in [
            (r#"{"documents":["a"]}"#, "query: found nothing"),
            (r#"{"query":"q"}"#, "documents: found nothing"),
            (r#"{"query":"q","documents":"a"}"#, "documents: found \"a\""),
            (
                r#"{"query":"q","documents":[{"text":"a"},{"image":"b"}]}"#,
                "documents[1].text: found nothing",
            ),
            (
                r#"{"query":"q","documents":["a"],"top_n":0}"#,
                "top_n: found 0",
            ),
            (
                r#"{"query":"q","documents":["a"],"max_chunks_per_doc":1}"#,
                "max_chunks_per_doc: found a parameter",
            ),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.starts_with(says), "{json}: {error}");
        }
    }
}
