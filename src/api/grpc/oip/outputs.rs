//! From answers to a `ModelInferResponse`: raw little-endian contents, in the order asked for.

use bytes::Bytes;
use serde_json::json;

use super::{
    parameters::{Wanted, cached_parameter},
    tensors::{DataType, TensorSpec, outputs_of, put_bytes},
};
use crate::{
    admission::{AnsweredRow, Escalation},
    api::{
        account::Answered,
        grpc::inference::shorten,
        proto::inference::{
            self as pb, infer_parameter::ParameterChoice, model_infer_response::InferOutputTensor,
        },
    },
    error::RequestError,
    models::RowOutput,
    quality::{self, Classified, drift::Anomaly},
    repository::ServedModel,
};

/// Encodes the answer. Tensors have no place for the error of a single row, so the first one fails
/// the request.
pub fn encode(
    answered: &Answered,
    id: String,
    texts: &[String],
    wanted: &Wanted,
) -> Result<pb::ModelInferResponse, RequestError> {
    let model = &answered.model;
    let rows: Vec<&AnsweredRow> = answered
        .rows
        .iter()
        .map(|row| row.as_ref().map_err(Clone::clone))
        .collect::<Result<_, _>>()?;
    let columns = Columns::of(model, &rows, texts, wanted.dimensions);
    let specs = outputs_of(model);
    let all: Vec<(String, usize)>;
    let names = if wanted.outputs.is_empty() {
        all = specs.iter().map(|spec| (spec.name.to_owned(), 0)).collect();
        &all
    } else {
        &wanted.outputs
    };
    let mut outputs = Vec::with_capacity(names.len());
    let mut contents = Vec::with_capacity(names.len());
    for (name, classes) in names {
        let Some(spec) = specs.iter().find(|spec| spec.name == name) else {
            continue;
        };
        let (datatype, width, raw) = if *classes > 0 {
            columns.top_classes(spec, model, *classes)
        } else {
            columns.tensor(spec)
        };
        outputs.push(InferOutputTensor {
            name: name.clone(),
            datatype: datatype.name().to_owned(),
            shape: vec![rows.len() as i64, width as i64],
            ..InferOutputTensor::default()
        });
        contents.push(Bytes::from(raw));
    }
    let microseconds = |time: std::time::Duration| pb::InferParameter {
        parameter_choice: Some(ParameterChoice::Int64Param(time.as_micros() as i64)),
    };
    let times = [
        ("queue_us", answered.queue),
        ("execute_us", answered.execute),
        ("total_us", answered.received.elapsed()),
    ];
    Ok(pb::ModelInferResponse {
        model_name: model.name.clone(),
        model_version: model.version.clone(),
        id,
        parameters: times
            .into_iter()
            .map(|(name, time)| (name.to_owned(), microseconds(time)))
            .chain(answered.cached().map(cached_parameter))
            .chain(
                model
                    .calibration
                    .as_ref()
                    .map(|_| flag_parameter("calibrated")),
            )
            .chain(escalation_parameters(model, &escalations(&rows)))
            .chain(anomaly_parameters(&rows))
            .collect(),
        outputs,
        raw_output_contents: contents,
    })
}

fn flag_parameter(name: &str) -> (String, pb::InferParameter) {
    let parameter_choice = Some(ParameterChoice::BoolParam(true));
    (name.to_owned(), pb::InferParameter { parameter_choice })
}

fn escalations<'a>(rows: &[&'a AnsweredRow]) -> Vec<Option<&'a Escalation>> {
    rows.iter().map(|row| row.escalation.as_deref()).collect()
}

/// Who answered each row, as `name/version` with commas between, and how many rows were handed on;
/// nothing where all are the model's own.
pub(super) fn escalation_parameters(
    model: &ServedModel,
    rows: &[Option<&Escalation>],
) -> Vec<(String, pb::InferParameter)> {
    let handed_on = rows.iter().flatten().filter(|row| !row.from.is_empty());
    let escalated = handed_on.count();
    if escalated == 0 {
        return Vec::new();
    }
    let names: Vec<String> = rows
        .iter()
        .map(|row| row.map_or(model, |escalation| &escalation.by))
        .map(|by| format!("{}/{}", by.name, by.version))
        .collect();
    let parameter = |name: &str, choice| {
        let parameter_choice = Some(choice);
        (name.to_owned(), pb::InferParameter { parameter_choice })
    };
    vec![
        parameter(
            "escalated_rows",
            ParameterChoice::Int64Param(escalated as i64),
        ),
        parameter("answered_by", ParameterChoice::StringParam(names.join(","))),
    ]
}

/// How many rows are far from what is usual, and each row's ways of being so: rows with commas between, ways
/// with `+`; nothing where none is.
fn anomaly_parameters(rows: &[&AnsweredRow]) -> Vec<(String, pb::InferParameter)> {
    let anomalous = rows.iter().filter(|row| !row.anomalies.is_empty()).count();
    if anomalous == 0 {
        return Vec::new();
    }
    let ways = |row: &&AnsweredRow| {
        let ways: Vec<_> = row.anomalies.iter().map(Anomaly::name).collect();
        ways.join("+")
    };
    let ways: Vec<String> = rows.iter().map(ways).collect();
    let parameter = |name: &str, choice| {
        let parameter_choice = Some(choice);
        (name.to_owned(), pb::InferParameter { parameter_choice })
    };
    vec![
        parameter(
            "anomalous_rows",
            ParameterChoice::Int64Param(anomalous as i64),
        ),
        parameter("anomalies", ParameterChoice::StringParam(ways.join(","))),
    ]
}

