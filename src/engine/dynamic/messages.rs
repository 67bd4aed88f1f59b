//! What the parts of an engine tell each other.

use std::{sync::Arc, time::Duration};

use crossbeam::channel::Sender;

use super::row::WorkRow;
use crate::{
    batching::{Row, RowId},
    error::RequestError,
    models::{ForwardError, PackedBatch, RowOutput},
};

/// Runs one packed batch: a loaded model, as the engine sees it.
pub type Forward = Arc<dyn Fn(&PackedBatch) -> Result<Vec<RowOutput>, ForwardError> + Send + Sync>;

/// What the async world tells the dispatcher.
#[derive(Debug)]
pub(super) enum Command {
    /// Rows of one request, to board.
    Board(Vec<Row<WorkRow>>),
    /// Rows nobody waits for any more.
    Cancel(Vec<RowId>),
    /// How long a batch that did not pass through the queue took.
    Teach {
        tokens: usize,
        sum_len_squared: u64,
        elapsed: Duration,
    },
}

/// What an executor tells the dispatcher.
#[derive(Debug)]
pub(super) enum Report {
    /// A batch is done.
    Done(Done),
    /// The device under the instance is lost: what its requests are answered. It takes no more batches.
    Lost(RequestError),
    /// The instance hangs and was counted as lost; with the batch that it was given, where that was
    /// not reported done.
    Hung(Option<Done>),
    /// The instance is made anew and takes batches again.
    Back,
}

/// What an executor tells after each batch.
#[derive(Debug)]
pub(super) struct Done {
    /// Rows of the batch as it was given out.
    pub(super) rows: usize,
    pub(super) tokens: usize,
    pub(super) sum_len_squared: u64,
    /// Time the model ran; `None` when it failed or ran nothing, which teaches nothing.
    pub(super) elapsed: Option<Duration>,
}

/// Tells the dispatcher that a request's rows are no longer wanted.
#[derive(Debug)]
pub(super) struct CancelHandle {
    pub(super) commands: Sender<Command>,
    pub(super) first: u64,
    pub(super) count: usize,
}

impl CancelHandle {
    pub(super) fn cancel(self) {
        // When the channel is full the rows stay in line and the executor drops them unrun.
        let _ = self
            .commands
            .try_send(Command::Cancel(ids(self.first, self.count).collect()));
    }
}

/// The ids of consecutive rows, given out by the engine.
pub(super) fn ids(first: u64, count: usize) -> impl Iterator<Item = RowId> {
    (first..first + count as u64).map(RowId::new)
}
