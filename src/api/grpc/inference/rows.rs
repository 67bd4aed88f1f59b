//! From a row's answer to its typed message.

use crate::{
    admission::{AnsweredRow, RowResult},
    api::{
        account::Answered,
        proto::ferry::v1::{
            ClassifyRow, ClassifyTokensRow, EmbedRow, LabelScore, ModelInfo, RerankRequest,
            RerankRow, RowError, RowInfo, Span, Timing, Token, TokenizeRow,
        },
        status::map,
    },
    error::RequestError,
    models::RowOutput,
    quality,
    repository::ServedModel,
    text::EncodedRow,
};

/// One message for each row, in the order of the request.
pub fn in_order<T>(answered: &Answered, encode: impl Fn(usize, &RowResult) -> T) -> Vec<T> {
    let rows = answered.rows.iter().enumerate();
    rows.map(|(row, answer)| encode(row, answer)).collect()
}

pub fn model_info(model: &ServedModel) -> ModelInfo {
    ModelInfo {
        name: model.name.clone(),
        version: model.version.clone(),
    }
}

pub fn timing(answered: &Answered) -> Timing {
    Timing {
        queue_us: answered.queue.as_micros() as u64,
        execute_us: answered.execute.as_micros() as u64,
        total_us: answered.received.elapsed().as_micros() as u64,
    }
}

pub fn embed(row: usize, answer: &RowResult, dimensions: u32) -> EmbedRow {
    let encoded = answer.as_ref().map_err(Clone::clone).and_then(|answer| {
        let RowOutput::Embedding(values) = &answer.answer.output else {
            return Err(unexpected());
        };
        Ok((info(row, answer), shorten(values, dimensions)))
    });
    match encoded {
        Ok((info, embedding)) => EmbedRow {
            info: Some(info),
            embedding,
            error: None,
        },
        Err(error) => EmbedRow {
            info: Some(failed_info(row)),
            error: Some(row_error(&error)),
            ..EmbedRow::default()
        },
    }
}

pub fn classify(
    row: usize,
    answer: &RowResult,
    model: &ServedModel,
    top_k: usize,
    least: f32,
) -> ClassifyRow {
    let (info, logits) = match answer.as_ref().map_err(Clone::clone).and_then(|answer| {
        let RowOutput::Logits(logits) = &answer.answer.output else {
            return Err(unexpected());
        };
        Ok((info(row, answer), logits))
    }) {
        Ok(parts) => parts,
        Err(error) => {
            return ClassifyRow {
                info: Some(failed_info(row)),
                error: Some(row_error(&error)),
                ..ClassifyRow::default()
            };
        }
    };
    let classified = quality::classify(logits, model.activation);
    let label = |index: usize| model.labels.get(index).cloned().unwrap_or_default();
    let kept = match top_k {
        0 => classified.ranking.len(),
        top_k => top_k.min(classified.ranking.len()),
    };
    ClassifyRow {
        info: Some(info),
        label: classified
            .ranking
            .first()
            .map_or_else(String::new, |&best| label(best)),
        confidence: classified.confidence,
        margin: classified.margin,
        low_confidence: classified.confidence < least,
        scores: classified.ranking[..kept]
            .iter()
            .map(|&index| LabelScore {
                label: label(index),
                score: classified.probabilities[index],
            })
            .collect(),
        error: None,
    }
}

/// Takes the documents that are to be returned; none when they are not asked for.
pub fn kept_documents(request: &mut RerankRequest) -> Vec<String> {
    if request.return_documents {
        request.documents.clone()
    } else {
        Vec::new()
    }
}

pub fn rerank(row: usize, answer: &RowResult, documents: &[String], least: f32) -> RerankRow {
    let encoded =
        answer
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|answer| match answer.answer.output {
                RowOutput::Logits(ref logits) if logits.len() == 1 => {
                    Ok((info(row, answer), logits[0]))
                }
                _ => Err(unexpected()),
            });
    let document = documents.get(row).cloned().unwrap_or_default();
    match encoded {
        Ok((info, logit)) => {
            let score = quality::sigmoid(logit);
            RerankRow {
                info: Some(info),
                score,
                logit,
                low_confidence: score < least,
                document,
                error: None,
            }
        }
        Err(error) => RerankRow {
            info: Some(failed_info(row)),
            document,
            error: Some(row_error(&error)),
            ..RerankRow::default()
        },
    }
}

