//! One request of a bidirectional stream: each of its rows is sent as soon as it is answered.

use std::sync::Arc;

use super::{
    super::{Shared, duplex::Replies},
    calls,
    rows::{self, Least},
};
use crate::{
    admission::{Call, CallContext, RowResult},
    api::{
        account::{find, slowest},
        proto::ferry::v1::{
            StreamRequest, StreamResponse, Timing, stream_request::Task, stream_response::Answer,
        },
        status::map,
    },
    error::RequestError,
    repository::ServedModel,
};

type EncodeRow = Box<dyn Fn(usize, &RowResult, &ServedModel) -> Answer + Send + Sync>;

/// Answers one request of a stream, row by row.
pub async fn answer_rows(
    shared: Shared,
    request: StreamRequest,
    context: CallContext,
    replies: Replies<StreamResponse>,
) {
    let id = request.id;
    let outcome = match request.task {
        None => Err(refuse(
            &shared,
            RequestError::invalid(
                "task",
                "nothing",
                "one of embed, classify, rerank, classify_tokens",
            ),
        )),
        Some(task) => match understand(task) {
            Ok((call, encode)) => run(&shared, &id, call, context, &encode, &replies).await,
            Err(error) => Err(refuse(&shared, error)),
        },
    };
    if let Err(error) = outcome {
        let refused = StreamResponse {
            id,
            last: true,
            answer: Some(Answer::Error(rows::row_error(&error))),
            ..StreamResponse::default()
        };
        replies.send(refused).await;
    }
}

async fn run(
    shared: &Shared,
    id: &str,
    call: Call,
    context: CallContext,
    encode: &EncodeRow,
    replies: &Replies<StreamResponse>,
) -> Result<(), RequestError> {
    shared.admission.wake(&call.model, &context).await;
    let (model, mut account) = find(&shared.admission, &shared.metrics, &call, &context)?;
    let mut boarded = match shared
        .admission
        .board(Arc::clone(&model), call, context)
        .await
    {
        Ok(boarded) => boarded,
        Err(error) => return Err(account.failed(error)),
    };
    let mut results = Vec::with_capacity(boarded.rows);
    while let Some((row, result)) = boarded.next().await {
        let (queue, execute) = slowest(std::slice::from_ref(&result));
        let answer = StreamResponse {
            id: id.to_owned(),
            last: results.len() + 1 == boarded.rows,
            model: Some(rows::model_info(&model)),
            timing: Some(Timing {
                queue_us: queue.as_micros() as u64,
                execute_us: execute.as_micros() as u64,
                total_us: boarded.received().elapsed().as_micros() as u64,
            }),
            answer: Some(encode(row, &result, &model)),
        };
        results.push(result);
        if !replies.send(answer).await {
            // The reader is gone; the account closes as cancelled.
            return Ok(());
        }
    }
    let (queue, execute) = slowest(&results);
    account.note_rows(&results);
    match results.into_iter().find_map(Result::err) {
        Some(error) => drop(account.failed(error)),
        None => account.answered(&boarded, queue, execute, std::time::Duration::ZERO),
    }
    Ok(())
}

fn understand(task: Task) -> Result<(Call, EncodeRow), RequestError> {
    Ok(match task {
        Task::Embed(request) => {
            let dimensions = request.dimensions;
            (
                calls::embed(request)?,
                Box::new(move |row, result, _| Answer::Embed(rows::embed(row, result, dimensions))),
            )
        }
        Task::Classify(request) => {
            let top_k = request.top_k as usize;
            let least = Least::of(request.min_confidence, request.on_low_confidence.as_ref());
            (
                calls::classify(request)?,
                Box::new(move |row, result, model| {
                    Answer::Classify(rows::classify(row, result, model, top_k, least))
                }),
            )
        }
        Task::Rerank(mut request) => {
            if request.top_n > 0 {
                return Err(RequestError::invalid(
                    "top_n",
                    request.top_n,
                    "0 on a stream: rows are answered before all are ranked",
                ));
            }
            let documents = rows::kept_documents(&mut request);
            let least = Least::of(request.min_confidence, request.on_low_confidence.as_ref());
            (
                calls::rerank(request)?,
                Box::new(move |row, result, model| {
                    Answer::Rerank(rows::rerank(row, result, model, &documents, least))
                }),
            )
        }
        Task::ClassifyTokens(request) => {
            let texts = request.texts.clone();
            let least = Least::of(request.min_confidence, request.on_low_confidence.as_ref());
            (
                calls::classify_tokens(request)?,
                Box::new(move |row, result, model| {
                    Answer::ClassifyTokens(rows::classify_tokens(
                        row,
                        result,
                        model,
                        &texts[row],
                        least,
                    ))
                }),
            )
        }
    })
}

fn refuse(shared: &Shared, error: RequestError) -> RequestError {
    shared.metrics.count_unrouted(map(&error).outcome);
    error
}
