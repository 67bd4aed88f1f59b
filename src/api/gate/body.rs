//! An answer's body that keeps the request's place until it is out, or nobody wants it any more.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::admission::Place;

/// A body with the place of its request.
#[derive(Debug, Default)]
pub struct Held<B> {
    body: B,
    place: Option<Place>,
}

impl<B> Held<B> {
    pub(super) fn new(body: B, place: Option<Place>) -> Self {
        Self { body, place }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Held<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(context);
        if let Poll::Ready(None) = frame {
            // The connection may keep the body a little longer than it needs it.
            this.place = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
