//! From the typed requests to admission's calls.

use crate::{
    admission::{Call, FallBack, WhenUnsure},
    api::proto::ferry::v1::{
        ClassifyRequest, ClassifyTokensRequest, EmbedRequest, LowConfidence, LowConfidenceAction,
        ModelOptions, RerankRequest, TokenIds, TokenizeRequest, Truncation as ProtoTruncation,
    },
    config::{Task, Truncation},
    error::RequestError,
    text::{EncodeOptions, RowInput},
};

pub fn embed(request: EmbedRequest) -> Result<Call, RequestError> {
    let (rows, field) = texts_or_ids(request.texts, request.token_ids)?;
    let mut call = call(request.options, Some(Task::Embed), rows, field)?;
    call.dimensions = request.dimensions as usize;
    Ok(call)
}

pub fn classify(request: ClassifyRequest) -> Result<Call, RequestError> {
    let when_unsure = when_unsure(request.min_confidence, request.on_low_confidence)?;
    let (rows, field) = texts_or_ids(request.texts, request.token_ids)?;
    let call = call(request.options, Some(Task::Classify), rows, field)?;
    Ok(Call {
        when_unsure,
        ..call
    })
}

pub fn rerank(request: RerankRequest) -> Result<Call, RequestError> {
    let when_unsure = when_unsure(request.min_confidence, request.on_low_confidence)?;
    let query = request.query;
    let rows = request
        .documents
        .into_iter()
        .map(|document| RowInput::Pair(query.clone(), document))
        .collect();
    let call = call(request.options, Some(Task::Rerank), rows, "documents")?;
    Ok(Call {
        when_unsure,
        ..call
    })
}

pub fn classify_tokens(request: ClassifyTokensRequest) -> Result<Call, RequestError> {
    let when_unsure = when_unsure(request.min_confidence, request.on_low_confidence)?;
    let rows = request.texts.into_iter().map(RowInput::Text).collect();
    let call = call(request.options, Some(Task::Tokens), rows, "texts")?;
    Ok(Call {
        when_unsure,
        ..call
    })
}

pub fn tokenize(request: TokenizeRequest) -> Result<Call, RequestError> {
    let rows = request.texts.into_iter().map(RowInput::Text).collect();
    call(request.options, None, rows, "texts")
}

/// A call of rows with what all requests may say of the model and the cut.
pub fn call(
    options: Option<ModelOptions>,
    task: Option<Task>,
    rows: Vec<RowInput>,
    field: &'static str,
) -> Result<Call, RequestError> {
    let options = options.unwrap_or_default();
    let truncation = match ProtoTruncation::try_from(options.truncation) {
        Ok(ProtoTruncation::Unspecified) => None,
        Ok(ProtoTruncation::Right) => Some(Truncation::Right),
        Ok(ProtoTruncation::Left) => Some(Truncation::Left),
        Ok(ProtoTruncation::Error) => Some(Truncation::Error),
        Err(_) => {
            return Err(RequestError::invalid(
                "options.truncation",
                options.truncation,
                "a value of ferry.v1.Truncation, 0 to 3",
            ));
        }
    };
    Ok(Call {
        model: options.model,
        version: options.version,
        task,
        rows,
        options: EncodeOptions {
            truncation,
            max_tokens: Some(options.max_tokens as usize).filter(|&limit| limit > 0),
            offsets: false,
        },
        dimensions: 0,
        when_unsure: WhenUnsure::default(),
        keeps_no_answer: false,
        field,
    })
}

fn texts_or_ids(
    texts: Vec<String>,
    token_ids: Vec<TokenIds>,
) -> Result<(Vec<RowInput>, &'static str), RequestError> {
    if !texts.is_empty() && !token_ids.is_empty() {
        return Err(RequestError::invalid(
            "token_ids",
            "both texts and token_ids",
            "one of the two",
        ));
    }
    if token_ids.is_empty() {
        return Ok((texts.into_iter().map(RowInput::Text).collect(), "texts"));
    }
    let rows = token_ids.into_iter().map(|row| RowInput::Tokens(row.ids));
    Ok((rows.collect(), "token_ids"))
}

pub fn when_unsure(least: f32, asked: Option<LowConfidence>) -> Result<WhenUnsure, RequestError> {
    check_confidence(least)?;
    let asked = asked.unwrap_or_default();
    let Ok(action) = LowConfidenceAction::try_from(asked.action) else {
        return Err(RequestError::invalid(
            "on_low_confidence.action",
            asked.action,
            "a value of ferry.v1.LowConfidenceAction, 0 to 3",
        ));
    };
    let names_model = !asked.fallback_model.is_empty() || !asked.fallback_version.is_empty();
    if names_model && action != LowConfidenceAction::FallBack {
        return Err(RequestError::invalid(
            "on_low_confidence.fallback_model",
            "a model",
            "none but with the action FALL_BACK",
        ));
    }
    if asked.fallback_model.is_empty() && !asked.fallback_version.is_empty() {
        return Err(RequestError::invalid(
            "on_low_confidence.fallback_version",
            asked.fallback_version,
            "none without fallback_model",
        ));
    }
    Ok(match action {
        LowConfidenceAction::Unspecified => WhenUnsure::AsManifest,
        LowConfidenceAction::Flag => WhenUnsure::Flag,
        LowConfidenceAction::Abstain if least <= 0.0 => {
            return Err(RequestError::invalid(
                "min_confidence",
                0,
                "more than 0 with the action ABSTAIN",
            ));
        }
        LowConfidenceAction::Abstain => WhenUnsure::Abstain,
        LowConfidenceAction::FallBack => WhenUnsure::FallBack(FallBack {
            model: asked.fallback_model,
            version: asked.fallback_version,
            below: least,
        }),
    })
}

pub fn check_confidence(least: f32) -> Result<(), RequestError> {
    if (0.0..=1.0).contains(&least) {
        return Ok(());
    }
    Err(RequestError::invalid("min_confidence", least, "0 to 1"))
}
