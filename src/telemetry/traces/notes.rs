//! What the parts of the server note of a traced request: instants, no spans yet.

use std::{sync::Arc, time::Instant};

use opentelemetry::trace::SpanContext;

/// Batches that a request's spans tell of, at most.
const MAX_BATCHES: usize = 32;

/// A batch that had traced rows.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNotes {
    /// Its span.
    pub context: SpanContext,
    /// The model that ran it.
    pub model: Arc<str>,
    /// When an executor took it.
    pub started: Instant,
    /// When its rows were packed and the model began.
    pub packed: Instant,
    /// When the model was done.
    pub executed: Instant,
    /// Rows in it.
    pub rows: usize,
    /// Tokens in it.
    pub tokens: usize,
}

/// A traced row's way through the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct RowTrace {
    /// When it came to wait.
    pub arrived: Instant,
    /// The batch that it boarded.
    pub batch: Arc<BatchNotes>,
}

/// A traced sequence's way through the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// When it came to wait.
    pub arrived: Instant,
    /// When the first step with a part of it began; `None` where nothing was run for it.
    pub started: Option<Instant>,
    /// When its reader had its first token.
    pub first_token: Option<Instant>,
    /// When its reader had its last.
    pub last_token: Option<Instant>,
    /// Tokens that came.
    pub tokens: u32,
    /// Tokens of the prompt that were found in the KV cache.
    pub cached_tokens: u32,
    /// When some of the tokens came, with the number of each.
    pub events: Vec<(u32, Instant)>,
    /// Each so many tokens there is an event.
    every: u32,
    max_events: usize,
}

impl Sequence {
    /// A sequence that came to wait at `arrived`, of whose tokens no more than `max_events` are noted
    /// one by one.
    pub fn new(arrived: Instant, max_events: usize) -> Self {
        Self {
            arrived,
            started: None,
            first_token: None,
            last_token: None,
            tokens: 0,
            cached_tokens: 0,
            events: Vec::new(),
            every: 1,
            max_events,
        }
    }

    /// Notes a token.
    pub fn note_token(&mut self, now: Instant) {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        let number = self.tokens;
        self.tokens += 1;
        if self.max_events == 0 || !number.is_multiple_of(self.every) {
            return;
        }
        if self.events.len() == self.max_events {
            // Every second one goes, so that the rest are spread over all of it.
            self.every = self.every.saturating_mul(2);
            let every = self.every;
            self.events
                .retain(|(number, _)| number.is_multiple_of(every));
            if !number.is_multiple_of(every) {
                return;
            }
        }
        self.events.push((number, now));
    }
}

/// Where a request's time went.
#[derive(Debug, Clone, PartialEq)]
pub enum Stages {
    /// It got no further than admission.
    None,
    /// Its rows were run.
    Rows {
        /// When its texts began to be tokenized, and when that was done.
        tokenize: (Instant, Instant),
        /// Rows of the request.
        rows: usize,
        /// Whether none of them was run.
        cached: bool,
        /// The batches that its rows boarded, the first of them first.
        batches: Vec<RowTrace>,
    },
    /// It was generated.
    Sequences {
        /// When its prompt began to be tokenized, and when that was done.
        tokenize: (Instant, Instant),
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Its continuations.
        sequences: Vec<Sequence>,
    },
}

impl Stages {
    /// The batches of a request's rows, each once, in the order in which they ran.
    pub fn batches_of<'a>(rows: impl Iterator<Item = &'a RowTrace>) -> Vec<RowTrace> {
        let mut batches: Vec<RowTrace> = Vec::new();
        for row in rows {
            let is_known = |known: &RowTrace| Arc::ptr_eq(&known.batch, &row.batch);
            if batches.len() < MAX_BATCHES && !batches.iter().any(is_known) {
                batches.push(row.clone());
            }
        }
        batches.sort_by_key(|row| row.batch.started);
        batches
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// The model that answered, or was to.
    pub model: String,
    /// Its version.
    pub version: String,
    /// Whose request it was.
    pub tenant: Arc<str>,
    /// Where its time went.
    pub stages: Stages,
    /// When the answer was there, as the message to be sent.
    pub answered: Instant,
    /// The code of its failure, and what went wrong.
    pub error: Option<(&'static str, String)>,
}
