//! Readers that are slow, or stop.

use ferry::api::proto::ferry::v1::{StreamRequest, stream_request::Task};

use super::{
    requests::{EMBED, embed},
    support::{Running, metric, settle},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_read_holds_up_itself_alone_and_loses_no_answer() {
    const REQUESTS: usize = 3000;
    let running = Running::with(&[EMBED]).await;
    let (requests, sent) = tokio::sync::mpsc::channel(8);
    let stream = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut client = running.typed();
    let mut answers = client.stream(stream).await.unwrap().into_inner();
    let sending = tokio::spawn(async move {
        for id in 0..REQUESTS {
            let request = StreamRequest {
                id: id.to_string(),
                task: Some(Task::Embed(embed(1, 8))),
            };
            requests.send(request).await.unwrap();
        }
    });
    // Others are served while nobody reads.
    for _ in 0..50 {
        running.typed().embed(embed(2, 8)).await.unwrap();
    }
    settle(&running, "ferry_waiting_rows", 0).await;
    let run = metric(&running, "ferry_rows_total").await as usize;
    let mut seen = vec![false; REQUESTS];
    let mut count = 0;
    while count < REQUESTS {
        let answer = answers.message().await.unwrap().unwrap();
        let id: usize = answer.id.parse().unwrap();
        assert!(!std::mem::replace(&mut seen[id], true), "{id} came twice");
        count += 1;
    }
    sending.await.unwrap();
    assert!(answers.message().await.unwrap().is_none());
    let total = metric(&running, "ferry_rows_total").await as usize;
    assert_eq!(total, REQUESTS + 100);
    assert!(run <= total);
}
