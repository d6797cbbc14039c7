//! A client's body on its way to the upstream: never gathered, never completed after it broke off.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::client_body::ClientBody;
use super::error::BodyError;
use super::idle_timer::IdleTimer;

/// A client's body. Its trailers are dropped, since they could carry fields past the guard, unless there [is a
/// judge](RequestBody::with_trailers) of them.
#[derive(Debug, Default)]
pub struct RequestBody(Source);

#[derive(Debug, Default)]
enum Source {
    #[default]
    Nothing,
    /// keygate's own.
    Own(Bytes),
    Client(Sending),
}

#[derive(Debug)]
struct Sending {
    /// Parts that were taken before, and come again first.
    again: VecDeque<Bytes>,
    incoming: ClientBody,
    /// Of the message that it is the body of.
    version: Version,
    left: u64,
    idle: IdleTimer,
    upload: Rc<Upload>,
    trailers: Option<TrailerRules>,
}

/// Removes from the trailers of a request what may not pass.
#[derive(Clone)]
pub struct TrailerRules(pub Rc<dyn Fn(&mut HeaderMap)>);

impl fmt::Debug for TrailerRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrailerRules")
    }
}

/// How far a client's body has come; shared by the body, the wait for the answer, and the record.
#[derive(Debug)]
pub struct Upload {
    state: Cell<UploadState>,
    bytes: Cell<u64>,
    progress: Cell<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UploadState {
    Sending,
    Done,
    Failed(BodyError),
}

impl Upload {
    /// The bytes that have come.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    pub(super) fn state(&self) -> UploadState {
        self.state.get()
    }

    /// When a part of the body was last taken.
    pub(super) fn progress(&self) -> Instant {
        self.progress.get()
    }
}

impl RequestBody {
    /// Lets at most `limit` bytes through, with pauses of at most `idle`. `version` is that of its message.
    #[must_use]
    pub fn new(incoming: ClientBody, version: Version, limit: u64, idle: Duration) -> Self {
        if incoming.is_end_stream() {
            return Self(Source::Nothing);
        }
        let upload = Upload {
            state: Cell::new(UploadState::Sending),
            bytes: Cell::new(0),
            progress: Cell::new(Instant::now()),
        };
        Self(Source::Client(Sending {
            again: VecDeque::new(),
            incoming,
            version,
            left: limit,
            idle: IdleTimer::new(idle),
            upload: Rc::new(upload),
            trailers: None,
        }))
    }

    /// Lets trailers through, as far as `rules` leave any. Over HTTP/1.1 none are sent.
    #[must_use]
    pub fn with_trailers(mut self, rules: TrailerRules) -> Self {
        if let Source::Client(sending) = &mut self.0 {
            sending.trailers = Some(rules);
        }
        self
    }

    /// A body of keygate's own.
    pub(super) const fn own(bytes: Bytes) -> Self {
        Self(Source::Own(bytes))
    }

    /// The body with the parts that it began with, which are sent again.
    pub(super) fn again(mut self, parts: Vec<Bytes>) -> Self {
        if let Source::Client(sending) = &mut self.0 {
            // What was all sent once is to be sent once more.
            if !parts.is_empty() && sending.upload.state() == UploadState::Done {
                sending.upload.state.set(UploadState::Sending);
            }
            sending.again = parts.into_iter().chain(sending.again.drain(..)).collect();
        }
        self
    }

    /// `None` for a request without a body.
    pub fn upload(&self) -> Option<Rc<Upload>> {
        match &self.0 {
            Source::Client(sending) => Some(Rc::clone(&sending.upload)),
            Source::Nothing | Source::Own(_) => None,
        }
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
            Source::Nothing => Poll::Ready(None),
            Source::Own(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Source::Nothing;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::Client(sending) => sending.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Nothing => true,
            Source::Own(_) => false,
            Source::Client(sending) => sending.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Nothing => SizeHint::with_exact(0),
            Source::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Client(sending) => sending.size_hint(),
        }
    }
}

impl Sending {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.again.pop_front() {
            if self.is_end_stream() {
                self.upload.state.set(UploadState::Done);
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
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
            // hyper takes the reset of a stream with NO_ERROR for the end of its body, and the upstream would take a part of
            // a body for the whole.
            None if self.version == Version::HTTP_2 && !self.incoming.is_end_stream() => {
                return self.fail(BodyError::Broken);
            }
            None => {
                self.upload.state.set(UploadState::Done);
                return Poll::Ready(None);
            }
        };
        let data = match data {
            Ok(data) => data,
            Err(frame) => {
                self.upload.state.set(UploadState::Done);
                let judged = |trailers| self.judged(trailers);
                return Poll::Ready(frame.into_trailers().ok().and_then(judged).map(Frame::trailers).map(Ok));
            }
        };
        self.upload.bytes.set(self.upload.bytes.get() + data.len() as u64);
        let Some(left) = self.left.checked_sub(data.len() as u64) else {
            return self.fail(BodyError::TooLarge);
        };
        self.left = left;
        if self.incoming.is_end_stream() {
            self.upload.state.set(UploadState::Done);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn judged(&self, mut trailers: HeaderMap) -> Option<HeaderMap> {
        let rules = self.trailers.as_ref()?;
        (rules.0)(&mut trailers);
        (!trailers.is_empty()).then_some(trailers)
    }

    fn is_end_stream(&self) -> bool {
        self.again.is_empty() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let coming = self.incoming.size_hint();
        if self.again.is_empty() {
            return coming;
        }
        let again: u64 = self.again.iter().map(|data| data.len() as u64).sum();
        let mut hint = SizeHint::new();
        hint.set_lower(coming.lower() + again);
        if let Some(upper) = coming.upper() {
            hint.set_upper(upper + again);
        }
        hint
    }

    fn fail(&self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.upload.state.set(UploadState::Failed(error));
        Poll::Ready(Some(Err(error)))
    }
}
