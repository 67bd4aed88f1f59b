//! The copy of a request for the request log: taken as it comes, completed as it is answered.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::{
    admission::{Admission, Call, CallContext, GenerateCall, Piece, Prompt, RowResult},
    config::{Task, request_log::Keep},
    models::RowOutput,
    quality::{self, characters_before},
    repository::ServedModel,
    telemetry::{
        RequestTimes,
        request_log::{
            Class, Generated, Input, Line, Message, Output, RequestLog, Sampling, Span, Times,
        },
    },
    text::RowInput,
};

/// The copy of a request that is under way.
#[derive(Debug)]
pub struct Copied {
    log: RequestLog,
    received: Instant,
    line: Line,
}

impl Copied {
    /// Copies a call, if its turn has come.
    pub fn of_call(
        admission: &Admission,
        model: &ServedModel,
        call: &Call,
        context: &CallContext,
    ) -> Option<Box<Self>> {
        let log = admission.request_log();
        log.takes()
            .then(|| Self::begin(log, model, context, input_of(&call.rows), None))
    }

    /// Copies a call to generate, if its turn has come.
    pub fn of_generation(
        admission: &Admission,
        model: &ServedModel,
        call: &GenerateCall,
        context: &CallContext,
    ) -> Option<Box<Self>> {
        let log = admission.request_log();
        log.takes().then(|| {
            let input = match &call.prompt {
                Prompt::Text(text) => Input::Texts(vec![text.clone()]),
                Prompt::Tokens(ids) => Input::Tokens(vec![ids.clone()]),
                Prompt::Chat { messages, .. } => {
                    let messages = messages.iter().map(|message| Message {
                        role: message.role.clone(),
                        content: message.content.clone(),
                    });
                    Input::Messages(messages.collect())
                }
            };
            let sampling = Sampling {
                max_tokens: call.max_tokens,
                temperature: call.sampling.temperature,
                n: call.continuations,
            };
            Self::begin(log, model, context, input, Some(sampling))
        })
    }

    fn begin(
        log: &RequestLog,
        model: &ServedModel,
        context: &CallContext,
        input: Input,
        sampling: Option<Sampling>,
    ) -> Box<Self> {
        let now = SystemTime::now().checked_sub(context.received.elapsed());
        let since_1970 = now.and_then(|now| now.duration_since(UNIX_EPOCH).ok());
        Box::new(Self {
            log: log.clone(),
            received: context.received,
            line: Line {
                time_ms: since_1970.unwrap_or_default().as_secs_f64() * 1e3,
                trace_id: context.trace.as_ref().map(|trace| trace.id().to_string()),
                endpoint: context.endpoint.to_owned(),
                tenant: context.tenant.to_string(),
                task: model.task().to_string(),
                model: model.name.clone(),
                version: model.version.clone(),
                code: String::new(),
                error: None,
                cached: false,
                confidence: None,
                input_tokens: 0,
                output_tokens: 0,
                times_us: Times::default(),
                inputs: Keep::Full,
                input,
                sampling,
                outputs: Keep::Full,
                output: Output::Omitted {},
            },
        })
    }

