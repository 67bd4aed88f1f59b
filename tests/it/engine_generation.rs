//! The generation engine around a model that misbehaves: one sequence's fault harms no other, and
//! nothing is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use ferry::{
    engine::{
        Changed, GenerationEngine, Recovery, Supervision,
        continuous::{SequenceEvent, StepForward},
    },
    error::RequestError,
    generation::FinishReason,
    models::ForwardError,
    telemetry::Metrics,
};

use super::counting::{
    FAILS, NOT_A_NUMBER, PANICS, departure, forward, gather, options, start, submit, work,
};

#[tokio::test]
async fn a_sequence_that_breaks_the_model_fails_alone() {
    let engine = start(Box::new(forward), 64);
    let good = submit(&engine, &[3, 4, 5], 10);
    let fails = submit(&engine, &[3, FAILS], 10);
    let panics = submit(&engine, &[PANICS, 5], 10);
    let nan = submit(&engine, &[7, NOT_A_NUMBER], 10);
    let other = submit(&engine, &[20], 4);

    let (tokens, end) = gather(good).await;
    assert_eq!(tokens, (6..16).collect::<Vec<u32>>());
    assert_eq!(end, Ok(FinishReason::Length));
    assert_eq!(gather(other).await.0, [21, 22, 23, 24]);
    for (stream, said) in [
        (fails, "a token that fails"),
        (panics, "a token that panics"),
        (nan, "not finite"),
    ] {
        let (tokens, end) = gather(stream).await;
        assert!(tokens.is_empty());
        let error = end.unwrap_err();
        assert!(matches!(error, RequestError::Internal { .. }));
        assert!(error.to_string().contains(said), "{error}");
    }
    assert_eq!(engine.sequences(), 0);
}

#[tokio::test]
async fn a_stop_token_is_told_and_ends_the_sequence() {
    let engine = start(Box::new(forward), 64);
    let (tokens, end) = gather(submit(&engine, &[37], 100)).await;
    assert_eq!(tokens, [38, 39, 40]);
    assert_eq!(end, Ok(FinishReason::StopToken { token: 40 }));
}

#[tokio::test]
async fn a_reader_that_stops_pauses_its_own_sequence_and_misses_nothing() {
    let steps = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&steps);
    let engine = start(
        Box::new(move |batch| {
            counted.fetch_add(1, SeqCst);
            forward(batch)
        }),
        256,
    );
    let mut work = work(&[50], 300);
    work.stop_tokens = Arc::from([]);
    let mut stuck = engine
        .submit(vec![work], &departure(), Instant::now())
        .unwrap();
    // Others run through while this one is not read.
    for _ in 0..20 {
        assert_eq!(gather(submit(&engine, &[1], 20)).await.0.len(), 20);
    }
    // It ran until its stream was full, and then no further.
    let before = steps.load(SeqCst);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(steps.load(SeqCst), before, "steps are run for nobody");
    let (tokens, end) = gather(stuck.remove(0)).await;
    assert_eq!(end, Ok(FinishReason::Length));
    let expected: Vec<u32> = (0..300).map(|at| at % 51).collect();
    assert_eq!(tokens, expected);
}

#[tokio::test]
async fn more_than_fit_are_refused_with_a_hint() {
    let engine = start(Box::new(forward), 256);
    let many = (0..200).map(|_| work(&[1], 5)).collect();
    let error = engine
        .submit(many, &departure(), Instant::now())
        .unwrap_err();
    assert!(matches!(error, RequestError::Overloaded { .. }), "{error}");
    assert!(error.retry_after().is_some());
    assert_eq!(engine.sequences(), 0);
    assert_eq!(gather(submit(&engine, &[1], 5)).await.0.len(), 5);
}

#[tokio::test]
async fn prompts_are_scored_across_chunks() {
    let engine = start(Box::new(forward), 64);
    let prompt: Vec<u32> = (0..45).collect();
    let mut work = work(&prompt, 2);
    work.score_prompt = true;
    work.sampling.top_logprobs = 1;
    let mut streams = engine
        .submit(vec![work], &departure(), Instant::now())
        .unwrap();
    let Some(SequenceEvent::Prompt(scored)) = streams[0].next().await else {
        panic!("the prompt comes first");
    };
    assert_eq!(scored.len(), 45);
    assert_eq!(scored[0].logprob, None);
    for (at, token) in scored.iter().enumerate().skip(1) {
        assert_eq!(token.id as usize, at);
        // Each is the most likely one after the one before.
        assert_eq!(token.top[0].0, token.id);
        assert!((token.logprob.unwrap() - token.top[0].1).abs() < 1e-6);
    }
    assert_eq!(gather(streams.remove(0)).await.0, [45, 46]);
}

