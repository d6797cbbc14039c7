//! One client connection: TLS and hyper on it, and a watchdog over it.
//!
//! hyper's own timer for request heads also runs while a kept connection is idle, and it has none for a
//! client that takes nothing of its answer. So the watchdog is ours. It looks at what the connection does,
//! from the handshake on, costs no timer per request, and closes what takes too long.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::downstream::http2::{self, Paced, Streams};
use crate::downstream::preface::{self, Rewound};
use crate::downstream::tls::{self, Stream};
use crate::gateway::{self, Cut, Gateway, Tunnel, guard};
use crate::telemetry::metrics::{Connected, Protocol};
use crate::vocabulary::peer::Peer;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long the TLS handshake may take.
    pub handshake_timeout: Duration,
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
            handshake_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(300),
        }
    }
}

/// What hyper keeps of one connection's input and output, in bytes.
const BUFFER: usize = 64 << 10;
/// What a head may have beyond the limits that the guard refuses with an envelope: method, version,
/// separators.
const HEAD_MARGIN: usize = 4 << 10;
/// hyper parses this many header fields without an allocation.
const FIELDS_INLINE: usize = 100;

/// Serves one connection until either side is done with it, or the watchdog is.
pub async fn serve<S>(
    stream: S,
    tls: Option<&tls::Acceptor>,
    peer: Peer,
    gateway: Rc<Gateway>,
    settings: &Settings,
    member: Member,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let connected = gateway.cells().connected();
    let activity = Rc::new(Activity::new());
    let watched = Watched { stream, activity: Rc::clone(&activity), lingering: None };
    let mut watchdog = Watchdog {
        activity: &activity,
        settings,
        member: &member,
        timer: pin!(sleep_until(Instant::now() + settings.handshake_timeout.min(settings.head_timeout))),
    };
    // A client that goes away, says nothing in time or does not speak TLS gets no answer: there is nobody to
    // understand it.
    let Some(Ok((stream, is_http2))) = watchdog.until(open(watched, tls, &activity)).await else { return };
    let io = TokioIo::new(stream);
    let peer = Rc::new(if tls.is_some() { peer.over_tls() } else { peer });
    if is_http2 {
        connected.speaks(Protocol::Http2);
        serve_http2(io, &peer, &gateway, &activity, &mut watchdog).await;
    } else {
        connected.speaks(Protocol::Http1);
        serve_http1(io, &peer, &gateway, &activity, &mut watchdog, &connected).await;
    }
}

async fn serve_http1<S>(
    io: TokioIo<S>,
    peer: &Rc<Peer>,
    gateway: &Rc<Gateway>,
    activity: &Rc<Activity>,
    watchdog: &mut Watchdog<'_>,
    connected: &Connected,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let switch: Rc<Cell<Option<Tunnel>>> = Rc::default();
    let cut = Cut::default();
    let service = service_fn(|request: Request<Incoming>| {
        activity.had_body.set(!request.body().is_end_stream());
        let busy = Busy::begin(activity);
        let (gateway, peer, switch) = (Rc::clone(gateway), Rc::clone(peer), Rc::clone(&switch));
        let cut = cut.clone();
        async move {
            let (response, tunnel) = gateway::handle(&gateway, peer, request, &cut).await;
            switch.set(tunnel);
            Ok::<_, Infallible>(response.map(|body| Tracked { body, _busy: busy }))
        }
    });
    let mut connection = http1_builder(&gateway.limits()).serve_connection(io, service);
    let finish = http1::Connection::graceful_shutdown;
    watchdog.watch(Pin::new(&mut connection), finish, || cut.is_due()).await;
    if let Some(tunnel) = switch.take() {
        connected.speaks(Protocol::WebSocket);
        // The client has its 101, and what follows is not HTTP.
        let http1::Parts { io, read_buf, .. } = connection.into_parts();
        // A side that breaks off has ended it for both.
        drop(tunnel.run(io.into_inner(), read_buf).await);
    }
}

