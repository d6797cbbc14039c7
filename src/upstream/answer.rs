//! The answer of an upstream, and whether its connection may carry another request.
//!
//! # When a connection is used again
//! Bytes that one exchange leaves on a connection would be read as part of the next (response queue poisoning),
//! so any doubt closes it. All of this must hold:
//!
//! - The request was wholly sent before the answer's head came. Otherwise the rest of its body is still to
//!   come on this connection; hyper would neither close nor finish it (hyper issue 4176).
//! - The answer is HTTP/1.1. hyper frames a connection's next request for the version of its last answer, and
//!   HTTP/1.0 cannot frame a body of unknown length: the body would be left out, and the upstream would take
//!   the request for a whole one.
//! - The answer's framing is [`Framing::Clear`]. hyper keeps a connection whose answer had both a length and a
//!   coding (hyper pull request 4181).
//! - The answer did not turn the connection into something else (101).
//! - The answer's body came to its proper end: it did not break off, stall, or stop because it was dropped.
//!
//! The first four are `may_be_reused`, the last is where an [`AnswerBody`] ends. Whether there is room for
//! another unused connection is the pool's matter.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Version};
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::budget::Place;
use super::connection::{Incoming, Received, Upgrading};
use super::error::BodyError;
use super::idle_timer::IdleTimer;
use super::pool::Lease;

/// An upstream's answer.
#[derive(Debug)]
pub struct Answer {
    /// With a reason phrase as its only extension, if any, and with at most one framing.
    pub head: Parts,
    pub framing: Framing,
    pub body: AnswerBody,
    /// There if, and only if, the status is 101. Whether the request asked for it is not checked here. Boxed, since
    /// it is large and rare.
    pub upgrade: Option<Box<Upgrade>>,
}

impl Answer {
    /// `stream_idle` limits the pauses of the body.
    pub(super) fn new(received: Received, lease: Lease, is_wholly_sent: bool, stream_idle: Duration) -> Self {
        let Received { mut head, incoming, upgrading } = received;
        let framing = Framing::settle(&mut head.headers);
        let (lease, upgrade) = match upgrading {
            Some(upgrading) => (None, Some(Box::new(Upgrade { upgrading, lease }))),
            None => (Some(lease), None),
        };
        let reusable = may_be_reused(&head, framing, is_wholly_sent);
        let idle = IdleTimer::new(stream_idle);
        let body = AnswerBody::new(Streaming { incoming, idle, lease, reusable, is_wholly_sent });
        Self { head, framing, body, upgrade }
    }
}

/// Whether an answer with this head leaves its connection fit for another request, once it has ended properly.
fn may_be_reused(head: &Parts, framing: Framing, is_wholly_sent: bool) -> bool {
    is_wholly_sent && head.version == Version::HTTP_11 && framing == Framing::Clear
}

/// How an answer says where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Clear,
    /// By a length and a coding. The coding counts (RFC 9112, section 6.3), but the length may be an attack.
    Doubtful,
    /// In a way that has no reading, or several. Such an answer cannot be passed on.
    Unknown(BadFraming),
}

/// The part of an answer's framing that is wrong.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadFraming {
    /// A coding that keygate does not decode.
    #[error("its Transfer-Encoding is something else than one `chunked`")]
    Coding,
    #[error("its Content-Length is something else than one number")]
    Length,
}

impl Framing {
    /// Reads the framing of an answer, and leaves at most one in its fields.
    fn settle(headers: &mut HeaderMap) -> Self {
        let framing = Self::of(headers);
        if framing == Self::Doubtful {
            headers.remove(CONTENT_LENGTH);
        } else if !has_one_length(headers) {
            return Self::Unknown(BadFraming::Length);
        }
        framing
    }

    fn of(headers: &HeaderMap) -> Self {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        match (codings.next(), codings.next()) {
            (None, _) => Self::Clear,
            (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
                if headers.contains_key(CONTENT_LENGTH) { Self::Doubtful } else { Self::Clear }
            }
            _ => Self::Unknown(BadFraming::Coding),
        }
    }
}

