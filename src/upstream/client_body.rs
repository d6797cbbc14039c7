//! The body of a client's request as it comes, followed by who must know how much of it waits.

use std::fmt::Debug;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// Follows how much of a body is taken. It is dropped with the body.
pub trait Followed: Debug {
    /// A frame with data was taken.
    fn took_frame(&self);
}

/// The body of a client's request.
#[derive(Debug)]
pub struct ClientBody {
    incoming: Incoming,
    // Dropped last: then nothing of the body is kept.
    follower: Option<Box<dyn Followed>>,
}

impl ClientBody {
    /// A body that `follower` follows.
    #[must_use]
    pub fn followed(incoming: Incoming, follower: Box<dyn Followed>) -> Self {
        Self { incoming, follower: Some(follower) }
    }
}

impl From<Incoming> for ClientBody {
    fn from(incoming: Incoming) -> Self {
        Self { incoming, follower: None }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if let Some(follower) = &self.follower
            && let Poll::Ready(Some(Ok(frame))) = &polled
            && frame.data_ref().is_some_and(|data| !data.is_empty())
        {
            follower.took_frame();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
