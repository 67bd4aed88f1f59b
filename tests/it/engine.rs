//! The engine with models that misbehave: a row at fault fails alone, and nothing is lost.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ferry::{
    batching::{BatchPolicy, Priority},
    engine::{Departure, Engine, EngineOptions, Forward, RowWork},
    error::{RequestError, Stage},
    models::{PackedBatch, RowOutput},
    telemetry::{Metrics, ModelStatistics},
};

/// Token ids with which a row makes the stand-in model misbehave.
const PANICS: u32 = 666;
const NOT_A_NUMBER: u32 = 667;

/// Each row's embedding is its first token; some tokens make the whole batch fail.
fn echo(batch: &PackedBatch) -> Vec<RowOutput> {
    assert!(!batch.tokens().contains(&PANICS), "this row was poisoned");
    let starts = batch.cu_seqlens();
    (0..batch.rows())
        .map(|row| {
            let token = batch.tokens()[starts[row] as usize];
            let value = if token == NOT_A_NUMBER {
                f32::NAN
            } else {
                token as f32
            };
            RowOutput::Embedding(vec![value])
        })
        .collect()
}

fn engine(policy: BatchPolicy, instances: usize, forward: &Forward) -> Engine {
    let options = EngineOptions {
        name: "echo".to_owned(),
        metrics: Metrics::new().model("echo", "1"),
        statistics: Arc::new(ModelStatistics::new(policy.max_rows)),
        policy,
        instances,
    };
    Engine::start(options, forward).unwrap()
}

fn rows(tokens: impl IntoIterator<Item = u32>) -> Vec<(usize, RowWork)> {
    let row = |token| RowWork {
        ids: vec![token],
        type_ids: vec![0],
    };
    tokens.into_iter().map(row).enumerate().collect()
}

fn departure(deadline: Option<Instant>) -> Departure {
    Departure {
        deadline,
        priority: Priority::NORMAL,
        tenant: Arc::from(""),
        trace: None,
    }
}

async fn answers(engine: &Engine, tokens: Vec<u32>) -> Vec<Result<f32, RequestError>> {
    let count = tokens.len();
    let mut pending = engine
        .submit(rows(tokens), &departure(None), Instant::now())
        .unwrap();
    let mut found: Vec<Option<Result<f32, RequestError>>> = vec![None; count];
    while let Some((row, answer)) = pending.next().await {
        let value = answer.map(|answer| match answer.output {
            RowOutput::Embedding(values) => values[0],
            other => panic!("{other:?}"),
        });
        assert!(
            found[row].replace(value).is_none(),
            "row {row} answered twice"
        );
    }
    found.into_iter().map(Option::unwrap).collect()
}

#[tokio::test]
async fn a_row_that_makes_the_model_panic_fails_alone() {
    let forward: Forward = Arc::new(|batch| Ok(echo(batch)));
    let engine = engine(BatchPolicy::default(), 1, &forward);
    let found = answers(&engine, vec![1, PANICS, 3]).await;
    assert_eq!((&found[0], &found[2]), (&Ok(1.0), &Ok(3.0)));
    let error = found[1].clone().unwrap_err().to_string();
    assert!(error.contains("this row was poisoned"), "{error}");
    assert_eq!(
        answers(&engine, vec![5]).await,
        [Ok(5.0)],
        "the instance lives"
    );
}

#[tokio::test]
async fn a_row_whose_output_is_not_a_number_fails_alone() {
    let forward: Forward = Arc::new(|batch| Ok(echo(batch)));
    let engine = engine(BatchPolicy::default(), 1, &forward);
    let found = answers(&engine, vec![1, NOT_A_NUMBER]).await;
    assert_eq!(found[0], Ok(1.0));
    assert!(found[1].clone().unwrap_err().to_string().contains("NaN"));
}

#[tokio::test]
async fn a_request_larger_than_a_batch_is_split_and_rejoined() {
    let largest = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&largest);
    let forward: Forward = Arc::new(move |batch| {
        seen.fetch_max(batch.rows(), Ordering::Relaxed);
        Ok(echo(batch))
    });
    let policy = BatchPolicy {
        max_rows: 8,
        ..BatchPolicy::default()
    };
    let engine = engine(policy, 3, &forward);
    let found = answers(&engine, (0..100).collect()).await;
    let expected: Vec<_> = (0..100_u8).map(|token| Ok(f32::from(token))).collect();
    assert_eq!(found, expected);
    assert_eq!(largest.load(Ordering::Relaxed), 8);
}

/// A model that waits until it is let go, and counts the rows it ran.
fn held() -> (Forward, Arc<AtomicBool>, Arc<Mutex<Vec<u32>>>) {
    let go = Arc::new(AtomicBool::new(false));
    let ran = Arc::new(Mutex::new(Vec::new()));
    let (gate, log) = (Arc::clone(&go), Arc::clone(&ran));
    let forward: Forward = Arc::new(move |batch| {
        log.lock().unwrap().extend_from_slice(batch.tokens());
        while !gate.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        Ok(echo(batch))
    });
    (forward, go, ran)
}

