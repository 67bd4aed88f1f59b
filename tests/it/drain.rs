//! SIGTERM under load, on the real binary: every accepted request is answered, and the exit is 0.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ferry::api::proto::ferry::v1::{
    EmbedRequest, ModelOptions, StreamRequest, inference_client::InferenceClient,
    stream_request::Task,
};
use tonic::{Code, transport::Channel};

use super::{
    process::{start, terminate},
    support::models_of,
};

fn embed(rows: usize) -> EmbedRequest {
    EmbedRequest {
        options: Some(ModelOptions {
            model: "tiny-bert-embed".to_owned(),
            ..ModelOptions::default()
        }),
        texts: vec!["the ferry waits for nobody ".repeat(6); rows],
        ..EmbedRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_request_is_answered_before_the_exit() {
    let models = models_of(&["tiny-bert-embed"]);
    let (child, address, log) = start(models.path().to_str().unwrap(), &[]);
    let url = format!("http://{address}");
    let stopping = Arc::new(AtomicBool::new(false));
    let answered_late = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (url, stopping) = (url.clone(), Arc::clone(&stopping));
            let answered_late = Arc::clone(&answered_late);
            tokio::spawn(async move {
                let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
                let mut client = InferenceClient::new(channel);
                let mut answered = 0;
                loop {
                    match client.embed(embed(200)).await {
                        Ok(answer) => {
                            assert_eq!(answer.into_inner().rows.len(), 200);
                            answered += 1;
                            if stopping.load(Ordering::Acquire) {
                                answered_late.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                        // Refused at the door or no door any more: not accepted.
                        Err(error) => return (answered, error.code(), error.to_string()),
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    stopping.store(true, Ordering::Release);
    let (code, log) = terminate(child, log).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("every accepted request is answered"), "{log}");
    for client in clients {
        let (answered, code, error) = client.await.unwrap();
        assert!(answered > 0);
        // CANCELLED here is the client's own word for a call that never left it: its connection
        // had closed before.
        let never_sent = code == Code::Cancelled && error.contains("operation was canceled");
        assert!(code == Code::Unavailable || never_sent, "{error}");
    }
    assert!(
        answered_late.load(Ordering::Relaxed) > 0,
        "nothing was in flight"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_does_not_hold_up_the_exit() {
    let models = models_of(&["tiny-bert-embed"]);
    let (child, address, log) = start(models.path().to_str().unwrap(), &[]);
    let mut client = InferenceClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let (requests, sent) = tokio::sync::mpsc::channel(8);
    let stream = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut answers = client.stream(stream).await.unwrap().into_inner();
    let request = StreamRequest {
        id: "1".to_owned(),
        task: Some(Task::Embed(embed(1))),
    };
    requests.send(request).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().id, "1");
    let began = Instant::now();
    let (code, log) = terminate(child, log).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(began.elapsed() < Duration::from_secs(20), "{log}");
    assert!(
        answers.message().await.unwrap().is_none(),
        "the stream ended well"
    );
}
