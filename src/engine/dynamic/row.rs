//! A row on its way through the engine, and the way its answer takes back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::messages::CancelHandle;
use crate::{
    batching::Priority,
    error::{RequestError, Stage},
    models::RowOutput,
    telemetry::traces::{RowTrace, TraceLink},
};

/// One row to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowWork {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub type_ids: Vec<u32>,
}

/// What the rows of one request have in common.
#[derive(Debug, Clone)]
pub struct Departure {
    /// When the answer is of no more use.
    pub deadline: Option<Instant>,
    /// Strict between levels.
    pub priority: Priority,
    /// Fair between tenants.
    pub tenant: Arc<str>,
    /// Whose trace tells of it, if it is traced.
    pub trace: Option<TraceLink>,
}

/// One row's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct RowAnswer {
    /// The model's output.
    pub output: RowOutput,
    /// Time waiting to board.
    pub queue: Duration,
    /// Time the batch ran.
    pub execute: Duration,
    /// Rows in the batch.
    pub batch_rows: usize,
    /// Its way through the engine, where its request is traced.
    pub trace: Option<Box<RowTrace>>,
}

/// A row with its way back. Dropping it unanswered answers it: nothing accepted is ever lost.
#[derive(Debug)]
pub struct WorkRow {
    pub(super) work: RowWork,
    pub(super) trace: Option<TraceLink>,
    reply: Option<Reply>,
}

#[derive(Debug)]
struct Reply {
    row: usize,
    answers: mpsc::Sender<(usize, Result<RowAnswer, RequestError>)>,
}

impl WorkRow {
    pub(super) fn answer(mut self, answer: Result<RowAnswer, RequestError>) {
        self.send(answer);
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply
            .as_ref()
            .is_none_or(|reply| reply.answers.is_closed())
    }

    fn send(&mut self, answer: Result<RowAnswer, RequestError>) {
        if let Some(reply) = self.reply.take() {
            // The channel has room for every row of its request; it fails only when the request
            // was dropped.
            let _ = reply.answers.try_send((reply.row, answer));
        }
    }
}

impl Drop for WorkRow {
    fn drop(&mut self) {
        self.send(Err(RequestError::internal(
            "the engine stopped before this row was run",
        )));
    }
}

/// The answers of one request, as they come. Dropping it cancels the rows still waiting.
#[derive(Debug)]
pub struct Answers {
    arriving: mpsc::Receiver<(usize, Result<RowAnswer, RequestError>)>,
    pending: usize,
    cancel: Option<CancelHandle>,
}

impl Answers {
    /// Work rows for `rows` and the receiving end of their answers.
    pub(super) fn channel(
        rows: Vec<(usize, RowWork)>,
        trace: Option<&TraceLink>,
    ) -> (Vec<WorkRow>, Self) {
        let pending = rows.len();
        let (sender, arriving) = mpsc::channel(pending.max(1));
        let rows = rows
            .into_iter()
            .map(|(row, work)| WorkRow {
                work,
                trace: trace.cloned(),
                reply: Some(Reply {
                    row,
                    answers: sender.clone(),
                }),
            })
            .collect();
        let answers = Self {
            arriving,
            pending,
            cancel: None,
        };
        (rows, answers)
    }

    pub(super) fn cancel_with(&mut self, cancel: CancelHandle) {
        self.cancel = Some(cancel);
    }

    /// Rows not answered yet.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// The next answer with its row's index, or `None` when all rows have been answered.
    pub async fn next(&mut self) -> Option<(usize, Result<RowAnswer, RequestError>)> {
        if self.pending == 0 {
            return None;
        }
        let answer = self.arriving.recv().await;
        match answer {
            Some(_) => self.pending -= 1,
            None => self.pending = 0,
        }
        answer
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.pending > 0
            && let Some(cancel) = self.cancel.take()
        {
            self.arriving.close();
            cancel.cancel();
        }
    }
}

/// The error of a row whose deadline passed while it waited.
pub(super) fn expired() -> RequestError {
    RequestError::DeadlineExceeded {
        stage: Stage::Queue,
    }
}