async fn serve_http2<S>(
    io: TokioIo<S>,
    peer: &Rc<Peer>,
    gateway: &Rc<Gateway>,
    activity: &Rc<Activity>,
    watchdog: &mut Watchdog<'_>,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    activity.is_shared.set(true);
    activity.enter(Phase::Idle);
    let streams = Streams::new(watchdog.settings.write_timeout);
    let service = service_fn(|request| {
        let (busy, pace) = (Busy::begin(activity), streams.open());
        let (gateway, peer, cut) = (Rc::clone(gateway), Rc::clone(peer), pace.cut().clone());
        async move {
            // No tunnel comes of it: HTTP/2 has no `Upgrade`, and a request that holds one is refused as
            // malformed.
            let (response, _) = gateway::handle(&gateway, peer, request, &cut).await;
            Ok::<_, Infallible>(response.map(|body| Paced::new(Tracked { body, _busy: busy }, pace)))
        }
    });
    let connection = pin!(http2::builder(streams.clone()).serve_connection(io, service));
    let finish = hyper::server::conn::http2::Connection::graceful_shutdown;
    watchdog.watch(connection, finish, || streams.are_abused()).await;
}

/// Finds out whether the client speaks HTTP/2, and makes the handshake before that where there is one.
async fn open<S>(
    stream: Watched<S>,
    tls: Option<&tls::Acceptor>,
    activity: &Activity,
) -> io::Result<(Rewound<Stream<Watched<S>>>, bool)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Some(tls) = tls else {
        return preface::is_http2(Stream::Plain(stream)).await;
    };
    activity.enter(Phase::Handshake);
    let (stream, is_http2) = tls.accept(stream).await?;
    activity.enter(Phase::Head);
    if !is_http2 {
        return Ok((Rewound::untouched(stream), false));
    }
    // Awaited here for its time limit; hyper judges it.
    let (stream, _) = preface::is_http2(stream).await?;
    Ok((stream, true))
}

fn http1_builder(limits: &guard::Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    let head = limits.head + limits.target + HEAD_MARGIN;
    builder.writev(false).max_header_size(head).max_buf_size(BUFFER.max(2 * head));
    if limits.fields > FIELDS_INLINE {
        builder.max_headers(limits.fields);
    }
    builder
}

/// Ends a connection that takes too long, and lets it finish when it is time to.
struct Watchdog<'w> {
    activity: &'w Activity,
    settings: &'w Settings,
    member: &'w Member,
    timer: Pin<&'w mut Sleep>,
}

impl Watchdog<'_> {
    /// Waits for what comes before the first request; `None` when it is not worth waiting for any longer.
    async fn until<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if self.member.poll_drain(cx) {
                return Poll::Ready(None);
            }
            match future.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending => self.poll_too_late(cx).map(|()| None),
            }
        })
        .await
    }

    /// Runs the connection; `finish` lets it end after the requests under way, `is_over` ends it at once.
    async fn watch<C: Future>(
        &mut self,
        mut connection: Pin<&mut C>,
        finish: impl Fn(Pin<&mut C>),
        is_over: impl Fn() -> bool,
    ) {
        let mut draining = false;
        poll_fn(|cx| {
            if self.member.poll_drain(cx) && !draining {
                draining = true;
                self.activity.is_hurried.set(true);
                finish(connection.as_mut());
            }
            loop {
                // An error here is a client that went away or spoke something else; hyper has answered what
                // could be answered.
                if is_over() || connection.as_mut().poll(cx).is_ready() || is_over() {
                    return Poll::Ready(());
                }
                self.activity.remember(cx);
                if self.poll_too_late(cx).is_pending() {
                    return Poll::Pending;
                }
                if !self.activity.may_say_farewell() {
                    return Poll::Ready(());
                }
                finish(connection.as_mut());
            }
        })
        .await;
    }

    fn poll_too_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(deadline) = self.activity.deadline(self.settings) else { return Poll::Pending };
            if deadline < self.timer.deadline() {
                self.timer.as_mut().reset(deadline);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // Armed for an earlier moment of this connection's life: only now is it worth setting anew.
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
    }
}

/// What a connection does, and since when.
#[derive(Debug)]
struct Activity {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    /// Requests under way; on HTTP/1 one at most.
    requests: Cell<usize>,
    /// Since when there has been something to write that the client does not take.
    blocked_since: Cell<Option<Instant>>,
    /// Whether the last request came with a body, of which some may still be on its way.
    had_body: Cell<bool>,
    /// Whether the process is ending, and nothing is waited for that need not be.
    is_hurried: Cell<bool>,
    /// Whether requests share the connection (HTTP/2). Then bytes that come are no sign of a request, and an
    /// idle client is told before the connection ends, since it may send its next request just then.
    is_shared: Cell<bool>,
    told: Cell<bool>,
    /// Wakes the connection when its last request has ended, which on HTTP/2 happens in a task of its own.
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// TLS is being agreed on.
    Handshake,
    /// Bytes of a head are expected or have begun to come.
    Head,
    /// Requests are being answered; they have limits of their own.
    Busy,
    /// Waiting for the next request.
    Idle,
}

