//! Bidirectional streams: many requests on one stream, each answered as soon as it is ready.
//!
//! Bounded both ways: so many requests of a stream are in the server at a time, and the answers
//! that a slow reader leaves unread hold up its own stream only.

use std::{future::Future, sync::Arc};

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Shared;

/// Answers waiting for a reader, at most.
const UNREAD: usize = 64;

/// Where the answers to the requests of one stream go.
#[derive(Debug, Clone)]
pub struct Replies<A>(mpsc::Sender<Result<A, Status>>);

impl<A> Replies<A> {
    /// Sends an answer; waits while the reader is behind. False when the reader is gone.
    pub async fn send(&self, answer: A) -> bool {
        self.0.send(Ok(answer)).await.is_ok()
    }
}

/// Reads `requests` and runs `serve` on each, side by side. The returned stream ends when the
/// caller has closed its side (or the server is closing) and everything read has been answered.
pub fn answer_each<Q, A, F>(
    shared: &Shared,
    mut requests: Streaming<Q>,
    serve: impl Fn(Q, Replies<A>) -> F + Send + 'static,
) -> ReceiverStream<Result<A, Status>>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (replies, unread) = mpsc::channel(UNREAD);
    let room = Arc::new(Semaphore::new(shared.max_stream_requests));
    let mut closing = shared.closing.clone();
    tokio::spawn(async move {
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            let request = tokio::select! {
                biased;
                () = replies.closed() => return,
                _ = closing.wait_for(|closing| *closing) => return,
                request = requests.message() => request,
            };
            match request {
                Ok(Some(request)) => {
                    let answering = serve(request, Replies(replies.clone()));
                    let reader = replies.clone();
                    tokio::spawn(async move {
                        let _permit = permit;
                        tokio::select! {
                            // The caller is gone: what is dropped here is cancelled.
                            () = reader.closed() => {}
                            () = answering => {}
                        }
                    });
                }
                Ok(None) => return,
                Err(status) => {
                    let _ = replies.send(Err(status)).await;
                    return;
                }
            }
        }
    });
    ReceiverStream::new(unread)
}
