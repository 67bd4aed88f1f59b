//! The cache before an engine whose model waits to be let on: equal rows under way run once, and no
//! row is worse off for having waited with another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use ferry::{
    batching::{BatchPolicy, Priority},
    cache::{CacheOptions, CachedAnswers, RowCache},
    engine::{Departure, Engine, EngineOptions, Forward, RowWork},
    error::RequestError,
    models::{PackedBatch, RowOutput},
    telemetry::{Metrics, ModelStatistics},
};

const PANICS: u32 = 666;
/// A row that keeps the executor busy until it is let on.
const BLOCKS: u32 = 1;

/// A cache before a model that answers a row with its first token.
struct Stage {
    cache: Arc<RowCache>,
    /// How often each token was run.
    runs: Arc<Mutex<HashMap<u32, usize>>>,
    let_on: mpsc::Sender<()>,
}

impl Stage {
    fn new() -> Self {
        Self::with(8192, 8192)
    }

    fn with(max_waiting_rows: usize, max_followers: usize) -> Self {
        let runs = Arc::<Mutex<HashMap<u32, usize>>>::default();
        let (let_on, gate) = mpsc::channel();
        let (seen, gate) = (Arc::clone(&runs), Mutex::new(gate));
        let forward: Forward = Arc::new(move |batch: &PackedBatch| {
            let starts = batch.cu_seqlens();
            let tokens: Vec<u32> = (0..batch.rows())
                .map(|row| batch.tokens()[starts[row] as usize])
                .collect();
            for &token in &tokens {
                *seen.lock().unwrap().entry(token).or_default() += 1;
            }
            if tokens.contains(&BLOCKS) {
                let _ = gate.lock().unwrap().recv();
            }
            assert!(!tokens.contains(&PANICS), "this row was poisoned");
            let embed = |token| RowOutput::Embedding(vec![token as f32]);
            Ok(tokens.into_iter().map(embed).collect())
        });
        let policy = BatchPolicy {
            max_rows: 8,
            max_tokens: 64,
            max_queue_delay: Duration::ZERO,
            max_waiting_rows,
            eager: true,
        };
        let metrics = Metrics::new();
        let statistics = Arc::new(ModelStatistics::new(policy.max_rows));
        let options = EngineOptions {
            name: "gated".to_owned(),
            metrics: metrics.model("gated", "1"),
            statistics: Arc::clone(&statistics),
            policy,
            instances: 1,
        };
        let engine = Arc::new(Engine::start(options, &forward).unwrap());
        let options = CacheOptions {
            max_bytes: 1 << 20,
            time_to_live: None,
            max_followers,
            metrics: metrics.cache("gated", "1"),
            statistics,
        };
        Self {
            cache: Arc::new(RowCache::new(engine, options)),
            runs,
            let_on,
        }
    }

    /// Keeps the executor busy until [`Stage::let_on`].
    async fn block(&self) -> CachedAnswers {
        let blocker = self.board(&[BLOCKS], &departure());
        while self.count(BLOCKS) == 0 {
            tokio::task::yield_now().await;
        }
        blocker
    }

    fn let_on(&self) {
        self.let_on.send(()).unwrap();
    }

    fn board(&self, tokens: &[u32], departure: &Departure) -> CachedAnswers {
        self.try_board(tokens, departure).unwrap()
    }

    fn try_board(
        &self,
        tokens: &[u32],
        departure: &Departure,
    ) -> Result<CachedAnswers, RequestError> {
        let row = |&token| RowWork {
            ids: vec![token],
            type_ids: vec![0],
        };
        let rows = tokens.iter().map(row).enumerate().collect();
        self.cache.board(rows, departure, Instant::now())
    }

    fn count(&self, token: u32) -> usize {
        self.runs.lock().unwrap().get(&token).copied().unwrap_or(0)
    }