/// The answers by what the outputs are made of.
struct Columns<'a> {
    rows: &'a [&'a AnsweredRow],
    /// Embeddings, probabilities or `[score]`, by row.
    values: Vec<Vec<f32>>,
    classified: Vec<Classified>,
    labels: &'a [String],
    entities: Vec<String>,
}

impl<'a> Columns<'a> {
    fn of(
        model: &'a ServedModel,
        rows: &'a [&'a AnsweredRow],
        texts: &[String],
        dimensions: u32,
    ) -> Self {
        let mut columns = Self {
            rows,
            values: Vec::with_capacity(rows.len()),
            classified: Vec::new(),
            labels: &model.labels,
            entities: Vec::new(),
        };
        for (at, row) in rows.iter().enumerate() {
            let by = row.answered_by(model);
            match &row.answer.output {
                RowOutput::Embedding(values) => columns.values.push(shorten(values, dimensions)),
                RowOutput::Logits(logits) if model.task() == crate::config::Task::Rerank => {
                    let logit = logits.first().copied().unwrap_or_default();
                    columns.values.push(vec![by.score(logit), logit]);
                }
                RowOutput::Logits(logits) => {
                    let classified = by.classify(logits);
                    columns.values.push(classified.probabilities.clone());
                    columns.classified.push(classified);
                }
                RowOutput::TokenLogits { values, .. } => {
                    let text = texts.get(at).map_or("", String::as_str);
                    columns.entities.push(entities(by, row, values, text));
                }
            }
        }
        columns
    }

    /// Type, width and raw contents of one output.
    fn tensor(&self, spec: &TensorSpec) -> (DataType, usize, Vec<u8>) {
        let mut raw = Vec::new();
        let mut width = 1;
        match spec.name {
            "EMBEDDING" | "SCORES" => {
                width = self.values.first().map_or(0, Vec::len);
                self.put_floats(&mut raw, |values| values);
            }
            "SCORE" => self.put_floats(&mut raw, |values| &values[..1]),
            "LOGIT" => self.put_floats(&mut raw, |values| &values[1..]),
            "CONFIDENCE" => {
                for row in &self.classified {
                    raw.extend_from_slice(&row.confidence.to_le_bytes());
                }
            }
            "LABEL" => {
                for row in &self.classified {
                    let best = row.ranking.first().and_then(|&best| self.labels.get(best));
                    put_bytes(&mut raw, best.map_or(&[], |label| label.as_bytes()));
                }
            }
            "ENTITIES" => {
                for row in &self.entities {
                    put_bytes(&mut raw, row.as_bytes());
                }
            }
            "TOKEN_COUNT" => {
                for row in self.rows {
                    raw.extend_from_slice(&(row.tokens as i32).to_le_bytes());
                }
            }
            "TRUNCATED" => raw.extend(self.rows.iter().map(|row| u8::from(row.encoded.truncated))),
            other => debug_assert!(false, "no contents for output {other}"),
        }
        (spec.datatype, width, raw)
    }

    /// Triton's classification extension: the best values as `value:index[:label]`.
    fn top_classes(
        &self,
        spec: &TensorSpec,
        model: &ServedModel,
        classes: usize,
    ) -> (DataType, usize, Vec<u8>) {
        let mut raw = Vec::new();
        let mut width = 0;
        for (row, values) in self.values.iter().enumerate() {
            let confidence;
            let values = match spec.name {
                "SCORE" => &values[..1],
                "LOGIT" => &values[1..],
                "CONFIDENCE" => {
                    confidence = [self.classified.get(row).map_or(0.0, |row| row.confidence)];
                    &confidence
                }
                _ => values.as_slice(),
            };
            let mut ranking: Vec<usize> = (0..values.len()).collect();
            ranking.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
            ranking.truncate(classes);
            width = ranking.len();
            for index in ranking {
                let label = match (spec.name, model.labels.get(index)) {
                    ("SCORES", Some(label)) => format!(":{label}"),
                    _ => String::new(),
                };
                let element = format!("{:.6}:{index}{label}", values[index]);
                put_bytes(&mut raw, element.as_bytes());
            }
        }
        (DataType::Bytes, width, raw)
    }

    fn put_floats(&self, raw: &mut Vec<u8>, part: impl Fn(&[f32]) -> &[f32]) {
        for values in &self.values {
            for value in part(values) {
                raw.extend_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// A row's spans as JSON; `start` and `end` count characters.
fn entities(model: &ServedModel, row: &AnsweredRow, logits: &[f32], text: &str) -> String {
    let encoded = &row.encoded;
    let spans = quality::label_spans(logits, &model.labels, &encoded.offsets, &encoded.words);
    let spans: Vec<_> = spans
        .into_iter()
        .map(|span| {
            json!({
                "label": span.label,
                "start": quality::characters_before(text, span.start),
                "end": quality::characters_before(text, span.end),
                "text": text.get(span.start..span.end).unwrap_or_default(),
                "confidence": span.confidence,
            })
        })
        .collect();
    serde_json::Value::from(spans).to_string()
}