async fn until_running(ran: &Mutex<Vec<u32>>) {
    while ran.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_row_whose_deadline_passes_while_it_waits_is_never_run() {
    let (forward, go, ran) = held();
    let engine = engine(BatchPolicy::default(), 1, &forward);
    let now = Instant::now();
    let mut first = engine.submit(rows([1]), &departure(None), now).unwrap();
    until_running(&ran).await;
    let soon = Instant::now() + Duration::from_millis(20);
    let mut late = engine
        .submit(rows([2]), &departure(Some(soon)), Instant::now())
        .unwrap();
    let stage = Stage::Queue;
    let expected = Err(RequestError::DeadlineExceeded { stage });
    assert_eq!(late.next().await, Some((0, expected)));
    go.store(true, Ordering::Release);
    assert!(first.next().await.unwrap().1.is_ok());
    assert_eq!(*ran.lock().unwrap(), [1]);
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_the_queue() {
    let (forward, go, ran) = held();
    let engine = engine(BatchPolicy::default(), 1, &forward);
    let mut first = engine
        .submit(rows([1]), &departure(None), Instant::now())
        .unwrap();
    until_running(&ran).await;
    let dropped = engine
        .submit(rows([2, 3, 4]), &departure(None), Instant::now())
        .unwrap();
    assert_eq!(engine.waiting_rows(), 3);
    drop(dropped);
    while engine.waiting_rows() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    go.store(true, Ordering::Release);
    assert!(first.next().await.unwrap().1.is_ok());
    assert_eq!(*ran.lock().unwrap(), [1]);
}

#[tokio::test]
async fn rows_beyond_the_bound_are_refused_at_once_with_a_hint() {
    let (forward, go, ran) = held();
    let policy = BatchPolicy {
        max_waiting_rows: 4,
        ..BatchPolicy::default()
    };
    let engine = engine(policy, 1, &forward);
    let submit = |tokens: &[u32]| {
        engine.submit(
            rows(tokens.iter().copied()),
            &departure(None),
            Instant::now(),
        )
    };
    let mut running = submit(&[1]).unwrap();
    until_running(&ran).await;
    let mut waiting = submit(&[2, 3, 4]).unwrap();
    let refused = submit(&[5, 6]).unwrap_err();
    assert!(matches!(refused, RequestError::Overloaded { .. }));
    assert!(refused.retry_after() >= Some(Duration::from_millis(1)));
    let mut fits = submit(&[7]).unwrap();
    go.store(true, Ordering::Release);
    for pending in [&mut running, &mut waiting, &mut fits] {
        while let Some((_, answer)) = pending.next().await {
            answer.unwrap();
        }
    }
}

#[tokio::test]
async fn a_request_that_can_not_make_its_deadline_is_refused_at_the_door() {
    let forward: Forward = Arc::new(|batch| Ok(echo(batch)));
    let engine = engine(BatchPolicy::default(), 1, &forward);
    // A batch takes a second, the engine is told.
    for _ in 0..20 {
        engine.teach(1, 1, Duration::from_secs(1));
    }
    let refused = loop {
        let now = Instant::now();
        let soon = Some(now + Duration::from_millis(300));
        match engine.submit(rows([1]), &departure(soon), now) {
            // The dispatcher has not heard it yet, nor of the rows that were given up.
            Ok(answers) => drop(answers),
            Err(RequestError::Overloaded { .. }) => {}
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let RequestError::DeadlineUnreachable { needed, left, .. } = refused else {
        panic!("{refused}");
    };
    assert!(needed > Duration::from_millis(500) && left <= Duration::from_millis(300));
    assert!(refused.retry_after() > Some(Duration::from_millis(100)));
    let patient = Some(Instant::now() + Duration::from_secs(100));
    assert!(
        engine
            .submit(rows([1]), &departure(patient), Instant::now())
            .is_ok()
    );
}

#[tokio::test]
async fn a_row_passes_those_of_low_priority_that_wait() {
    let (forward, go, ran) = held();
    let policy = BatchPolicy {
        max_rows: 1,
        ..BatchPolicy::default()
    };
    let engine = engine(policy, 1, &forward);
    let low = Departure {
        priority: Priority::LOW,
        ..departure(None)
    };
    let mut waiting = engine.submit(rows(1..50), &low, Instant::now()).unwrap();
    until_running(&ran).await;
    let mut passes = engine
        .submit(rows([77]), &departure(None), Instant::now())
        .unwrap();
    go.store(true, Ordering::Release);
    assert!(passes.next().await.unwrap().1.is_ok());
    while let Some((_, answer)) = waiting.next().await {
        answer.unwrap();
    }
    let order = ran.lock().unwrap();
    let place = order.iter().position(|&token| token == 77).unwrap();
    // One ran, and one was on its way to run next.
    assert!(place <= 3, "{order:?}");
}

#[tokio::test]
async fn what_waits_is_run_when_the_engine_is_dropped() {
    let (forward, go, ran) = held();
    let engine = engine(BatchPolicy::default(), 1, &forward);
    let mut first = engine
        .submit(rows([1]), &departure(None), Instant::now())
        .unwrap();
    until_running(&ran).await;
    let mut second = engine
        .submit(rows([2, 3]), &departure(None), Instant::now())
        .unwrap();
    drop(engine);
    go.store(true, Ordering::Release);
    assert!(first.next().await.unwrap().1.is_ok());
    assert!(second.next().await.unwrap().1.is_ok());
    assert!(second.next().await.unwrap().1.is_ok());
    assert_eq!(second.next().await, None);
}
