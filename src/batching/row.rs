//! What waits in the queue and what leaves it.

use std::{sync::Arc, time::Instant};

/// Names a row for as long as it is in the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(u64);

impl RowId {
    /// The row numbered `id`.
    pub fn new(id: u64) -> Self {
        Self(id)
    }
}

/// How urgent a row is. A waiting row of a higher level always boards before one of a lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    /// Before everything else.
    pub const HIGH: Self = Self(0);
    /// What a request gets that doesn't ask.
    pub const NORMAL: Self = Self(1);
    /// Fills the space that others leave.
    pub const LOW: Self = Self(2);
    /// The number of levels.
    pub const LEVELS: usize = 3;

    /// The level, 0 being the most urgent.
    pub fn level(self) -> usize {
        usize::from(self.0)
    }
}

/// One sequence that waits to board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<T> {
    /// Its name; no two rows in the queue share one.
    pub id: RowId,
    /// Its length, which is what it takes of a batch's token budget.
    pub tokens: u32,
    /// When it came in.
    pub arrived: Instant,
    /// When its answer is of no more use.
    pub deadline: Option<Instant>,
    /// How urgent it is.
    pub priority: Priority,
    /// Whose it is; inside a level, tenants share the batches evenly by tokens.
    pub tenant: Arc<str>,
    /// What the engine needs to run and answer it.
    pub payload: T,
}

/// Why a batch left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushReason {
    /// Its row or token budget was reached.
    Full,
    /// Its oldest row had waited the longest allowed.
    QueueDelay,
    /// A row would have missed its deadline by waiting on.
    Deadline,
    /// An executor was idle and waiting would not have paid.
    Idle,
    /// The queue is being emptied.
    Drain,
}

/// Rows that leave together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<T> {
    /// In boarding order; never empty.
    pub rows: Vec<Row<T>>,
    /// Sum of their lengths.
    pub tokens: usize,
    /// Why it left.
    pub reason: FlushReason,
}
