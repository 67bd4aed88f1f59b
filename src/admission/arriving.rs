//! Where a request's answers come from: its model's engine, or the cache before it.

use std::time::Instant;

use crate::{
    cache::CachedAnswers,
    engine::{Answers, Departure, RowAnswer, RowWork},
    error::RequestError,
    repository::ServedEncoder,
};

/// The answers of one request, as they come. Dropping it gives up those still out.
#[derive(Debug)]
pub(super) enum Arriving {
    /// Every row is run.
    Run(Answers),
    /// What is known already is not.
    Cached(CachedAnswers),
}

impl Arriving {
    /// Puts rows in line, past the cache where it `keeps_no_answer`.
    pub(super) fn board(
        encoder: &ServedEncoder,
        rows: Vec<(usize, RowWork)>,
        departure: &Departure,
        keeps_no_answer: bool,
    ) -> Result<Self, RequestError> {
        let now = Instant::now();
        match encoder.cache.as_ref().filter(|_| !keeps_no_answer) {
            None => encoder.engine.submit(rows, departure, now).map(Self::Run),
            Some(cache) => cache.board(rows, departure, now).map(Self::Cached),
        }
    }

    /// The next answer with its row's index, and whether the row was not run for it.
    pub(super) async fn next(
        &mut self,
    ) -> Option<(usize, Result<(RowAnswer, bool), RequestError>)> {
        match self {
            Self::Run(answers) => {
                let (row, answer) = answers.next().await?;
                Some((row, answer.map(|answer| (answer, false))))
            }
            Self::Cached(answers) => answers.next().await,
        }
    }
}
