//! A client's body on its way into a stream of HTTP/2, as fast as the server takes it.
//!
//! What has come of it goes into one frame, however small the parts were, and tiny frames go a few at a time: a server takes many of
//! them for an attack, and ends the connection that other requests share.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::Body;
use tokio::time::{Instant, Sleep, sleep};

use crate::upstream::error::BodyError;
use crate::upstream::request_body::RequestBody;

/// What is kept of a body so that a server that did nothing with the request can get it again, in bytes. Parts that are in memory
/// anyway, and not for longer than until the answer begins.
const KEPT: usize = 16 << 10;
/// What is gathered before it is sent, in bytes; a larger part goes as it came.
const GATHERED: usize = 16 << 10;

/// A frame with fewer bytes is tiny.
const TINY: usize = 1 << 10;
/// How many tiny frames a body sends at once. After them one goes each [`PAUSE`], with what has come meanwhile.
const TINY_AT_ONCE: u32 = 64;
const PAUSE: Duration = Duration::from_millis(20);

/// What became of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    Whole,
    /// It broke off, so the stream was reset.
    BrokeOff,
    /// The server takes no more of it.
    Unwanted,
}

pub(super) struct Pump {
    stream: SendStream<Bytes>,
    body: RequestBody,
    /// What was sent; `None` once that is too much.
    sent: Option<Vec<Bytes>>,
    kept: usize,
    /// What has come and was not sent.
    gathered: BytesMut,
    /// Whether more was waited for since something came.
    has_looked: bool,
    /// How many tiny frames may go at once, and since when.
    tiny: (u32, Instant),
    pause: Option<Pin<Box<Sleep>>>,
}

/// What follows on a part.
enum Next {
    /// More, which is there.
    More,
    /// More, which has not come.
    Later,
    /// The end, with trailers or without.
    End(Option<HeaderMap>),
}

impl Pump {
    pub(super) fn new(stream: SendStream<Bytes>, body: RequestBody) -> Self {
        Self {
            stream,
            body,
            sent: Some(Vec::new()),
            kept: 0,
            gathered: BytesMut::new(),
            has_looked: false,
            tiny: (TINY_AT_ONCE, Instant::now()),
            pause: None,
        }
    }

    /// Sends what there is and what the server takes. Nothing is taken from the client that the server does not take.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Pumped> {
        loop {
            if !ready!(self.poll_room(cx)) {
                return Poll::Ready(Pumped::Unwanted);
            }
            let Ok((data, next)) = self.gather(cx) else {
                // Never completed: a part must not pass for the whole.
                self.stream.send_reset(Reason::CANCEL);
                return Poll::Ready(Pumped::BrokeOff);
            };
            if matches!(next, Next::Later) && data.len() < TINY && !self.may_be_tiny(&data, cx) {
                self.gathered = BytesMut::from(data);
                return Poll::Pending;
            }
            let is_last = matches!(next, Next::End(None));
            if (is_last || !data.is_empty()) && self.put(data, is_last).is_err() {
                return Poll::Ready(Pumped::Unwanted);
            }
            match next {
                Next::More => {}
                Next::Later => return Poll::Pending,
                Next::End(None) => return Poll::Ready(Pumped::Whole),
                Next::End(Some(trailers)) => {
                    let sent = self.stream.send_trailers(trailers);
                    return Poll::Ready(if sent.is_ok() { Pumped::Whole } else { Pumped::Unwanted });
                }
            }
        }
    }

    /// Whether the server takes more, once that is known.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.stream.reserve_capacity(1);
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        Poll::Ready(self.stream.poll_reset(cx).is_pending())
    }

    /// Whether a tiny part goes now. If not, the task is woken when that is to be asked again.
    fn may_be_tiny(&mut self, data: &Bytes, cx: &mut Context<'_>) -> bool {
        if data.is_empty() {
            return true;
        }
        // What the client's connection has read comes a part at a time, when this task is polled again.
        if !std::mem::replace(&mut self.has_looked, true) {
            cx.waker().wake_by_ref();
            return false;
        }
        let (left, since) = self.tiny;
        let more = u32::try_from(since.elapsed().as_millis() / PAUSE.as_millis()).unwrap_or(u32::MAX);
        let left = left.saturating_add(more).min(TINY_AT_ONCE);
        if left == 0 {
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
            if pause.as_mut().poll(cx).is_pending() {
                return false;
            }
        }
        self.pause = None;
        self.tiny = (left.saturating_sub(1), if more > 0 { Instant::now() } else { since });
        self.has_looked = false;
        true
    }

    /// What has come, in one part.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<(Bytes, Next), BodyError> {
        let (mut first, mut gathered) = (Bytes::new(), std::mem::take(&mut self.gathered));
        let next = loop {
            if first.len().max(gathered.len()) >= GATHERED {
                break Next::More;
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => break Next::Later,
                Poll::Ready(None) => break Next::End(None),
                Poll::Ready(Some(frame)) => frame?,
            };
            self.has_looked = false;
            match frame.into_data() {
                Ok(data) if first.is_empty() && gathered.is_empty() => first = data,
                Ok(data) => {
                    gathered.extend_from_slice(&std::mem::take(&mut first));
                    gathered.extend_from_slice(&data);
                }
                Err(frame) => break Next::End(frame.into_trailers().ok()),
            }
            if self.body.is_end_stream() {
                break Next::End(None);
            }
        };
        Ok((if gathered.is_empty() { first } else { gathered.freeze() }, next))
    }

    fn put(&mut self, data: Bytes, is_last: bool) -> Result<(), h2::Error> {
        self.kept += data.len();
        match &mut self.sent {
            Some(sent) if self.kept <= KEPT => sent.push(data.clone()),
            _ => self.sent = None,
        }
        self.stream.send_data(data, is_last)
    }

    /// What follows when the answer has begun.
    pub(super) async fn rest(mut self) {
        self.sent = None;
        poll_fn(|cx| self.poll(cx)).await;
    }

    /// The body as it was before a part of it was sent, if that is still known.
    pub(super) fn into_body(self) -> Option<RequestBody> {
        let Self { body, sent, .. } = self;
        sent.map(|sent| body.again(sent))
    }
}
