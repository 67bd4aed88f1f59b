//! Deadlines that pass in each stage.

use std::time::Duration;

use ferry::api::proto::ferry::v1::{ExplainClass, ExplainRequest, explain_request::Explained};
use tonic::{Code, Request};

use super::{
    requests::{HUGE, LONGEST, ONE_HUGE_BATCH, embed, embedder},
    support::{Running, metric, settle},
};

/// A deadline of the server's: the client itself waits.
fn within<T>(milliseconds: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("grpc-timeout", format!("{milliseconds}m").parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_while_the_batch_runs_is_told_and_the_batch_harms_nobody() {
    let running = embedder(ONE_HUGE_BATCH).await;
    let error = running
        .typed()
        .embed(within(50, embed(HUGE, LONGEST)))
        .await
        .unwrap_err();
    // The transport's own timer says CANCELLED.
    let late = [Code::DeadlineExceeded, Code::Cancelled];
    assert!(late.contains(&error.code()), "{error}");
    assert_eq!(late_requests(&running).await, 1);
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
    settle(&running, "ferry_waiting_rows", 0).await;
    assert_eq!(running.http("/health/ready").await.0, 200);
}

/// Requests that were counted as late, or as gone where the transport was first.
async fn late_requests(running: &Running) -> u64 {
    let mut counted = 0;
    for _ in 0..500 {
        let late = "ferry_requests_total{outcome=\"deadline_exceeded\"}";
        let gone = "ferry_requests_total{outcome=\"cancelled\"}";
        counted = metric(running, late).await + metric(running, gone).await;
        if counted > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    counted
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_that_comes_too_late_runs_no_more_rows() {
    let running = Running::with(&["tiny-bert-classify"]).await;
    let asked = ExplainRequest {
        explained: Some(Explained::Classify(ExplainClass {
            text: "word ".repeat(60),
            label: String::new(),
        })),
        samples: 4096,
        max_features: 128,
        ..ExplainRequest::default()
    };
    let error = running
        .typed()
        .explain(within(30, asked))
        .await
        .unwrap_err();
    // Late, or refused as what would be; the transport's own timer says CANCELLED.
    let late = [
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
        Code::Cancelled,
    ];
    assert!(late.contains(&error.code()), "{error}");
    settle(&running, "ferry_waiting_rows", 0).await;
    // A batch that was under way ends.
    let mut rows = u64::MAX;
    loop {
        let now = metric(&running, "ferry_rows_total").await;
        if now == rows {
            break;
        }
        rows = now;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(rows < 4096, "{rows}");
    assert_eq!(running.http("/health/ready").await.0, 200);
}
