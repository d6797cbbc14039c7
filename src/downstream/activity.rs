//! The activity of a connection and its beginning: the stream and the requests write it, the watchdog reads it.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// The activity of a connection, and its beginning.
#[derive(Debug)]
pub(super) struct Activity {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    /// Requests under way; on HTTP/1 at most one.
    requests: Cell<usize>,
    /// Since when the client takes nothing of what there is to write.
    blocked_since: Cell<Option<Instant>>,
    /// Whether a request has come.
    has_served: Cell<bool>,
    /// Whether the last request came with a body; a part of it may still be on its way.
    had_body: Cell<bool>,
    /// Whether the process is ending, so that every wait that can be left out is left out.
    is_hurried: Cell<bool>,
    /// Whether requests share the connection (HTTP/2). Then bytes from the client do not mean that a request
    /// begins. And an idle client is told that the connection ends, because it may send its next request at
    /// that moment.
    is_shared: Cell<bool>,
    told: Cell<bool>,
    /// Whether an answer is being written whose body ends with the connection (HTTP/1.0).
    has_open_end: Cell<bool>,
    /// Wakes the connection when its last request has ended. On HTTP/2 that happens in another task.
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The TLS handshake is under way.
    Handshake,
    /// The bytes of a request head are expected, or have begun to come.
    Head,
    /// Requests are being answered. They have limits of their own.
    Busy,
    /// The connection waits for the next request.
    Idle,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            phase: Cell::new(Phase::Head),
            since: Cell::new(Instant::now()),
            requests: Cell::new(0),
            blocked_since: Cell::new(None),
            has_served: Cell::new(false),
            had_body: Cell::new(false),
            is_hurried: Cell::new(false),
            is_shared: Cell::new(false),
            told: Cell::new(false),
            has_open_end: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        if phase != Phase::Busy {
            self.since.set(Instant::now());
        }
    }

    pub(super) const fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Since when the phase lasts. While the connection is busy, this is the beginning of the phase before.
    pub(super) const fn since(&self) -> Instant {
        self.since.get()
    }

    /// Since when the client takes nothing of what there is to write; `None` while it takes it.
    pub(super) const fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since.get()
    }

    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.phase.get() == Phase::Busy
    }

    /// Whether a request has come.
    pub(super) const fn has_served(&self) -> bool {
        self.has_served.get()
    }

    /// A part of the next head was already there when the answer before it had been written.
    pub(super) fn note_head(&self) {
        if self.phase.get() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    /// An answer has begun whose body ends with the connection. Unless the connection is shut down in order, it must
    /// end with a reset: the client has no other way to tell half a body from a whole one.
    pub(super) fn note_open_end(&self) {
        self.has_open_end.set(true);
    }

    /// Keygate has ended its direction of the connection in order.
    pub(super) fn note_end(&self) {
        self.has_open_end.set(false);
    }

    /// Whether the connection ends in the middle of a body that only its end would end.
    pub(super) const fn must_reset(&self) -> bool {
        self.has_open_end.get()
    }

    /// Requests share the connection from now on: it speaks HTTP/2.
    pub(super) fn share(&self) {
        self.is_shared.set(true);
        self.enter(Phase::Idle);
    }

    /// The process is ending.
    pub(super) fn hurry(&self) {
        self.is_hurried.set(true);
    }

    /// Whether the connection can be told to finish and no request is lost. hyper closes a kept connection at once, even
    /// where a part of the next head has come.
    pub(super) fn may_finish(&self) -> bool {
        self.phase.get() != Phase::Head || !self.has_served.get()
    }

    /// Whether the client may still be sending a body that nothing reads any more.
    pub(super) const fn may_linger(&self) -> bool {
        self.had_body.get() && !self.is_hurried.get()
    }

    /// Whether the client was told that the connection ends.
    pub(super) const fn is_told(&self) -> bool {
        self.told.get()
    }

    /// Whether an idle client must now be told that the connection ends. True once at most.
    pub(super) fn may_say_farewell(&self) -> bool {
        self.is_shared.get() && self.blocked_since.get().is_none() && !self.told.replace(true)
    }

    /// Keeps the waker of the connection's task, where the end of a request does not wake it by itself.
    pub(super) fn remember(&self, cx: &Context<'_>) {
        if self.is_shared.get() && self.waker.borrow().is_none() {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
        }
    }

    /// A request has come whose body the client may still be sending when its answer ends. HTTP/2 does not say
    /// so: there the stream alone is reset.
    pub(super) fn note_body(&self, has_body: bool) {
        self.had_body.set(has_body);
    }

    /// Bytes have come from the client.
    pub(super) fn note_read(&self) {
        if self.phase.get() == Phase::Idle && !self.is_shared.get() {
            self.enter(Phase::Head);
        }
    }

    /// There was something to write, and the client's side of the connection took it or did not.
    pub(super) fn note_write(&self, taken: bool) {
        if !taken {
            if self.blocked_since.get().is_none() {
                self.blocked_since.set(Some(Instant::now()));
            }
            return;
        }
        self.blocked_since.set(None);
        if self.phase.get() == Phase::Idle && !self.is_shared.get() {
            // The end of an answer is still being written. The wait for the next request begins after it.
            self.since.set(Instant::now());
        }
    }
}

/// A request under way on a connection, from its head to the end of its answer.
pub(super) struct Busy(Rc<Activity>);

impl Busy {
    pub(super) fn begin(activity: &Rc<Activity>) -> Self {
        activity.requests.set(activity.requests.get() + 1);
        activity.has_served.set(true);
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
    pub(super) struct Tracked<B> {
        #[pin]
        body: B,
        _busy: Busy,
    }
}

impl<B> Tracked<B> {
    pub(super) const fn new(body: B, busy: Busy) -> Self {
        Self { body, _busy: busy }
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
