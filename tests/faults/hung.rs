//! Models that do not come back: their requests are answered, others take their place, and of those
//! there are only so many.

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use ferry::{
    api::status,
    engine::{
        Forward, GenerationEngine, Limit, Recovery, Supervision, Watchdog,
        continuous::{SequenceWork, StepForward},
    },
    error::RequestError,
    generation::FinishReason,
    models::ForwardError,
    telemetry::Metrics,
};
use tokio::sync::watch;
use tonic::Code;

use super::{
    counting::{self, departure, gather, options, submit, work},
    echo::{Bench, echo},
};

/// The model does not come back from a batch with this token.
const HANGS: u32 = 60;
/// Batches of more than one row fail that have this one.
const FAILS_IN_COMPANY: u32 = 59;

/// Holds whoever comes, until it opens.
#[derive(Default)]
struct Gate {
    /// Somebody has come to it.
    reached: AtomicBool,
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        self.reached.store(true, SeqCst);
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

/// A model that hangs at the gate.
fn hanging(gate: &Arc<Gate>) -> Forward {
    let gate = Arc::clone(gate);
    Arc::new(move |batch| {
        if batch.rows() > 1 && batch.tokens().contains(&FAILS_IN_COMPANY) {
            return Err(ForwardError::Blocks("not in company".to_owned()));
        }
        if batch.tokens().contains(&HANGS) {
            gate.pass();
        }
        Ok(echo(batch))
    })
}

/// One that gives up after a quarter of a second: more than a busy machine keeps a thread from running.
fn watchdog(replacements: usize) -> Watchdog {
    Watchdog {
        limit: Limit {
            least: Duration::from_millis(250),
            factor: 1.0,
        },
        replacements,
        spent: None,
    }
}

fn replaced_by(forward: &Forward) -> Recovery<Forward> {
    let forward = Arc::clone(forward);
    Recovery::Restart(Arc::new(move |_: usize| {
        Ok::<Forward, String>(Arc::clone(&forward))
    }))
}

/// What a caller is told whose batch hangs.
fn assert_hung(error: &RequestError) {
    assert!(
        matches!(error, RequestError::InstanceHung { .. }),
        "{error}"
    );
    assert_eq!(status::map(error).grpc, Code::Unavailable);
    assert!(error.retry_after().is_some());
}

/// Waits until a thread that was left behind has ended, and with it what it held.
async fn until_freed<T: ?Sized>(held: &Arc<T>, count: usize) {
    let began = Instant::now();
    while Arc::strong_count(held) > count {
        assert!(began.elapsed() < Duration::from_secs(20), "it never ended");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_batch_that_hangs_is_answered_and_another_thread_takes_over() {
    let gate = Arc::<Gate>::default();
    let forward = hanging(&gate);
    let recovery = replaced_by(&forward);
    let mut bench = Bench::watched(vec![forward.clone()], recovery, Some(watchdog(3)));
    assert_eq!(bench.ask(&[1]).await, [Ok(1.0)]);
    let found = bench.ask(&[HANGS]).await;
    assert_hung(found[0].as_ref().unwrap_err());
    bench.changed(2).await;
    assert_eq!(bench.ask(&[5, 6]).await, [Ok(5.0), Ok(6.0)]);
    assert_eq!(bench.engine.lost(), None);
    let device = &bench.metrics.device;
    assert_eq!((device.hung.get(), device.restarts.get()), (1, 1));
    assert_eq!(device.failed_instances.get(), 0);

    // Here, the recovery, the thread that runs and the one that hangs: which comes back, and ends.
    assert_eq!(Arc::strong_count(&forward), 4);
    gate.open();
    until_freed(&forward, 3).await;
    assert_eq!(bench.ask(&[7]).await, [Ok(7.0)]);
    drop(bench);
    until_freed(&forward, 1).await;
}

#[tokio::test]
async fn rows_that_wait_for_their_turn_behind_one_that_hangs_are_answered_too() {
    let gate = Arc::<Gate>::default();
    let forward = hanging(&gate);
    let recovery = replaced_by(&forward);
    let mut bench = Bench::watched(vec![forward], recovery, Some(watchdog(3)));
    // The batch fails, and is run row by row.
    let found = bench.ask(&[1, FAILS_IN_COMPANY, HANGS, 4, 5]).await;
    assert_eq!(bench.metrics.isolated_batches.get(), 1, "{found:?}");
    assert_eq!(found[0], Ok(1.0));
    assert_eq!(found[1], Ok(FAILS_IN_COMPANY as f32));
    for late in &found[2..] {
        assert_hung(late.as_ref().unwrap_err());
    }
    bench.changed(2).await;
    assert_eq!(bench.ask(&[5]).await, [Ok(5.0)]);
    assert_eq!(bench.engine.waiting_rows(), 0);
    gate.open();
}

#[tokio::test]
async fn while_another_instance_lives_only_the_batch_that_hangs_is_harmed() {
    let gate = Arc::<Gate>::default();
    let instances = vec![hanging(&gate), hanging(&gate)];
    let mut bench = Bench::watched(instances, Recovery::Stay, Some(watchdog(0)));
    let mut hung = bench.submit(&[HANGS]).unwrap();
    // What boards before it has left would hang with it.
    while !gate.reached.load(SeqCst) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for token in 0..50 {
        assert_eq!(bench.ask(&[token]).await, [Ok(token as f32)]);
    }
    assert_hung(&hung.next().await.unwrap().1.unwrap_err());
    bench.changed(1).await;
    for token in 0..50 {
        assert_eq!(bench.ask(&[token]).await, [Ok(token as f32)]);
    }
    assert_eq!(bench.engine.lost(), None);
    assert_eq!(bench.metrics.device.failed_instances.get(), 1);
    gate.open();
}

#[tokio::test]
async fn when_one_hangs_too_often_all_that_waits_is_refused_and_somebody_is_told() {
    let gate = Arc::<Gate>::default();
    let forward = hanging(&gate);
    let (told, mut telling) = watch::channel(String::new());
    let watchdog = Watchdog {
        spent: Some(Arc::new(move |reason: &str| {
            told.send_replace(reason.to_owned());
        })),
        ..watchdog(1)
    };
    let recovery = replaced_by(&forward);
    let mut bench = Bench::watched(vec![forward], recovery, Some(watchdog));
    assert_hung(bench.ask(&[HANGS]).await[0].as_ref().unwrap_err());
    bench.changed(2).await;
    let mut hung = bench.submit(&[HANGS]).unwrap();
    let mut waiting = bench.submit(&[3]).unwrap();
    assert_hung(&hung.next().await.unwrap().1.unwrap_err());
    // It waited behind, or was on the way.
    if let Err(error) = waiting.next().await.unwrap().1 {
        assert_hung(&error);
    }
    let reason = telling.wait_for(|reason| !reason.is_empty()).await.unwrap();
    assert!(reason.contains("did not answer"), "{}", *reason);
    assert_hung(&bench.submit(&[4]).unwrap_err());
    assert!(bench.engine.lost().is_some());
    assert_eq!(bench.metrics.device.hung.get(), 2);
    gate.open();
}

#[tokio::test]
async fn what_hangs_while_its_engine_goes_down_is_answered_too() {
    let gate = Arc::<Gate>::default();
    let bench = Bench::watched(vec![hanging(&gate)], Recovery::Stay, Some(watchdog(0)));
    let mut hung = bench.submit(&[HANGS]).unwrap();
    drop(bench);
    assert_hung(&hung.next().await.unwrap().1.unwrap_err());
    gate.open();
}

/// A model that generates and hangs at the gate.
fn hanging_step(gate: &Arc<Gate>) -> StepForward {
    let gate = Arc::clone(gate);
    Box::new(move |batch| {
        if batch.tokens.contains(&HANGS) {
            gate.pass();
        }
        counting::forward(batch)
    })
}

fn generating(gate: &Arc<Gate>, watchdog: Watchdog, metrics: &Metrics) -> GenerationEngine {
    let fresh = Arc::clone(gate);
    let supervision = Supervision {
        recovery: Recovery::Restart(Arc::new(move |_: usize| {
            Ok::<StepForward, String>(hanging_step(&fresh))
        })),
        watchdog: Some(watchdog),
        ..Supervision::default()
    };
    GenerationEngine::start_over(options(64, metrics), hanging_step(gate), supervision).unwrap()
}

/// Generates when it can be done again: until then the model is refused.
async fn generated(engine: &GenerationEngine, prompt: &[u32]) -> Vec<u32> {
    let began = Instant::now();
    while engine.lost().is_some() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "it never came back"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (tokens, end) = gather(submit(engine, prompt, 3)).await;
    assert_eq!(end, Ok(FinishReason::Length));
    tokens
}

#[tokio::test]
async fn a_step_that_hangs_ends_its_sequences_and_others_are_generated_after_it() {
    let (gate, metrics) = (Arc::<Gate>::default(), Metrics::new());
    let engine = generating(&gate, watchdog(3), &metrics);
    assert_eq!(generated(&engine, &[1]).await, [2, 3, 4]);
    let works = [1, HANGS, 2].map(|token| SequenceWork {
        stop_tokens: Arc::from([]),
        ..work(&[token], 200)
    });
    let works = works.into_iter().collect();
    let streams = engine.submit(works, &departure(), Instant::now()).unwrap();
    for stream in streams {
        assert_hung(&gather(stream).await.1.unwrap_err());
    }
    assert_eq!(generated(&engine, &[7]).await, [8, 9, 10]);
    // A sequence's answer goes out before its place and its blocks are given up.
    let used = metrics.generation("counting", "1").used_blocks;
    let began = Instant::now();
    while engine.sequences() > 0 || used.get() > 0 {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "a place is not given up"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let device = metrics.model("counting", "1").device;
    assert_eq!((device.hung.get(), device.restarts.get()), (1, 1));
    assert_eq!(device.failed_instances.get(), 0);

    // Here, the recovery, the one that runs and the one that hangs.
    assert_eq!(Arc::strong_count(&gate), 4);
    gate.open();
    until_freed(&gate, 3).await;
    assert_eq!(generated(&engine, &[7]).await, [8, 9, 10]);
    drop(engine);
    until_freed(&gate, 1).await;
}

#[tokio::test]
async fn a_runner_that_hangs_too_often_refuses_and_somebody_is_told() {
    let (gate, metrics) = (Arc::<Gate>::default(), Metrics::new());
    let (told, mut telling) = watch::channel(0);
    let watchdog = Watchdog {
        spent: Some(Arc::new(move |_: &str| {
            told.send_modify(|times| *times += 1);
        })),
        ..watchdog(1)
    };
    let engine = generating(&gate, watchdog, &metrics);
    assert_hung(&gather(submit(&engine, &[HANGS], 3)).await.1.unwrap_err());
    assert_eq!(generated(&engine, &[7]).await, [8, 9, 10]);
    assert_hung(&gather(submit(&engine, &[HANGS], 3)).await.1.unwrap_err());
    telling.wait_for(|&times| times == 1).await.unwrap();
    let refused = engine.submit(vec![work(&[1], 1)], &departure(), Instant::now());
    assert_hung(&refused.unwrap_err());
    assert_eq!(engine.sequences(), 0);
    gate.open();
}
