//! Deadlines and overload, as a caller sees them.

use std::time::{Duration, Instant};

use ferry::api::proto::ferry::v1::{EmbedRequest, ModelOptions};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::support::{Running, models_of, write_manifest};

fn embed(rows: usize) -> EmbedRequest {
    EmbedRequest {
        options: Some(ModelOptions {
            model: "tiny-bert-embed".to_owned(),
            ..ModelOptions::default()
        }),
        texts: vec!["word ".repeat(60); rows],
        ..EmbedRequest::default()
    }
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_told_at_once() {
    let running = Running::with(&["tiny-bert-embed"]).await;
    let mut request = Request::new(embed(1));
    request
        .metadata_mut()
        .insert("grpc-timeout", "1n".parse().unwrap());
    let error = running.typed().embed(request).await.unwrap_err();
    // The transport's own timer may be the first to notice; it says CANCELLED.
    assert!(matches!(
        error.code(),
        Code::DeadlineExceeded | Code::Cancelled
    ));
}

#[tokio::test]
async fn a_full_queue_answers_at_once_with_a_retry_hint() {
    let models = models_of(&["tiny-bert-embed"]);
    let manifest = "task = \"embed\"\n[batching]\nmax_waiting_rows = 8\nmax_rows = 2\n";
    write_manifest(models.path(), "tiny-bert-embed", manifest);
    let running = Running::serving(models, |_| {}).await;
    let began = Instant::now();
    let error = running.typed().embed(embed(9)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(error.get_details_retry_info().is_some());
    assert!(error.metadata().contains_key("grpc-retry-pushback-ms"));
    assert!(running.typed().embed(embed(8)).await.is_ok());
}
