//! `Explain`: from its request to admission's call, from the shares to words with offsets.

use crate::{
    admission::{CallContext, ExplainBy, ExplainCall, Explained, Explanation},
    api::{
        account::find,
        grpc::Shared,
        proto::ferry::v1::{
            ExplainMethod, ExplainOutput, ExplainRequest, ExplainResponse, TextField, Timing,
            WordShare, explain_request::Explained as ProtoExplained,
        },
        status::map,
    },
    error::RequestError,
    quality::{
        characters_before,
        explain::{DEFAULT_FEATURES, Explainer, Feature},
    },
    repository::ServedModel,
    telemetry::RequestTimes,
    text::RowInput,
};

use super::{calls, rows::model_info};

/// A request that is understood.
pub struct Asked {
    call: ExplainCall,
    method: ExplainMethod,
    /// The query; empty where there is none.
    query: String,
    /// The text that the shares point into.
    text: String,
}

/// Understands a request.
pub fn read(request: ExplainRequest) -> Result<Asked, RequestError> {
    let ExplainRequest {
        options,
        explained,
        method,
        output,
        samples,
        seed,
        replacement,
        max_features,
    } = request;
    let logit = match ExplainOutput::try_from(output) {
        Ok(ExplainOutput::Unspecified | ExplainOutput::Probability) => false,
        Ok(ExplainOutput::Logit) => true,
        Err(_) => {
            let allowed = "a value of ferry.v1.ExplainOutput, 0 to 2";
            return Err(RequestError::invalid("output", output, allowed));
        }
    };
    let (method, by) = match ExplainMethod::try_from(method) {
        Ok(ExplainMethod::Unspecified | ExplainMethod::KernelShap) => {
            let by = ExplainBy::LeavingOut(Explainer::KernelShap);
            (ExplainMethod::KernelShap, by)
        }
        Ok(method @ ExplainMethod::Occlusion) => {
            (method, ExplainBy::LeavingOut(Explainer::Occlusion))
        }
        Ok(method @ ExplainMethod::Lime) => (method, ExplainBy::LeavingOut(Explainer::Lime)),
        Ok(method @ ExplainMethod::IntegratedGradients) => (method, ExplainBy::IntegratedGradients),
        Err(_) => {
            let allowed = "a value of ferry.v1.ExplainMethod, 0 to 4";
            return Err(RequestError::invalid("method", method, allowed));
        }
    };
    if replacement.len() > MAX_REPLACEMENT_BYTES {
        return Err(RequestError::invalid(
            "replacement",
            format_args!("{} bytes", replacement.len()),
            format_args!("at most {MAX_REPLACEMENT_BYTES}"),
        ));
    }
    let (explained, query, text, field) = match explained {
        Some(ProtoExplained::Classify(asked)) => {
            let label = asked.label;
            (
                Explained::Label { label, logit },
                String::new(),
                asked.text,
                "classify.text",
            )
        }
        Some(ProtoExplained::Rerank(asked)) => {
            let query = asked.explain_query;
            let explained = Explained::Score { logit, query };
            (explained, asked.query, asked.document, "rerank.document")
        }
        Some(ProtoExplained::Similarity(asked)) => {
            let reference = asked.reference;
            let explained = Explained::Similarity { reference };
            (explained, String::new(), asked.text, "similarity.text")
        }
        None => {
            let allowed = "one of classify, rerank, similarity";
            return Err(RequestError::invalid("explained", "nothing", allowed));
        }
    };
    if logit && matches!(explained, Explained::Similarity { .. }) {
        let allowed = "PROBABILITY, or nothing: a similarity is a cosine";
        return Err(RequestError::invalid("output", "LOGIT", allowed));
    }
    let row = match explained.task() {
        crate::config::Task::Rerank => RowInput::Pair(query.clone(), text.clone()),
        _ => RowInput::Text(text.clone()),
    };
    let call = calls::call(options, Some(explained.task()), vec![row], field)?;
    Ok(Asked {
        call: ExplainCall {
            call,
            explained,
            by,
            samples: samples as usize,
            seed,
            replacement,
            max_features: match max_features {
                0 => DEFAULT_FEATURES,
                most => most as usize,
            },
        },
        method,
        query,
        text,
    })
}

/// Bytes of what stands for a left-out word.
const MAX_REPLACEMENT_BYTES: usize = 64;

/// Explains.
pub async fn answer(
    shared: &Shared,
    asked: Result<Asked, RequestError>,
    context: Result<CallContext, RequestError>,
) -> Result<ExplainResponse, RequestError> {
    let prepared = asked.and_then(|asked| Ok((asked, context?)));
    let (asked, context) = prepared.inspect_err(|error| {
        shared.metrics.count_unrouted(map(error).outcome);
    })?;
    let received = context.received;
    let (admission, metrics) = (&shared.admission, &shared.metrics);
    admission.wake(&asked.call.call.model, &context).await;
    let (model, mut account) = find(admission, metrics, &asked.call.call, &context)?;
    let (seed, name) = (asked.call.seed, asked.call.by.name());
    let explained = admission.explain(&model, asked.call, context).await;
    let explanation = match explained {
        Ok(explanation) => explanation,
        Err(error) => return Err(account.failed(error)),
    };
    let counted = metrics.explain(&model.name, &model.version, name);
    counted.rows.inc_by(explanation.rows as u64);
    counted.seconds.observe(received.elapsed().as_secs_f64());
    // It took the time of many rows, which says nothing of how fast the version is.
    account.note_unrun(true);
    account.succeeded(&RequestTimes {
        total: received.elapsed(),
        queue: explanation.queue,
        execute: explanation.execute,
        ..RequestTimes::default()
    });
    let total_us = received.elapsed().as_micros() as u64;
    Ok(ExplainResponse {
        seed,
        method: asked.method.into(),
        timing: Some(Timing {
            queue_us: explanation.queue.as_micros() as u64,
            execute_us: explanation.execute.as_micros() as u64,
            total_us,
        }),
        ..encode(&model, &asked.query, &asked.text, explanation)
    })
}

fn encode(
    model: &ServedModel,
    query: &str,
    text: &str,
    explanation: Explanation,
) -> ExplainResponse {
    let Explanation {
        attribution,
        label,
        rows,
        tokens,
        truncated,
        ..
    } = explanation;
    let of_query = explanation
        .query
        .iter()
        .map(|word| (TextField::Query, query, word));
    let of_text = explanation
        .text
        .iter()
        .map(|word| (TextField::Text, text, word));
    let words = of_query.chain(of_text).zip(&attribution.shares);
    ExplainResponse {
        model: Some(model_info(model)),
        words: words
            .map(|((field, text, word), &share)| word_share(field, text, word, share))
            .collect(),
        base_value: attribution.base,
        value: attribution.value,
        additivity_error: attribution.additivity_error,
        exact: attribution.exact,
        label,
        rows: rows as u32,
        tokens: tokens as u32,
        truncated,
        ..ExplainResponse::default()
    }
}

fn word_share(field: TextField, text: &str, word: &Feature, share: f64) -> WordShare {
    let range = word.range.clone();
    WordShare {
        field: field.into(),
        start: characters_before(text, range.start) as u32,
        end: characters_before(text, range.end) as u32,
        text: text.get(range).unwrap_or_default().to_owned(),
        share,
    }
}