#[tokio::test]
async fn dropping_the_engine_lets_its_sequences_end() {
    let engine = start(Box::new(forward), 64);
    let streams: Vec<_> = (0..8).map(|at| submit(&engine, &[at], 20)).collect();
    drop(engine);
    for stream in streams {
        let (tokens, end) = gather(stream).await;
        assert_eq!((tokens.len(), end), (20, Ok(FinishReason::Length)));
    }
}

fn device_error(name: &'static str) -> ForwardError {
    ForwardError::Device(candle_core::Error::Cuda(name.into()))
}

#[tokio::test]
async fn a_step_that_the_device_has_no_memory_for_is_run_in_parts_and_gives_the_same_tokens() {
    let metrics = Metrics::new();
    let small: StepForward = Box::new(|batch| {
        if batch.rows.len() > 2 || batch.tokens.contains(&FAILS) {
            return Err(device_error("DriverError(CUDA_ERROR_OUT_OF_MEMORY)"));
        }
        forward(batch)
    });
    let engine = GenerationEngine::start(options(64, &metrics), small).unwrap();
    let prompts: Vec<Vec<u32>> = (1..8).map(|token| vec![token, token + 1]).collect();
    let work_of = |prompt: &Vec<u32>| work(prompt, 5);
    let all = prompts
        .iter()
        .map(work_of)
        .chain([work(&[FAILS], 5)])
        .collect();
    let mut streams = engine.submit(all, &departure(), Instant::now()).unwrap();
    let huge = streams.pop().unwrap();
    for (stream, prompt) in streams.into_iter().zip(&prompts) {
        let (tokens, end) = gather(stream).await;
        let next = prompt[1] + 1;
        assert_eq!(tokens, (next..next + 5).collect::<Vec<_>>());
        assert!(end.is_ok());
    }
    let (_, end) = gather(huge).await;
    assert!(
        matches!(end, Err(RequestError::DeviceMemory { .. })),
        "{end:?}"
    );
    assert!(metrics.model("counting", "1").device.split_batches.get() >= 1);
}

#[tokio::test]
async fn sequences_on_a_lost_device_end_and_a_fresh_one_begins_with_an_empty_cache() {
    let metrics = Metrics::new();
    let dying: StepForward = Box::new(|batch| {
        if batch.tokens.contains(&FAILS) {
            return Err(device_error("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)"));
        }
        forward(batch)
    });
    let reload = Arc::new(|_| Ok::<StepForward, String>(Box::new(forward)));
    let (changed, mut changes) = tokio::sync::watch::channel(0);
    let supervision = Supervision {
        recovery: Recovery::Restart(reload),
        watchdog: None,
        changed: Changed::new(move || changed.send_modify(|count| *count += 1)),
    };
    let options = options(64, &metrics);
    let engine = GenerationEngine::start_over(options, dying, supervision).unwrap();
    // A whole block, which would be shared with whoever begins alike.
    let prompt: Vec<u32> = (1..=9).collect();
    assert!(gather(submit(&engine, &prompt, 3)).await.1.is_ok());

    let all = vec![work(&prompt, 200), work(&[FAILS], 3)];
    let streams = engine.submit(all, &departure(), Instant::now()).unwrap();
    let mut ends = Vec::new();
    for stream in streams {
        ends.push(gather(stream).await.1);
    }
    let is_lost = |end: &Result<_, _>| matches!(end, Err(RequestError::DeviceLost { .. }));
    assert!(is_lost(&ends[0]), "{ends:?}");
    // The other was in the same step, or came when the fresh one was there already.
    assert!(ends[1].is_ok() || is_lost(&ends[1]), "{ends:?}");
    changes.wait_for(|&count| count >= 2).await.unwrap();
    assert_eq!(engine.lost(), None);
    let cached = || metrics.generation("counting", "1").cached_tokens.get();
    let before = cached();
    let (tokens, end) = gather(submit(&engine, &prompt, 3)).await;
    assert_eq!((tokens, end), (vec![10, 11, 12], Ok(FinishReason::Length)));
    assert_eq!(cached(), before, "blocks of the lost cache are not shared");
    assert_eq!(metrics.model("counting", "1").device.restarts.get(), 1);
}