/// Sorts best first, failed rows last, and keeps `top_n` (0 for all).
pub fn rank(rows: &mut Vec<RerankRow>, top_n: usize) {
    rows.sort_by(|a, b| {
        let failed = |row: &RerankRow| row.error.is_some();
        failed(a).cmp(&failed(b)).then(b.logit.total_cmp(&a.logit))
    });
    if top_n > 0 {
        rows.truncate(top_n);
    }
}

pub fn classify_tokens(
    row: usize,
    answer: &RowResult,
    model: &ServedModel,
    text: &str,
    least: f32,
) -> ClassifyTokensRow {
    let encoded = answer.as_ref().map_err(Clone::clone).and_then(|answer| {
        let RowOutput::TokenLogits { values, .. } = &answer.answer.output else {
            return Err(unexpected());
        };
        let EncodedRow { offsets, words, .. } = &answer.encoded;
        let spans = quality::label_spans(values, &model.labels, offsets, words);
        Ok((info(row, answer), spans))
    });
    match encoded {
        Ok((info, spans)) => ClassifyTokensRow {
            info: Some(info),
            spans: spans
                .into_iter()
                .map(|span| Span {
                    start: characters(text, span.start),
                    end: characters(text, span.end),
                    text: text
                        .get(span.start..span.end)
                        .unwrap_or_default()
                        .to_owned(),
                    label: span.label,
                    confidence: span.confidence,
                    low_confidence: span.confidence < least,
                })
                .collect(),
            error: None,
        },
        Err(error) => ClassifyTokensRow {
            info: Some(failed_info(row)),
            error: Some(row_error(&error)),
            ..ClassifyTokensRow::default()
        },
    }
}

pub fn tokenize(
    row: usize,
    encoded: Result<EncodedRow, RequestError>,
    text: &str,
    model: &ServedModel,
) -> TokenizeRow {
    match encoded {
        Ok(encoded) => TokenizeRow {
            info: Some(RowInfo {
                row: row as u32,
                tokens: encoded.ids.len() as u32,
                truncated: encoded.truncated,
                ..RowInfo::default()
            }),
            tokens: encoded
                .ids
                .iter()
                .zip(&encoded.offsets)
                .map(|(&id, &(start, end))| Token {
                    id,
                    text: model.token_text(id),
                    start: characters(text, start as usize),
                    end: characters(text, end as usize),
                })
                .collect(),
            error: None,
        },
        Err(error) => TokenizeRow {
            info: Some(failed_info(row)),
            error: Some(row_error(&error)),
            ..TokenizeRow::default()
        },
    }
}

/// The error of one row as a message.
pub fn row_error(error: &RequestError) -> RowError {
    RowError {
        code: map(error).grpc as i32,
        message: error.to_string(),
    }
}

fn info(row: usize, answer: &AnsweredRow) -> RowInfo {
    RowInfo {
        row: row as u32,
        tokens: answer.tokens as u32,
        truncated: answer.encoded.truncated,
        batch_rows: answer.answer.batch_rows as u32,
        cached: answer.cached,
    }
}

fn failed_info(row: usize) -> RowInfo {
    RowInfo {
        row: row as u32,
        ..RowInfo::default()
    }
}

fn unexpected() -> RequestError {
    RequestError::internal("the model's output is not of its task")
}

/// Keeps the first `dimensions` of a vector (0 for all) and scales it to length 1 again.
pub fn shorten(values: &[f32], dimensions: u32) -> Vec<f32> {
    let Some(kept) = values
        .get(..dimensions as usize)
        .filter(|kept| !kept.is_empty() && kept.len() < values.len())
    else {
        return values.to_vec();
    };
    let length = kept.iter().map(|value| value * value).sum::<f32>().sqrt();
    let scale = if length > 0.0 { length.recip() } else { 1.0 };
    kept.iter().map(|value| value * scale).collect()
}

fn characters(text: &str, at: usize) -> u32 {
    quality::characters_before(text, at) as u32
}
