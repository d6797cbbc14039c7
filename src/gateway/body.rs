//! Bodies on their way through: never gathered, never completed for a side that broke off.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::time::{Instant, Sleep};

use super::exchange::Exchange;
use crate::upstream::pool::Lease;
use crate::vocabulary::clock::Clock;
use crate::vocabulary::rejection::Rejection;

/// Why a body ended before its end. The connection it was written to is cut, so that the other side sees it
/// too.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BodyError {
    #[error("the body is larger than allowed")]
    TooLarge,
    #[error("the body stopped arriving")]
    Stalled,
    #[error("the body broke off")]
    Broken,
}

impl From<BodyError> for Rejection {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => Self::BodyTooLarge,
            BodyError::Stalled => Self::BodyStalled,
            BodyError::Broken => Self::BodyBroken,
        }
    }
}

/// How far a client's body has come; shared between the body and whoever waits for the answer.
#[derive(Debug)]
pub(super) struct Upload {
    state: Cell<UploadState>,
    progress: Cell<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UploadState {
    Sending,
    Done,
    Failed(BodyError),
}

impl Upload {
    pub(super) fn state(&self) -> UploadState {
        self.state.get()
    }

    /// When a part of the body was last taken.
    pub(super) fn progress(&self) -> Instant {
        self.progress.get()
    }
}

/// A client's body on its way up. Trailers end here: what they could smuggle past the guard is not worth
/// their use.
#[derive(Debug)]
pub struct RequestBody(Option<Sending>);

#[derive(Debug)]
struct Sending {
    incoming: Incoming,
    left: u64,
    idle: IdleTimer,
    upload: Rc<Upload>,
}

impl RequestBody {
    /// Lets at most `limit` bytes through, with pauses of at most `idle`. The upload is `None` where there is
    /// no body.
    pub(super) fn new(incoming: Incoming, limit: u64, idle: Duration) -> (Self, Option<Rc<Upload>>) {
        if incoming.is_end_stream() {
            return (Self(None), None);
        }
        let upload =
            Rc::new(Upload { state: Cell::new(UploadState::Sending), progress: Cell::new(Instant::now()) });
        let sending =
            Sending { incoming, left: limit, idle: IdleTimer::new(idle), upload: Rc::clone(&upload) };
        (Self(Some(sending)), Some(upload))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            None => Poll::Ready(None),
            Some(sending) => sending.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|sending| sending.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |sending| sending.incoming.size_hint())
    }
}

impl Sending {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            return match self.idle.poll_expired(cx) {
                Poll::Ready(()) => self.fail(BodyError::Stalled),
                Poll::Pending => Poll::Pending,
            };
        };
        self.idle.reset();
        self.upload.progress.set(Instant::now());
        let data = match frame {
            Some(Ok(frame)) => frame.into_data(),
            Some(Err(_)) => return self.fail(BodyError::Broken),
            None => {
                self.upload.state.set(UploadState::Done);
                return Poll::Ready(None);
            }
        };
        let Ok(data) = data else {
            self.upload.state.set(UploadState::Done);
            return Poll::Ready(None);
        };
        let Some(left) = self.left.checked_sub(data.len() as u64) else {
            return self.fail(BodyError::TooLarge);
        };
        self.left = left;
        if self.incoming.is_end_stream() {
            self.upload.state.set(UploadState::Done);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn fail(&self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.upload.state.set(UploadState::Failed(error));
        Poll::Ready(Some(Err(error)))
    }
}

/// An answer on its way down, keygate's own or the upstream's. Holds the exchange, whose record is written
/// when this ends. What must end before its end is dropped by whoever sends it, which also ends what a client
/// does not take.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    /// `None` where the exchange goes on in a tunnel.
    exchange: Option<Exchange>,
}

#[derive(Debug)]
enum Source {
    Own(Option<Bytes>),
    Upstream(Box<Streaming>),
}

#[derive(Debug)]
struct Streaming {
    incoming: Incoming,
    idle: IdleTimer,
    /// The connection it comes from, and whether it can be used again once the answer has ended.
    lease: Option<Lease<RequestBody>>,
    reusable: bool,
    clock: Clock,
}

impl ResponseBody {
    pub(super) fn own(bytes: Bytes, mut exchange: Exchange) -> Self {
        if bytes.is_empty() || exchange.is_head() {
            // Nobody will ask for the bytes.
            exchange.note_complete();
        }
        let source = Source::Own(Some(bytes).filter(|bytes| !bytes.is_empty()));
        Self { source, exchange: Some(exchange) }
    }

    /// Nothing at all, before a tunnel.
    pub(super) const fn none() -> Self {
        Self { source: Source::Own(None), exchange: None }
    }

    /// `reusable`: the request was wholly sent before this answer began, and nothing about the answer was
    /// odd.
    pub(super) fn upstream(
        incoming: Incoming,
        idle: Duration,
        lease: Lease<RequestBody>,
        reusable: bool,
        mut exchange: Exchange,
    ) -> Self {
        let clock = exchange.gateway().clock.clone();
        let mut streaming =
            Streaming { incoming, idle: IdleTimer::new(idle), lease: Some(lease), reusable, clock };
        if streaming.incoming.is_end_stream() {
            streaming.end();
            exchange.note_complete();
        }
        Self { source: Source::Upstream(Box::new(streaming)), exchange: Some(exchange) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = match &mut self.source {
            Source::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Upstream(streaming) => streaming.poll_frame(cx),
        };
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let (Some(trailers), Some(exchange)) = (frame.trailers_mut(), &self.exchange)
        {
            exchange.filter_trailers(trailers);
            if trailers.is_empty() {
                polled = Poll::Ready(None);
            }
        }
        let ended = match &polled {
            Poll::Ready(None) => true,
            // After trailers nobody asks again.
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || self.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if ended && let Some(exchange) = &mut self.exchange {
            exchange.note_complete();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Upstream(streaming) => streaming.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Upstream(streaming) => streaming.incoming.size_hint(),
        }
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
            Some(Err(_)) => self.fail(BodyError::Broken),
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
            lease.release(&self.clock);
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.lease = None;
        Poll::Ready(Some(Err(error)))
    }
}

/// Runs while nothing comes. Costs nothing as long as everything is there at once.
#[derive(Debug)]
struct IdleTimer {
    timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl IdleTimer {
    const fn new(timeout: Duration) -> Self {
        Self { timeout, sleep: None }
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout))).as_mut().poll(cx)
    }

    fn reset(&mut self) {
        if let Some(sleep) = &mut self.sleep {
            sleep.as_mut().reset(Instant::now() + self.timeout);
        }
    }
}
