//! From a request to generate to its answer, whole or as a stream of server-sent events.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;

use super::{
    continuations::Continuations,
    errors::ApiError,
    output::{Envelope, Gathered, Surface, cached_header, escalated_header, model_headers, new_id},
    parameters::GenerationRequest,
    request::{Incoming, refuse},
};
use crate::{admission::Piece, api::grpc::Shared, error::RequestError};

/// Answers a request that `read` understands.
pub async fn generate<S: Surface>(
    shared: Shared,
    headers: HeaderMap,
    body: Body,
    read: fn(&[u8]) -> Result<GenerationRequest<S>, RequestError>,
) -> Result<Response, ApiError> {
    let incoming = Incoming::take(&shared, &headers, body).await?;
    let mut request = incoming.read(&shared, read)?;
    let prompts = request.calls.len();
    let most = shared.admission.limits().max_rows;
    if prompts > most {
        let found = format!("{prompts} prompts");
        let error = RequestError::invalid("prompt", found, format_args!("1 to {most} prompts"));
        return Err(refuse(&shared, error));
    }
    for call in &mut request.calls {
        call.version.clone_from(&incoming.version);
    }
    let mut running = Continuations::start(&shared, request.calls, incoming.context).await?;
    let delivery = request.delivery;
    if !delivery.stream {
        return Ok(whole(running, &request.surface).await?);
    }
    // Until something is generated an error can still be told by the status.
    let first = running.next().await.transpose()?;
    let id = new_id(S::ID);
    let envelope = Envelope::new(&id, S::CHUNK, &running.model, delivery.include_usage);
    Ok(events(Events {
        running,
        surface: request.surface,
        envelope,
        include_usage: delivery.include_usage,
        first,
        ended: false,
    }))
}

async fn whole<S: Surface>(
    mut running: Continuations,
    surface: &S,
) -> Result<Response, RequestError> {
    let mut choices: Vec<Gathered> = Vec::new();
    choices.resize_with(running.choices as usize, Gathered::default);
    while let Some(step) = running.next().await {
        let (choice, piece) = step?;
        if let Some(gathered) = choices.get_mut(choice as usize) {
            gathered.add(piece, surface.wants_tokens());
        }
    }
    let envelope = Envelope::new(&new_id(S::ID), S::ANSWER, &running.model, false);
    let json = envelope.answer(surface, &choices, running.usage());
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    let handed_on = |choice: &&Gathered| {
        let finish = choice.finish.as_ref();
        let escalation = finish.and_then(|finish| finish.escalation.as_ref());
        escalation.is_some_and(|escalation| !escalation.from.is_empty())
    };
    let headers = (
        model_headers(&running.model),
        cached_header(running.all_cached),
        escalated_header(choices.iter().filter(handed_on).count()),
    );
    Ok((content_type, headers, json).into_response())
}

/// A stream under way. The connection drops it when the client hangs up, which cancels what is
/// still generated.
struct Events<S> {
    running: Continuations,
    surface: S,
    envelope: Envelope,
    include_usage: bool,
    first: Option<(u32, Piece)>,
    ended: bool,
}

fn events<S: Surface>(events: Events<S>) -> Response {
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/event-stream"),
        (header::CACHE_CONTROL.as_str(), "no-cache"),
        // Proxies that gather an answer before they pass it on would undo the streaming.
        ("x-accel-buffering", "no"),
    ];
    let model = model_headers(&events.running.model);
    let cached = cached_header(events.running.all_cached);
    let chunks = stream::unfold(events, |mut events| async move {
        let chunk = events.next().await?;
        Some((Ok::<_, Infallible>(chunk), events))
    });
    (headers, model, cached, Body::from_stream(chunks)).into_response()
}

impl<S: Surface> Events<S> {
    /// The bytes of the next event or events; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() {
            if self.ended {
                return None;
            }
            let step = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => self.running.next().await,
            };
            match step {
                Some(Ok((choice, piece))) => {
                    self.surface
                        .write_events(choice, &piece, &self.envelope, &mut out);
                }
                Some(Err(error)) => {
                    self.ended = true;
                    out.extend_from_slice(b"data: ");
                    out.extend_from_slice(&ApiError::from(error).to_json());
                    out.extend_from_slice(b"\n\n");
                }
                None => {
                    self.ended = true;
                    if self.include_usage {
                        let usage = self.running.usage();
                        self.envelope.write_usage_chunk(usage, &mut out);
                    }
                    out.extend_from_slice(b"data: [DONE]\n\n");
                }
            }
        }
        Some(Bytes::from(out))
    }
}