    /// Waits until no run is under way.
    async fn settled(&self) {
        while self.cache.runs() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

fn departure() -> Departure {
    Departure {
        deadline: None,
        priority: Priority::NORMAL,
        tenant: Arc::from(""),
        trace: None,
    }
}

fn before(deadline: Instant) -> Departure {
    Departure {
        deadline: Some(deadline),
        ..departure()
    }
}

fn soon(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

/// The only row's value, and whether it was not run for it.
async fn only(answers: &mut CachedAnswers) -> Result<(f32, bool), RequestError> {
    let (row, answer) = answers.next().await.unwrap();
    assert_eq!(row, 0);
    answer.map(|(answer, cached)| match answer.output {
        RowOutput::Embedding(values) => (values[0], cached),
        other => panic!("{other:?}"),
    })
}

#[tokio::test]
async fn equal_rows_under_way_run_once_and_then_are_known() {
    let stage = Stage::new();
    let _blocker = stage.block().await;
    let mut first = stage.board(&[5], &departure());
    let mut second = stage.board(&[5], &departure());
    let mut within = stage.board(&[6, 5, 6], &departure());
    assert_eq!(stage.cache.runs(), 3);
    stage.let_on();
    assert_eq!(only(&mut first).await, Ok((5.0, false)));
    assert_eq!(only(&mut second).await, Ok((5.0, true)));
    let mut rows = HashMap::new();
    while let Some((row, answer)) = within.next().await {
        rows.insert(row, answer.unwrap().1);
    }
    assert_eq!(rows, HashMap::from([(0, false), (1, true), (2, true)]));
    assert_eq!(
        only(&mut stage.board(&[5], &departure())).await,
        Ok((5.0, true))
    );
    assert_eq!((stage.count(5), stage.count(6)), (1, 1));
    stage.settled().await;
}

#[tokio::test]
async fn a_leader_that_goes_away_takes_nobody_with_it() {
    let stage = Stage::new();
    let _blocker = stage.block().await;
    let leader = stage.board(&[5], &departure());
    let mut follower = stage.board(&[5], &departure());
    drop(leader);
    stage.let_on();
    assert_eq!(only(&mut follower).await, Ok((5.0, true)));
    assert_eq!(stage.count(5), 1);
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_run() {
    let stage = Stage::new();
    let mut blocker = stage.block().await;
    let leader = stage.board(&[5], &departure());
    let follower = stage.board(&[5], &departure());
    drop(leader);
    drop(follower);
    while stage.cache.runs() > 1 {
        tokio::task::yield_now().await;
    }
    stage.let_on();
    assert_eq!(only(&mut blocker).await, Ok((1.0, false)));
    // Another row of the same line comes after those that were given up.
    assert_eq!(
        only(&mut stage.board(&[6], &departure())).await,
        Ok((6.0, false))
    );
    assert_eq!(stage.count(5), 0);
}

#[tokio::test]
async fn a_leader_that_is_too_late_leaves_its_run_to_those_with_more_time() {
    let stage = Stage::new();
    let _blocker = stage.block().await;
    let (near, far) = (soon(30), soon(600_000));
    let mut leader = stage.board(&[5], &before(near));
    let mut as_late = stage.board(&[5], &before(near));
    let mut patient = stage.board(&[5], &before(far));
    let mut without = stage.board(&[5], &departure());
    for late in [&mut leader, &mut as_late] {
        let error = only(late).await.unwrap_err();
        assert!(
            matches!(error, RequestError::DeadlineExceeded { .. }),
            "{error}"
        );
    }
    stage.let_on();
    assert_eq!(only(&mut patient).await, Ok((5.0, true)));
    assert_eq!(only(&mut without).await, Ok((5.0, true)));
    assert_eq!(stage.count(5), 1);
}

#[tokio::test]
async fn a_row_does_not_wait_for_one_that_may_come_later_than_it_would() {
    let stage = Stage::new();
    let _blocker = stage.block().await;
    let mut answers = vec![stage.board(&[5], &departure())];
    let urgent = Departure {
        priority: Priority::HIGH,
        ..departure()
    };
    let other_tenant = Departure {
        tenant: Arc::from("other"),
        ..departure()
    };
    let in_a_hurry = before(soon(600_000));
    for departure in [&urgent, &other_tenant, &in_a_hurry] {
        answers.push(stage.board(&[5], departure));
    }
    stage.let_on();
    for answers in &mut answers {
        assert_eq!(only(answers).await, Ok((5.0, false)));
    }
    assert_eq!(stage.count(5), 4);
    // Once it is known, it is known to all.
    assert_eq!(only(&mut stage.board(&[5], &urgent)).await, Ok((5.0, true)));
}

#[tokio::test]
async fn a_failure_is_told_to_all_and_not_kept() {
    let stage = Stage::new();
    let _blocker = stage.block().await;
    let mut first = stage.board(&[PANICS], &departure());
    let mut second = stage.board(&[PANICS], &departure());
    stage.let_on();
    for answers in [&mut first, &mut second] {
        let error = only(answers).await.unwrap_err();
        assert!(matches!(error, RequestError::Internal { .. }), "{error}");
    }
    let before = stage.count(PANICS);
    only(&mut stage.board(&[PANICS], &departure()))
        .await
        .unwrap_err();
    assert!(stage.count(PANICS) > before);
}

#[tokio::test]
async fn a_request_that_finds_no_room_leaves_no_run_behind() {
    let stage = Stage::with(2, 8192);
    let _blocker = stage.block().await;
    let mut one = stage.board(&[5], &departure());
    let mut two = stage.board(&[6], &departure());
    let refused = stage.try_board(&[5, 7], &departure()).unwrap_err();
    assert!(
        matches!(refused, RequestError::Overloaded { .. }),
        "{refused}"
    );
    // What is under way has room all the same.
    let mut shared = stage.board(&[6, 5], &departure());
    stage.let_on();
    assert_eq!(only(&mut one).await, Ok((5.0, false)));
    assert_eq!(only(&mut two).await, Ok((6.0, false)));
    while let Some((_, answer)) = shared.next().await {
        assert!(answer.unwrap().1);
    }
    assert_eq!(
        only(&mut stage.board(&[7], &departure())).await,
        Ok((7.0, false))
    );
    stage.settled().await;
}

#[tokio::test]
async fn no_more_rows_wait_for_anothers_run_than_may() {
    let stage = Stage::with(8192, 3);
    let _blocker = stage.block().await;
    let mut answers: Vec<_> = (0..10).map(|_| stage.board(&[5], &departure())).collect();
    stage.let_on();
    let mut shared = 0;
    for answers in &mut answers {
        shared += usize::from(only(answers).await.unwrap().1);
    }
    assert_eq!((shared, stage.count(5)), (3, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_answer_is_right_whoever_leaves_when() {
    let stage = Arc::new(Stage::new());
    let mut tasks = Vec::new();
    for task in 0..8_u64 {
        let stage = Arc::clone(&stage);
        tasks.push(tokio::spawn(async move {
            let mut random = task + 1;
            for _ in 0..500 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let tokens: Vec<u32> = (0..4)
                    .map(|at| 10 + (random >> (20 + at * 8)) as u32 % 300)
                    .collect();
                let departure = match (random >> 13) % 8 {
                    0 => before(Instant::now() + Duration::from_micros(random >> 54)),
                    1 => before(soon(600_000)),
                    _ => departure(),
                };
                let Ok(mut answers) = stage.try_board(&tokens, &departure) else {
                    continue;
                };
                let stop_after = (random >> 17) % 8;
                for _ in 0..stop_after {
                    let Some((row, answer)) = answers.next().await else {
                        break;
                    };
                    match answer {
                        Ok((answer, _)) => assert_eq!(
                            answer.output,
                            RowOutput::Embedding(vec![tokens[row] as f32])
                        ),
                        Err(error) => {
                            assert!(matches!(error, RequestError::DeadlineExceeded { .. }));
                            assert!(departure.deadline.is_some(), "{error}");
                        }
                    }
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    stage.settled().await;
    let (kept, bytes) = stage.cache.size();
    assert!(
        kept <= 300 && bytes <= 1 << 20,
        "{kept} answers, {bytes} bytes"
    );
}