impl Activity {
    fn new() -> Self {
        Self {
            phase: Cell::new(Phase::Head),
            since: Cell::new(Instant::now()),
            requests: Cell::new(0),
            blocked_since: Cell::new(None),
            had_body: Cell::new(false),
            is_hurried: Cell::new(false),
            is_shared: Cell::new(false),
            told: Cell::new(false),
            waker: RefCell::new(None),
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
            Phase::Handshake => Some(self.since.get() + settings.handshake_timeout),
            Phase::Head => Some(self.since.get() + settings.head_timeout),
            // The ends of answers may still be on their way to a client that was told.
            Phase::Idle if self.told.get() => {
                Some(self.since.get() + settings.idle_timeout + settings.write_timeout)
            }
            Phase::Idle => Some(self.since.get() + settings.idle_timeout),
            Phase::Busy => None,
        };
        let blocked = self.blocked_since.get().map(|since| since + settings.write_timeout);
        match (phase, blocked) {
            (Some(phase), Some(blocked)) => Some(phase.min(blocked)),
            (one, other) => one.or(other),
        }
    }

    /// Whether an idle client is still to be told that the connection ends. Once.
    fn may_say_farewell(&self) -> bool {
        self.is_shared.get() && self.blocked_since.get().is_none() && !self.told.replace(true)
    }

    fn remember(&self, cx: &Context<'_>) {
        if self.is_shared.get() && self.waker.borrow().is_none() {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
        }
    }

    fn note_read(&self) {
        if self.phase.get() == Phase::Idle && !self.is_shared.get() {
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
        if self.phase.get() == Phase::Idle && !self.is_shared.get() {
            // The end of an answer is still on its way out; the wait for the next request begins after it.
            self.since.set(Instant::now());
        }
    }
}

/// A request under way on a connection.
struct Busy(Rc<Activity>);

impl Busy {
    fn begin(activity: &Rc<Activity>) -> Self {
        activity.requests.set(activity.requests.get() + 1);
        activity.enter(Phase::Busy);
        Self(Rc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let left = self.0.requests.get() - 1;
        self.0.requests.set(left);
        if left > 0 {
            return;
        }
        self.0.enter(Phase::Idle);
        if let Some(waker) = &*self.0.waker.borrow() {
            waker.wake_by_ref();
        }
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
    /// Set once our side has ended, while the client may still be sending.
    lingering: Option<Pin<Box<Sleep>>>,
}

/// How long a client that was refused may go on sending its body. Closed at once, the connection would be
/// reset, and the reset can overtake the answer, which a client then never sees (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(10);
/// Reads between two looks at what else there is to do.
const READS_AT_ONCE: usize = 32;

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Throws away what still comes, until the client has ended too or it takes too long.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = &mut self.lingering else { return Poll::Ready(()) };
        if limit.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut bytes = [0; 8 << 10];
        for _ in 0..READS_AT_ONCE {
            let mut thrown_away = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(cx, &mut thrown_away) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !thrown_away.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
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

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.note_write(polled.is_ready());
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if !self.activity.had_body.get() || self.activity.is_hurried.get() {
                return Poll::Ready(Ok(()));
            }
            self.lingering = Some(Box::pin(sleep_until(Instant::now() + LINGER)));
        }
        self.poll_linger(cx).map(Ok)
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
    /// Counts a connection in, before its task first runs: one that is handed over just before the drain is
    /// waited for too.
    #[must_use]
    pub fn join(self: &Rc<Self>) -> Member {
        let number = self.next.get();
        self.next.set(number + 1);
        self.open.borrow_mut().insert(number, None);
        Member { connections: Rc::clone(self), number, registered: Cell::new(false) }
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
#[derive(Debug)]
pub struct Member {
    connections: Rc<Connections>,
    number: u64,
    registered: Cell<bool>,
}

impl Member {
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

impl Drop for Member {
    fn drop(&mut self) {
        let mut open = self.connections.open.borrow_mut();
        open.remove(&self.number);
        if open.is_empty() {
            self.connections.all_closed.notify_one();
        }
    }
}
