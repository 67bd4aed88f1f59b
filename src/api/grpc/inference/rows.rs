//! From a row's answer to its typed message.

use crate::{
    admission::{self, AnsweredRow, RowResult},
    api::{
        account::Answered,
        proto::ferry::v1::{
            Anomalies as ProtoAnomalies, ClassifyRow, ClassifyTokensRow, EmbedRow, Escalation,
            LabelScore, LowConfidence, LowConfidenceAction, ModelInfo, RerankRequest, RerankRow,
            RowError, RowInfo, Span, Timing, Token, TokenizeRow,
        },
        status::map,
    },
    error::RequestError,
    models::RowOutput,
    quality::{
        self,
        drift::{Anomalies, Anomaly},
    },
    repository::ServedModel,
    text::EncodedRow,
};

/// The least confidence that a request wants.
#[derive(Debug, Clone, Copy)]
pub struct Least {
    confidence: f32,
    /// Whether there is to be no answer below it.
    abstains: bool,
}

impl Least {
    /// What a request's fields say; what they may say is checked where its call is made.
    pub fn of(confidence: f32, asked: Option<&LowConfidence>) -> Self {
        let action = asked.map_or(LowConfidenceAction::Unspecified, LowConfidence::action);
        Self {
            confidence,
            abstains: action == LowConfidenceAction::Abstain,
        }
    }
}

/// One message for each row, in the order of the request.
pub fn in_order<T>(answered: &Answered, encode: impl Fn(usize, &RowResult) -> T) -> Vec<T> {
    let rows = answered.rows.iter().enumerate();
    rows.map(|(row, answer)| encode(row, answer)).collect()
}

pub fn model_info(model: &ServedModel) -> ModelInfo {
    ModelInfo {
        name: model.name.clone(),
        version: model.version.clone(),
        calibrated: model.calibration.is_some(),
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
    least: Least,
) -> ClassifyRow {
    let (answer, logits) = match answer.as_ref().map_err(Clone::clone).and_then(|answer| {
        let RowOutput::Logits(logits) = &answer.answer.output else {
            return Err(unexpected());
        };
        Ok((answer, logits))
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
    let model = answer.answered_by(model);
    let classified = model.classify(logits);
    let is_low = classified.confidence < least.confidence;
    if is_low && least.abstains {
        return ClassifyRow {
            info: Some(info(row, answer)),
            confidence: classified.confidence,
            margin: classified.margin,
            low_confidence: true,
            abstained: true,
            ..ClassifyRow::default()
        };
    }
    let label = |index: usize| model.labels.get(index).cloned().unwrap_or_default();
    let kept = match top_k {
        0 => classified.ranking.len(),
        top_k => top_k.min(classified.ranking.len()),
    };
    ClassifyRow {
        info: Some(info(row, answer)),
        label: classified
            .ranking
            .first()
            .map_or_else(String::new, |&best| label(best)),
        confidence: classified.confidence,
        margin: classified.margin,
        low_confidence: is_low,
        scores: classified.ranking[..kept]
            .iter()
            .map(|&index| LabelScore {
                label: label(index),
                score: classified.probabilities[index],
            })
            .collect(),
        error: None,
        escalation: escalation(answer),
        abstained: false,
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

pub fn rerank(
    row: usize,
    answer: &RowResult,
    model: &ServedModel,
    documents: &[String],
    least: Least,
) -> RerankRow {
    let encoded =
        answer
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|answer| match answer.answer.output {
                RowOutput::Logits(ref logits) if logits.len() == 1 => Ok((answer, logits[0])),
                _ => Err(unexpected()),
            });
    let document = documents.get(row).cloned().unwrap_or_default();
    match encoded {
        Ok((answer, logit)) => {
            let score = answer.answered_by(model).score(logit);
            let is_low = score < least.confidence;
            let abstained = is_low && least.abstains;
            RerankRow {
                info: Some(info(row, answer)),
                score: if abstained { 0.0 } else { score },
                logit: if abstained { 0.0 } else { logit },
                low_confidence: is_low,
                document,
                error: None,
                escalation: escalation(answer),
                abstained,
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

/// Sorts best first, then rows without a score, failed ones last, and keeps `top_n` (0 for all).
pub fn rank(rows: &mut Vec<RerankRow>, top_n: usize) {
    // Two models' logits can't be compared; their scores can, if need be.
    let mixed = rows.iter().any(|row| row.escalation.is_some());
    rows.sort_by(|a, b| {
        let group = |row: &RerankRow| (row.error.is_some(), row.abstained);
        let by_score = if mixed {
            b.score.total_cmp(&a.score)
        } else {
            std::cmp::Ordering::Equal
        };
        let by_logit = b.logit.total_cmp(&a.logit);
        group(a).cmp(&group(b)).then(by_score).then(by_logit)
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
    least: Least,
) -> ClassifyTokensRow {
    let encoded = answer.as_ref().map_err(Clone::clone).and_then(|answer| {
        let RowOutput::TokenLogits { values, .. } = &answer.answer.output else {
            return Err(unexpected());
        };
        let EncodedRow { offsets, words, .. } = &answer.encoded;
        let labels = &answer.answered_by(model).labels;
        let spans = quality::label_spans(values, labels, offsets, words);
        Ok((answer, spans))
    });
    let is_low = |span: &quality::LabelledSpan| span.confidence < least.confidence;
    match encoded {
        Ok((answer, spans)) => ClassifyTokensRow {
            info: Some(info(row, answer)),
            escalation: escalation(answer),
            abstained_spans: if least.abstains {
                spans.iter().filter(|span| is_low(span)).count() as u32
            } else {
                0
            },
            spans: spans
                .into_iter()
                .filter(|span| !(least.abstains && is_low(span)))
                .map(|span| Span {
                    low_confidence: is_low(&span),
                    start: characters(text, span.start),
                    end: characters(text, span.end),
                    text: text
                        .get(span.start..span.end)
                        .unwrap_or_default()
                        .to_owned(),
                    label: span.label,
                    confidence: span.confidence,
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

/// Anomalies as the protocol tells them; nothing where there are none.
pub fn anomalies(found: Anomalies) -> Option<ProtoAnomalies> {
    let has = |wanted| found.iter().any(|anomaly| anomaly == wanted);
    (!found.is_empty()).then(|| ProtoAnomalies {
        length: has(Anomaly::Length),
        unknown_tokens: has(Anomaly::UnknownTokens),
        embedding: has(Anomaly::Embedding),
    })
}

fn info(row: usize, answer: &AnsweredRow) -> RowInfo {
    RowInfo {
        row: row as u32,
        tokens: answer.tokens as u32,
        truncated: answer.encoded.truncated,
        batch_rows: answer.answer.batch_rows as u32,
        cached: answer.cached,
        anomalies: anomalies(answer.anomalies),
    }
}

fn escalation(answer: &AnsweredRow) -> Option<Escalation> {
    answer.escalation.as_deref().map(escalated)
}

/// Who answered, as the protocol tells it.
pub fn escalated(escalation: &admission::Escalation) -> Escalation {
    Escalation {
        answered_by: Some(model_info(&escalation.by)),
        escalated_from: escalation
            .from
            .iter()
            .map(|model| model_info(model))
            .collect(),
        failed: escalation.failed,
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
