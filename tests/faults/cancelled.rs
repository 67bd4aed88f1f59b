//! Callers that go away: what they wanted is not done, or not to its end, and nothing of it is left.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    requests::{HUGE, LONGEST, ONE_HUGE_BATCH, continuing, embed, embedder, generator},
    support::{Running, fixture, metric, settle},
};

/// Waits until a metric is more than nothing.
async fn until_some(running: &Running, name: &str) {
    let began = Instant::now();
    while metric(running, name).await == 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "{name} stays 0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_wait_leave_the_queue_with_their_caller() {
    const ROWS: usize = 16_384;
    let running =
        embedder("[batching]\nmax_rows = 64\nmax_tokens = 4096\nmax_waiting_rows = 65536\n").await;
    let mut client = running.typed();
    let calling = tokio::spawn(async move { client.embed(embed(ROWS, LONGEST)).await });
    until_some(&running, "ferry_waiting_rows").await;
    calling.abort();
    settle(&running, "ferry_requests_total{outcome=\"cancelled\"}", 1).await;
    settle(&running, "ferry_waiting_rows", 0).await;
    let run = metric(&running, "ferry_rows_total").await;
    assert!((run as usize) < ROWS, "all {run} rows were run for nobody");
    assert_eq!(
        running
            .typed()
            .embed(embed(3, 4))
            .await
            .unwrap()
            .into_inner()
            .rows
            .len(),
        3
    );
    assert_eq!(running.http("/health/ready").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_nobody_waits_for_any_more_ends_and_the_next_is_run() {
    let running = embedder(ONE_HUGE_BATCH).await;
    let mut client = running.typed();
    let calling = tokio::spawn(async move { client.embed(embed(HUGE, LONGEST)).await });
    // Counted when they have left the queue.
    until_some(&running, "ferry_batches_total").await;
    calling.abort();
    settle(&running, "ferry_requests_total{outcome=\"cancelled\"}", 1).await;
    assert_eq!(
        running
            .typed()
            .embed(embed(3, 4))
            .await
            .unwrap()
            .into_inner()
            .rows
            .len(),
        3
    );
    settle(&running, "ferry_rows_total", HUGE as u64 + 3).await;
    assert_eq!(metric(&running, "ferry_waiting_rows").await, 0);
    assert_eq!(metric(&running, "ferry_isolated_batches_total").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_events_that_vanishes_takes_its_sequences_with_it() {
    let running = generator(&fixture("decoders/llama"), "").await;
    let body = r#"{"model":"llama","prompt":[5,6,7],"max_tokens":100,"n":16,"stream":true,"ignore_eos":true,"temperature":0,"logprobs":5}"#;
    for _ in 0..8 {
        let mut socket = tokio::net::TcpStream::connect(running.server.http_address)
            .await
            .unwrap();
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: ferry\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut some = [0; 256];
        let read = socket.read(&mut some).await.unwrap();
        assert!(some[..read].starts_with(b"HTTP/1.1 200"), "{some:?}");
    }
    settle(&running, "ferry_sequences", 0).await;
    assert_eq!(
        metric(&running, "ferry_cache_blocks{state=\"used\"}").await,
        0
    );
    let mut stream = running
        .typed()
        .generate(continuing(&[5], 4))
        .await
        .unwrap()
        .into_inner();
    let mut tokens = 0;
    while let Some(message) = stream.message().await.unwrap() {
        tokens += message.tokens.len();
    }
    assert_eq!(tokens, 4);
}
