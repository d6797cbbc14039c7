//! HTTP/2 down: its limits, a task for every stream, and the end of a stream whose client takes nothing of
//! its answer.
//!
//! A client on HTTP/2 can let an answer wait without blocking the connection, by giving its stream no window:
//! nothing is written, so nothing blocks, and upstream connections and buffers wait with it. Therefore every
//! answer is paced: it goes out in small pieces, and a piece that is not taken for as long as a connection
//! may block ends its stream, and that stream alone.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::gateway::Cut;

/// Requests at once on one connection.
const STREAMS: u32 = 100;
/// A request's header list, in bytes after decompression.
const HEADER_LIST: u32 = 16 << 10;
/// What a client may send of bodies before they are forwarded.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What one stream may have waiting to be written.
const SEND_BUFFER: usize = 64 << 10;
/// A client that is silent for so long is asked for a sign of life, and has as long to give it.
const PING: Duration = Duration::from_secs(20);
/// Streams that a client resets before they are looked at (Rapid Reset, CVE-2023-44487) and streams that it
/// makes us reset (`MadeYouReset`, CVE-2025-8671), before the connection ends.
const RESET_UNSEEN: usize = 20;
const RESET_BY_US: usize = 1024;
/// How many more of its requests a client may have cancelled than it has let be answered. A cancelled request
/// costs an upstream connection, and is no longer counted among the streams at once.
const CANCELLED_AT_MOST: u32 = 200;
/// How much of an answer is handed over at once: a frame of the size that every client takes.
const PIECE: usize = 16 << 10;

pub fn builder(streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESET_UNSEEN)
        .max_local_error_reset_streams(RESET_BY_US)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// The streams of one connection: each is a task of the worker's own thread.
#[derive(Clone, Debug)]
pub struct Streams {
    patience: Duration,
    /// Requests cancelled, less those answered since.
    cancelled: Rc<Cell<u32>>,
    /// The pace of the stream whose service was called last: its task is started right after.
    opened: Rc<RefCell<Option<Pace>>>,
}

impl Streams {
    /// A piece of an answer may wait for `patience` to be taken.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self { patience, cancelled: Rc::default(), opened: Rc::default() }
    }

    /// To be called when a request comes in, before its stream is started.
    #[must_use]
    pub fn open(&self) -> Pace {
        let pace = Pace::default();
        *self.opened.borrow_mut() = Some(pace.clone());
        pace
    }

    /// Whether the client cancels more than can be meant well.
    #[must_use]
    pub fn are_abused(&self) -> bool {
        self.cancelled.get() > CANCELLED_AT_MOST
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let pace = self.opened.borrow_mut().take().unwrap_or_default();
        let (patience, cancelled) = (self.patience, Rc::clone(&self.cancelled));
        tokio::task::spawn_local(async move {
            Stream { stream, pace: pace.clone(), patience, timer: None }.await;
            if pace.cut().is_due() {
                // Nothing of this is the client's doing.
                return;
            }
            let now = cancelled.get();
            cancelled.set(if pace.0.answered.get() { now.saturating_sub(1) } else { now + 1 });
        });
    }
}

/// How an answer gets on; shared between its body and the task of its stream.
#[derive(Clone, Debug, Default)]
pub struct Pace(Rc<Progress>);

#[derive(Debug, Default)]
struct Progress {
    /// Since when a piece of the answer has waited for the client.
    waiting_since: Cell<Option<Instant>>,
    /// Whether all of the answer that there is has been handed over.
    answered: Cell<bool>,
    cut: Cut,
}

impl Pace {
    /// The word to the stream that it must end.
    #[must_use]
    pub fn cut(&self) -> &Cut {
        &self.0.cut
    }
}

pin_project_lite::pin_project! {
    /// A stream, until it is done, its client has taken nothing for too long, or its key may no longer do what
    /// it does. Dropped before its end, it is reset.
    struct Stream<F> {
        #[pin]
        stream: F,
        pace: Pace,
        patience: Duration,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.pace.cut().is_due() || this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let Some(since) = this.pace.0.waiting_since.get() else { return Poll::Pending };
            let deadline = since + *this.patience;
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            ready!(timer.as_mut().poll(cx));
            // Armed for an earlier piece: only now is it worth setting anew.
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

pin_project_lite::pin_project! {
    /// An answer's body in pieces, each with the time since which it waits.
    pub struct Paced<B> {
        #[pin]
        body: B,
        rest: Bytes,
        pace: Pace,
    }
}

impl<B: Body<Data = Bytes>> Paced<B> {
    pub fn new(body: B, pace: Pace) -> Self {
        pace.0.answered.set(body.is_end_stream());
        Self { body, rest: Bytes::new(), pace }
    }
}

impl<B: Body<Data = Bytes>> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    /// Is asked for more only when the last piece has been taken.
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let progress = &this.pace.0;
        progress.waiting_since.set(None);
        if this.rest.is_empty() {
            match ready!(this.body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) if frame.is_data() => *this.rest = frame.into_data().unwrap_or_default(),
                // Trailers, the end, or an upstream that broke off: nothing of this is the client's doing.
                last => {
                    progress.answered.set(true);
                    return Poll::Ready(last);
                }
            }
        }
        let mut piece = this.rest.split_to(this.rest.len().min(PIECE));
        if this.rest.is_empty() && this.body.is_end_stream() {
            // Nobody sees how long the last piece waits, so it must not hold the whole buffer that it was
            // read into.
            piece = Bytes::copy_from_slice(&piece);
            progress.answered.set(true);
        }
        progress.waiting_since.set(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}
