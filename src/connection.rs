//! One client connection: hyper on it, and a watchdog over it.
//!
//! hyper's own timer for request heads also runs while a kept connection is idle, and it has none for a client that takes
//! nothing of its answer. So the watchdog is ours. It looks at what the connection does, costs no timer per request,
//! and closes what takes too long.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use crate::gateway::headers::Peer;
use crate::gateway::{self, Gateway, guard};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From a request's first byte, or the connection's beginning, to the end of its head.
    pub head_timeout: Duration,
    /// How long a connection may wait for its next request; above the 60 seconds of common load balancers.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of an answer that is ready for it.
    pub write_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(300),
        }
    }
}

/// What hyper keeps of one connection's input and output, in bytes.
const BUFFER: usize = 64 << 10;
/// What a head may have beyond the limits that the guard refuses with an envelope: method, version, separators.
const HEAD_MARGIN: usize = 4 << 10;
/// hyper parses this many header fields without an allocation.
const FIELDS_INLINE: usize = 100;

/// Serves one connection until either side is done with it, or the watchdog is.
pub async fn serve<S>(
    stream: S,
    peer: Peer,
    gateway: Rc<Gateway>,
    settings: &Settings,
    connections: &Connections,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let activity = Rc::new(Activity::new());
    let limits = gateway.limits().clone();
    let io = TokioIo::new(Watched { stream, activity: Rc::clone(&activity) });
    let watched = Rc::clone(&activity);
    let peer = Rc::new(peer);
    let service = service_fn(move |request| {
        let busy = Busy::begin(&watched);
        let (gateway, peer) = (Rc::clone(&gateway), Rc::clone(&peer));
        async move {
            let response = gateway::handle(&gateway, &peer, request).await;
            Ok::<_, Infallible>(response.map(|body| Tracked { body, _busy: busy }))
        }
    });
    let mut connection = pin!(builder(&limits).serve_connection(io, service));
    let mut timer = pin!(sleep_until(Instant::now() + settings.head_timeout));
    let member = connections.join();
    let mut draining = false;
    poll_fn(|cx| {
        if member.poll_drain(cx) && !draining {
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
        // An error here is a client that went away or spoke something else; hyper has answered what could be answered.
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let Some(deadline) = activity.deadline(settings) else { return Poll::Pending };
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // Armed for an earlier moment of this connection's life: only now is it worth setting anew.
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    })
    .await;
}

fn builder(limits: &guard::Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    let head = limits.head + limits.target + HEAD_MARGIN;
    builder.writev(false).max_header_size(head).max_buf_size(BUFFER.max(2 * head));
    if limits.fields > FIELDS_INLINE {
        builder.max_headers(limits.fields);
    }
    builder
}

/// What a connection does, and since when.
#[derive(Debug)]
struct Activity {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    /// Since when there has been something to write that the client does not take.
    blocked_since: Cell<Option<Instant>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Bytes of a head are expected or have begun to come.
    Head,
    /// A request is being answered; it has limits of its own.
    Busy,
    /// Waiting for the next request.
    Idle,
}

impl Activity {
    fn new() -> Self {
        Self {
            phase: Cell::new(Phase::Head),
            since: Cell::new(Instant::now()),
            blocked_since: Cell::new(None),
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        if phase != Phase::Busy {
            self.since.set(Instant::now());
        }
    }

    /// When the connection will have taken too long, if it goes on as it does.
    fn deadline(&self, settings: &Settings) -> Option<Instant> {
        let phase = match self.phase.get() {
            Phase::Head => Some(self.since.get() + settings.head_timeout),
            Phase::Idle => Some(self.since.get() + settings.idle_timeout),
            Phase::Busy => None,
        };
        let blocked = self.blocked_since.get().map(|since| since + settings.write_timeout);
        match (phase, blocked) {
            (Some(phase), Some(blocked)) => Some(phase.min(blocked)),
            (one, other) => one.or(other),
        }
    }

    fn note_read(&self) {
        if self.phase.get() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    fn note_write(&self, taken: bool) {
        if !taken {
            if self.blocked_since.get().is_none() {
                self.blocked_since.set(Some(Instant::now()));
            }
            return;
        }
        self.blocked_since.set(None);
        if self.phase.get() == Phase::Idle {
            // The end of an answer is still on its way out; the wait for the next request begins after it.
            self.since.set(Instant::now());
        }
    }
}

/// A request under way on a connection.
struct Busy(Rc<Activity>);

impl Busy {
    fn begin(activity: &Rc<Activity>) -> Self {
        activity.enter(Phase::Busy);
        Self(Rc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
    }
}

pin_project_lite::pin_project! {
    /// A response body whose end ends the request.
    struct Tracked<B> {
        #[pin]
        body: B,
        _busy: Busy,
    }
}

impl<B: Body> Body for Tracked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that tells the watchdog what passes.
struct Watched<S> {
    stream: S,
    activity: Rc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.note_read();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.note_write(polled.is_ready());
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// One worker's connections: how many, and the word to all of them that it is time to finish.
///
/// It belongs to one thread, so that a connection can ask on every poll for the price of reading a flag.
#[derive(Debug, Default)]
pub struct Connections {
    draining: Cell<bool>,
    next: Cell<u64>,
    open: RefCell<HashMap<u64, Option<Waker>>>,
    all_closed: tokio::sync::Notify,
}

impl Connections {
    fn join(&self) -> Member<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.open.borrow_mut().insert(number, None);
        Member { connections: self, number, registered: Cell::new(false) }
    }

    /// Lets every connection finish the request it is in, and no more.
    pub fn begin_drain(&self) {
        self.draining.set(true);
        for waker in self.open.borrow_mut().values_mut().filter_map(Option::take) {
            waker.wake();
        }
    }

    /// Waits until none is open.
    pub async fn closed(&self) {
        while !self.open.borrow().is_empty() {
            self.all_closed.notified().await;
        }
    }
}

/// One connection among the worker's.
struct Member<'c> {
    connections: &'c Connections,
    number: u64,
    registered: Cell<bool>,
}

impl Member<'_> {
    /// Whether it is time to finish; if not yet, the task is woken when it is.
    fn poll_drain(&self, cx: &Context<'_>) -> bool {
        if self.connections.draining.get() {
            return true;
        }
        // A task's waker stays the same for as long as it is polled by its own runtime.
        if !self.registered.replace(true) {
            self.connections.open.borrow_mut().insert(self.number, Some(cx.waker().clone()));
        }
        false
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut open = self.connections.open.borrow_mut();
        open.remove(&self.number);
        if open.is_empty() {
            self.connections.all_closed.notify_one();
        }
    }
}
