//! Sends the requests of a log, at their own pace or one after the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::Semaphore;

use super::read::Request;
use crate::{
    cli::{
        Failure,
        compare::{
            client::{Client, RowAnswer},
            inputs::Row,
        },
    },
    config::Task,
};

/// Requests that are out at a time, at most: with more the client measures itself.
const MAX_OUT: usize = 512;

/// When requests go out.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// When they did then, so many times faster.
    Open(f64),
    /// So many at a time, each when one before it is answered.
    Closed(usize),
}

/// What came of them.
#[derive(Debug)]
pub struct Ran {
    /// What each was answered, and how long that took; `None` of those that the server refused.
    pub answers: Vec<Option<(Vec<RowAnswer>, Duration)>>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// How late the latest request went out.
    pub behind: Duration,
}

/// Sends all requests.
///
/// # Errors
/// When the server refuses the first: the others will fare no better.
pub async fn run(
    client: &Client,
    task: Task,
    requests: &[Request],
    pace: Pace,
) -> Result<Ran, Failure> {
    let began = Instant::now();
    let mut answers: Vec<_> = requests.iter().map(|_| None).collect();
    let (first_error, behind) = match pace {
        Pace::Open(speed) => open(client, task, requests, speed, &mut answers).await,
        Pace::Closed(clients) => {
            let error = closed(client, task, requests, clients, &mut answers).await;
            (error, Duration::ZERO)
        }
    };
    if let Some(error) = first_error.filter(|_| answers.iter().all(Option::is_none)) {
        return Err(error);
    }
    Ok(Ran {
        answers,
        elapsed: began.elapsed(),
        behind,
    })
}

type Answers = [Option<(Vec<RowAnswer>, Duration)>];

async fn open(
    client: &Client,
    task: Task,
    requests: &[Request],
    speed: f64,
    answers: &mut Answers,
) -> (Option<Failure>, Duration) {
    let began = Instant::now();
    let first = requests.first().map_or(0.0, |request| request.at_ms);
    let room = Arc::new(Semaphore::new(MAX_OUT));
    let sent = requests.iter().enumerate().map(|(at, request)| {
        let room = Arc::clone(&room);
        let after = ((request.at_ms - first) / 1e3 / speed).clamp(0.0, 1e9);
        async move {
            let due = began + Duration::from_secs_f64(after);
            tokio::time::sleep_until(due.into()).await;
            let permit = room.acquire().await;
            let late = due.elapsed();
            let answer = ask(client, task, request).await;
            drop(permit);
            (at, answer, late)
        }
    });
    let mut running: FuturesUnordered<_> = sent.collect();
    let (mut error, mut behind) = (None, Duration::ZERO);
    while let Some((at, answer, late)) = running.next().await {
        behind = behind.max(late);
        match answer {
            Ok(answer) => answers[at] = Some(answer),
            Err(failure) => error = error.or(Some(failure)),
        }
    }
    (error, behind)
}

async fn closed(
    client: &Client,
    task: Task,
    requests: &[Request],
    clients: usize,
    answers: &mut Answers,
) -> Option<Failure> {
    let next = AtomicUsize::new(0);
    let each = (0..clients).map(|_| async {
        let mut mine = Vec::new();
        loop {
            let at = next.fetch_add(1, Relaxed);
            let Some(request) = requests.get(at) else {
                return mine;
            };
            mine.push((at, ask(client, task, request).await));
        }
    });
    let mut error = None;
    for (at, answer) in futures_util::future::join_all(each)
        .await
        .into_iter()
        .flatten()
    {
        match answer {
            Ok(answer) => answers[at] = Some(answer),
            Err(failure) => error = error.or(Some(failure)),
        }
    }
    error
}

async fn ask(
    client: &Client,
    task: Task,
    request: &Request,
) -> Result<(Vec<RowAnswer>, Duration), Failure> {
    let rows: Vec<&Row> = request.inputs.iter().map(|input| &input.row).collect();
    let sent = Instant::now();
    let answers = client.ask(task, &rows, request.max_tokens).await?;
    Ok((answers, sent.elapsed()))
}
