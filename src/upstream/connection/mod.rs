//! An open connection to an endpoint, and how a request travels over it.
//!
//! [`Connection`] is a closed enum: each way to speak to an upstream is one variant and one file of this
//! folder. The types of the library that speaks the protocol stay in that file.

mod flaw;
mod http1;
mod http2;
mod interim;
mod measured;
mod pump;
mod state;
mod streamed;
mod wire;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderValue, Request};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use self::http1::Http1;
pub(super) use self::http1::Upgrading;
pub(super) use self::http2::{Http2, MOST_STREAMS, Shared};
pub(super) use self::wire::Unanswered;
use super::dial::Stream;
use super::error::BrokenOff;
use super::request_body::RequestBody;

/// An open connection. Dropping it closes it, together with the request that is under way on it.
#[derive(Debug)]
pub(super) enum Connection {
    /// HTTP/1.1: one request at a time.
    Exclusive(Http1),
    /// HTTP/2: the place of one request on a connection that others share. Dropping it ends that request alone.
    Shared(Http2),
}

/// An answer's head, and the source of its body.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) head: Parts,
    pub(super) incoming: Incoming,
    /// After a 101 the connection itself, which stops speaking HTTP.
    pub(super) upgrading: Option<Upgrading>,
}

/// An answer's body as it arrives.
#[derive(Debug)]
pub(super) enum Incoming {
    Http1(http1::Incoming),
    Http2(streamed::Streamed),
}

/// Why an answer's body broke off, in a library's words, which repeat nothing of the body.
#[derive(Debug)]
pub(super) enum BodyFlaw {
    Http1(http1::BodyFlaw),
    Http2(streamed::StreamFlaw),
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyFlaw;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFlaw>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(BodyFlaw::Http1),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(BodyFlaw::Http2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}

impl fmt::Display for BodyFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http1(flaw) => flaw.fmt(f),
            Self::Http2(flaw) => flaw.fmt(f),
        }
    }
}

pin_project! {
    /// The wait for an answer over either protocol.
    #[project = AnsweringProjected]
    pub(super) enum Answering<One, Many> {
        Http1 { #[pin] answering: One },
        Http2 { #[pin] answering: Many },
    }
}

impl<One, Many> Future for Answering<One, Many>
where
    One: Future,
    Many: Future<Output = One::Output>,
{
    type Output = One::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<One::Output> {
        match self.project() {
            AnsweringProjected::Http1 { answering } => answering.poll(cx),
            AnsweringProjected::Http2 { answering } => answering.poll(cx),
        }
    }
}

/// Why a request got no answer on a connection.
#[derive(Debug)]
pub(super) enum Undelivered {
    /// Not a byte of it was sent, and it can be sent elsewhere. Boxed, since it is large and rare.
    Unsent(Box<Request<RequestBody>>),
    /// Some of it may have been sent.
    BrokeOff(BrokenOff),
}

impl Connection {
    /// Begins HTTP/1.1 on a stream. For the thread that calls it, within its `LocalSet`.
    ///
    /// # Errors
    /// When the stream cannot be used.
    pub(super) async fn open(stream: Stream) -> io::Result<Self> {
        Http1::open(stream).await.map(Self::Exclusive)
    }

    /// A place for a request on a connection that has one.
    pub(super) fn on(shared: &Rc<Shared>) -> Self {
        Self::Shared(Http2::on(shared))
    }

    /// Whether another request can be sent now.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Exclusive(connection) => connection.is_ready(),
            Self::Shared(request) => request.shared().is_ready(),
        }
    }

    /// Whether no request can be sent any more.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Exclusive(connection) => connection.is_closed(),
            Self::Shared(request) => request.shared().is_closed(),
        }
    }

    /// After a request broke off: what was sent, if not a byte came after it. Once.
    pub(super) fn unanswered(&self) -> Option<Unanswered> {
        match self {
            Self::Exclusive(connection) => connection.unanswered(),
            Self::Shared(request) => request.unanswered(),
        }
    }

    /// Whether a request was sent, at least in part, and not a byte came after it.
    pub(super) fn is_waiting(&self) -> bool {
        match self {
            Self::Exclusive(connection) => connection.is_waiting(),
            Self::Shared(request) => request.is_waiting(),
        }
    }

    /// The links of the interim answers that have come since the last call. The task is woken when more come.
    pub(super) fn take_links(&self, cx: &Context<'_>) -> Vec<HeaderValue> {
        match self {
            Self::Exclusive(connection) => connection.take_links(cx),
            // Whoever waits for the answer is woken for them anyway.
            Self::Shared(request) => request.take_links(),
        }
    }

    /// Nobody wants links any more. To be called once the answer is there, if they were asked for.
    pub(super) fn forget_links(&self) {
        match self {
            Self::Exclusive(connection) => connection.forget_links(),
            Self::Shared(request) => drop(request.take_links()),
        }
    }

    /// Ends the request. To be called before what waits for its answer is polled.
    pub(super) fn abandon(&self) {
        match self {
            Self::Exclusive(connection) => connection.abandon(),
            Self::Shared(request) => request.abandon(),
        }
    }

    /// After a new connection took no request: what the server said instead of waiting for it, if it said anything. Once.
    pub(super) fn spoke_unasked(&self) -> Option<BrokenOff> {
        match self {
            Self::Exclusive(connection) => connection.spoke_unasked(),
            // A server of HTTP/2 may speak first.
            Self::Shared(_) => None,
        }
    }

    /// After a request broke off: the cause, with the byte that is wrong where the answer could not be read. Once.
    pub(super) fn explained(&self, cause: BrokenOff) -> BrokenOff {
        match self {
            Self::Exclusive(connection) => connection.explained(cause),
            Self::Shared(request) => request.explained(cause),
        }
    }

    /// Sends a request and waits for the head of its answer. The request is handed on before the first poll,
    /// so that the future stays small.
    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Received, Undelivered>> + use<> {
        match self {
            Self::Exclusive(connection) => Answering::Http1 { answering: connection.send(request) },
            Self::Shared(place) => Answering::Http2 { answering: place.send(request) },
        }
    }
}
