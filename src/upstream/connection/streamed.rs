//! An answer's body over HTTP/2.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use super::state::State;

/// An answer's body as it arrives.
pub(in crate::upstream) struct Streamed {
    body: RecvStream,
    /// What is still to come, where the head says how long it is.
    left: Option<u64>,
    has_data_ended: bool,
    has_ended: bool,
    /// Whether the request had ended when the answer came.
    is_request_sent: bool,
    state: Rc<State>,
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if !self.has_ended {
            self.state.note_reset();
        }
    }
}

impl Streamed {
    pub(super) fn new(
        body: RecvStream,
        headers: &HeaderMap,
        is_request_sent: bool,
        state: Rc<State>,
    ) -> Self {
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let left = length.and_then(|length| length.parse().ok());
        let has_ended = body.is_end_stream();
        Self { body, left, has_data_ended: has_ended, has_ended, is_request_sent, state }
    }

    /// Whether this error is the end of a whole answer: a server that needs no more of the request says so (RFC 9113, section
    /// 8.1), and h2 then does not tell whether the answer had ended before.
    fn is_whole(&self, error: &h2::Error) -> bool {
        error.is_remote()
            && error.is_reset()
            && error.reason() == Some(Reason::NO_ERROR)
            && self.left.map_or(!self.is_request_sent, |left| left == 0)
    }

    fn end(&mut self) -> Poll<Option<Result<Frame<Bytes>, StreamFlaw>>> {
        self.has_ended = true;
        Poll::Ready(None)
    }

    fn fail(&mut self, error: h2::Error) -> Poll<Option<Result<Frame<Bytes>, StreamFlaw>>> {
        if self.is_whole(&error) {
            return self.end();
        }
        // There is nothing to be reset any more.
        self.has_ended = true;
        Poll::Ready(Some(Err(StreamFlaw(error))))
    }
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = StreamFlaw;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamFlaw>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if !self.has_data_ended {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // More may come once this is handed on: the client takes it before it is asked for the next.
                    let _ = self.body.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    self.has_ended = self.body.is_end_stream();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return self.fail(error),
                None => self.has_data_ended = true,
            }
        }
        match ready!(self.body.poll_trailers(cx)) {
            Ok(Some(trailers)) => {
                self.has_ended = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Ok(None) => self.end(),
            Err(error) => self.fail(error),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.has_ended => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed").field("has_ended", &self.has_ended).finish_non_exhaustive()
    }
}

/// Why an answer's body broke off, in h2's words, which repeat nothing of the body.
#[derive(Debug)]
pub(in crate::upstream) struct StreamFlaw(h2::Error);

impl fmt::Display for StreamFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