    /// Copies what its rows were answered.
    pub fn note_rows(&mut self, model: &ServedModel, rows: &[RowResult]) {
        let line = &mut self.line;
        line.input_tokens = rows.iter().flatten().map(|row| row.tokens as u64).sum();
        let outputs = || rows.iter().map(|row| row.as_ref().ok());
        let first = rows.iter().flatten().next();
        line.output = match first.map(|row| &row.answer.output) {
            None => Output::Omitted {},
            Some(RowOutput::Embedding(_)) => Output::Vectors(
                outputs()
                    .map(|row| match &row?.answer.output {
                        RowOutput::Embedding(values) => Some(values.clone()),
                        _ => None,
                    })
                    .collect(),
            ),
            Some(RowOutput::Logits(_)) if model.task() == Task::Rerank => Output::Scores(
                outputs()
                    .map(|row| match &row?.answer.output {
                        RowOutput::Logits(values) => {
                            values.first().map(|&logit| quality::sigmoid(logit))
                        }
                        _ => None,
                    })
                    .collect(),
            ),
            Some(RowOutput::Logits(_)) => {
                let mut least = f32::INFINITY;
                let classes = outputs()
                    .map(|row| {
                        let RowOutput::Logits(logits) = &row?.answer.output else {
                            return None;
                        };
                        let classified = quality::classify(logits, model.activation);
                        least = least.min(classified.confidence);
                        let class = |&label: &usize| {
                            let name = model.labels.get(label).cloned().unwrap_or_default();
                            Class(name, classified.probabilities[label])
                        };
                        Some(classified.ranking.iter().map(class).collect())
                    })
                    .collect();
                line.confidence = Some(least);
                Output::Classes(classes)
            }
            Some(RowOutput::TokenLogits { .. }) => {
                let texts = match &line.input {
                    Input::Texts(texts) => texts.as_slice(),
                    _ => &[],
                };
                let spans = outputs().enumerate().map(|(row, answered)| {
                    let answered = answered?;
                    let RowOutput::TokenLogits { values, .. } = &answered.answer.output else {
                        return None;
                    };
                    let encoded = &answered.encoded;
                    let (offsets, words) = (&encoded.offsets, &encoded.words);
                    let text = texts.get(row).map_or("", String::as_str);
                    let spans = quality::label_spans(values, &model.labels, offsets, words);
                    let span = |span: quality::LabelledSpan| Span {
                        start: characters_before(text, span.start),
                        end: characters_before(text, span.end),
                        label: span.label,
                        confidence: span.confidence,
                    };
                    Some(spans.into_iter().map(span).collect())
                });
                Output::Spans(spans.collect())
            }
        };
    }

    /// Copies a piece of what is generated.
    pub fn note_piece(&mut self, piece: &Piece) {
        if piece.is_prompt {
            return;
        }
        let line = &mut self.line;
        if !matches!(line.output, Output::Generated(_)) {
            line.output = Output::Generated(Vec::new());
        }
        let Output::Generated(texts) = &mut line.output else {
            return;
        };
        let index = piece.index as usize;
        if texts.len() <= index {
            texts.resize_with(index + 1, Generated::default);
        }
        let text = &mut texts[index];
        text.text.push_str(&piece.text);
        text.tokens
            .extend(piece.tokens.iter().map(|token| token.id));
        if let Some(finish) = &piece.finish {
            text.stopped = finish.ending.is_stop();
            let least = line.confidence.unwrap_or(f32::INFINITY);
            line.confidence = Some(least.min(finish.confidence));
        }
    }

    /// Completes it with its answer's times.
    pub fn answered(mut self, times: &RequestTimes, cached: bool, tokens: (u64, u64)) {
        let micros = |time: Duration| time.as_micros() as u64;
        self.line.times_us = Times {
            total: micros(times.total),
            tokenize: micros(times.input),
            queue: micros(times.queue),
            execute: micros(times.execute),
            postprocess: micros(times.output),
        };
        self.line.cached = cached;
        (self.line.input_tokens, self.line.output_tokens) = tokens;
        "OK".clone_into(&mut self.line.code);
        self.log.write(self.line);
    }

    /// Completes it with its failure.
    pub fn failed(mut self, code: &str, error: &str) {
        self.line.times_us.total = self.received.elapsed().as_micros() as u64;
        code.clone_into(&mut self.line.code);
        self.line.error = Some(error.to_owned());
        self.log.write(self.line);
    }
}

fn input_of(rows: &[RowInput]) -> Input {
    match rows.first() {
        Some(RowInput::Pair(..)) => Input::Pairs(
            rows.iter()
                .filter_map(|row| match row {
                    RowInput::Pair(query, document) => Some((query.clone(), document.clone())),
                    _ => None,
                })
                .collect(),
        ),
        Some(RowInput::Tokens(_)) => Input::Tokens(
            rows.iter()
                .filter_map(|row| match row {
                    RowInput::Tokens(ids) => Some(ids.clone()),
                    _ => None,
                })
                .collect(),
        ),
        _ => Input::Texts(
            rows.iter()
                .filter_map(|row| match row {
                    RowInput::Text(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
        ),
    }
}