/// Whether an answer has at most one length. hyper takes a list of one and the same number, and would pass it on as a
/// list; it becomes one here.
fn has_one_length(headers: &mut HeaderMap) -> bool {
    let is_number = |length: &[u8]| !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    let mut fields = headers.get_all(CONTENT_LENGTH).iter();
    match (fields.next(), fields.next()) {
        (None, _) => return true,
        (Some(length), None) if is_number(length.as_bytes()) => return true,
        (Some(_), _) => {}
    }
    let fields = headers.get_all(CONTENT_LENGTH).iter();
    let mut lengths =
        fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let Some(first) =
        lengths.next().filter(|first| is_number(first) && lengths.all(|length| length == *first))
    else {
        return false;
    };
    let Ok(one) = HeaderValue::from_bytes(first) else { return false };
    headers.insert(CONTENT_LENGTH, one);
    true
}

/// An answer's body as it arrives. It owns the connection: when it has ended, the connection is kept or closed,
/// and dropping it before that closes the connection. Boxed, since it is moved often.
#[derive(Debug)]
pub struct AnswerBody(Box<Streaming>);

#[derive(Debug)]
struct Streaming {
    incoming: Incoming,
    idle: IdleTimer,
    /// `None` once the answer has ended, or where the connection became something else.
    lease: Option<Lease>,
    reusable: bool,
    /// Whether the request's body had ended when the answer came, so that nothing but the upstream can break it off.
    is_wholly_sent: bool,
}

impl AnswerBody {
    fn new(mut streaming: Streaming) -> Self {
        if streaming.incoming.is_end_stream() {
            streaming.end();
        }
        Self(Box::new(streaming))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.incoming.size_hint()
    }
}

impl Streaming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            return match self.idle.poll_expired(cx) {
                Poll::Ready(()) => self.fail(BodyError::Stalled),
                Poll::Pending => Poll::Pending,
            };
        };
        self.idle.reset();
        match frame {
            Some(Ok(frame)) => {
                if frame.is_trailers() || self.incoming.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(flaw)) => {
                if let Some(lease) = self.lease.as_ref().filter(|_| self.is_wholly_sent) {
                    lease.note_broken_body(&flaw);
                }
                self.fail(BodyError::Broken)
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
        }
    }

    fn end(&mut self) {
        if let Some(lease) = self.lease.take()
            && self.reusable
        {
            lease.release();
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.lease = None;
        Poll::Ready(Some(Err(error)))
    }
}

/// A connection that stops speaking HTTP after its 101. Dropping it closes the connection.
#[derive(Debug)]
pub struct Upgrade {
    upgrading: Upgrading,
    /// Keeps the connection open until it is free of HTTP.
    lease: Lease,
}

impl Upgrade {
    /// Waits until the connection is free of HTTP, and gives its stream, and its place among the connections.
    ///
    /// # Errors
    /// When the connection ends before that.
    pub async fn complete(self) -> io::Result<(impl AsyncRead + AsyncWrite + Unpin, Place)> {
        let Self { upgrading, lease } = self;
        let stream = upgrading.complete().await?;
        Ok((stream, lease.into_place()))
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn an_answer_with_a_length_and_a_coding_keeps_the_coding_alone() {
        for (coding, framing) in [
            (&[][..], Framing::Clear),
            (&["chunked"], Framing::Doubtful),
            (&["Chunked"], Framing::Doubtful),
            (&["gzip, chunked"], Framing::Unknown(BadFraming::Coding)),
            (&["chunked", "chunked"], Framing::Unknown(BadFraming::Coding)),
        ] {
            let codings = coding.iter().map(|coding| ("transfer-encoding", *coding));
            let mut headers = fields(&codings.chain([("content-length", "5")]).collect::<Vec<_>>());
            assert_eq!(Framing::settle(&mut headers), framing, "{coding:?}");
            assert_eq!(headers.contains_key(CONTENT_LENGTH), framing != Framing::Doubtful, "{coding:?}");
        }
        assert_eq!(Framing::settle(&mut fields(&[("transfer-encoding", "chunked")])), Framing::Clear);
    }

    #[test]
    fn only_a_clear_answer_to_a_wholly_sent_request_leaves_its_connection_fit_for_another() {
        let head = |version| Response::builder().version(version).body(()).unwrap().into_parts().0;
        let current = head(Version::HTTP_11);
        assert!(may_be_reused(&current, Framing::Clear, true));
        assert!(!may_be_reused(&current, Framing::Clear, false), "not wholly sent");
        assert!(!may_be_reused(&current, Framing::Doubtful, true));
        assert!(!may_be_reused(&current, Framing::Unknown(BadFraming::Coding), true));
        assert!(!may_be_reused(&head(Version::HTTP_10), Framing::Clear, true));
    }
}
