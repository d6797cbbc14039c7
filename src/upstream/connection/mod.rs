//! An open connection to an endpoint, and how a request travels over it.
//!
//! [`Connection`] is a closed enum: each way to speak to an upstream is one variant and one file of this
//! folder. The types of the library that speaks the protocol stay in that file.

mod flaw;
mod http1;
mod interim;
mod wire;

use std::io;
use std::task::Context;

use http::response::Parts;
use http::{HeaderValue, Request};

use self::http1::Http1;
pub(super) use self::http1::{Incoming, Upgrading};
pub(super) use self::wire::Unanswered;
use super::dial::Stream;
use super::error::BrokenOff;
use super::request_body::RequestBody;

/// An open connection. Dropping it closes it, together with the request that is under way on it.
#[derive(Debug)]
pub(super) enum Connection {
    /// HTTP/1.1: one request at a time.
    Exclusive(Http1),
}

/// An answer's head, and the source of its body.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) head: Parts,
    pub(super) incoming: Incoming,
    /// After a 101 the connection itself, which stops speaking HTTP.
    pub(super) upgrading: Option<Upgrading>,
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
    /// Begins HTTP on a stream. For the thread that calls it, within its `LocalSet`.
    ///
    /// # Errors
    /// When the stream cannot be used.
    pub(super) async fn open(stream: Stream) -> io::Result<Self> {
        Http1::open(stream).await.map(Self::Exclusive)
    }

    /// Whether another request can be sent now.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Exclusive(connection) => connection.is_ready(),
        }
    }

    /// Whether no request can be sent any more.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Exclusive(connection) => connection.is_closed(),
        }
    }

    /// After a request broke off: what was sent, if not a byte came after it. Once.
    pub(super) fn unanswered(&self) -> Option<Unanswered> {
        match self {
            Self::Exclusive(connection) => connection.unanswered(),
        }
    }

    /// Whether a request was sent, at least in part, and not a byte came after it.
    pub(super) fn is_waiting(&self) -> bool {
        match self {
            Self::Exclusive(connection) => connection.is_waiting(),
        }
    }

    /// The links of the interim answers that have come since the last call. The task is woken when more come.
    pub(super) fn take_links(&self, cx: &Context<'_>) -> Vec<HeaderValue> {
        match self {
            Self::Exclusive(connection) => connection.take_links(cx),
        }
    }

    /// Nobody wants links any more. To be called once the answer is there, if they were asked for.
    pub(super) fn forget_links(&self) {
        match self {
            Self::Exclusive(connection) => connection.forget_links(),
        }
    }

    /// Ends the connection, so that the request on it breaks off.
    pub(super) fn abandon(&self) {
        match self {
            Self::Exclusive(connection) => connection.abandon(),
        }
    }

    /// After a new connection took no request: what the server said instead of waiting for it, if it said anything. Once.
    pub(super) fn spoke_unasked(&self) -> Option<BrokenOff> {
        match self {
            Self::Exclusive(connection) => connection.spoke_unasked(),
        }
    }

    /// After a request broke off: the cause, with the byte that is wrong where the answer could not be read. Once.
    pub(super) fn explained(&self, cause: BrokenOff) -> BrokenOff {
        match self {
            Self::Exclusive(connection) => connection.explained(cause),
        }
    }

    /// Sends a request and waits for the head of its answer. The request is handed on before the first poll,
    /// so that the future stays small.
    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Received, Undelivered>> + use<> {
        match self {
            Self::Exclusive(connection) => connection.send(request),
        }
    }
}
