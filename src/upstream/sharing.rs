//! One thread's connections to one endpoint that carry many requests at a time, and who opens the next one.
//!
//! A request gets a place on a connection that has one. If none has, it waits while others open connections with enough places for
//! all that wait, and else opens one. So a thousand requests that come at once open as many connections as they need, and not
//! a thousand. Those that wait are served in turn.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{Instant as Deadline, timeout_at};

use super::budget::Place;
use super::connection::{MOST_STREAMS, Shared};
use super::error::NoLease;

/// How many requests a connection is thought to carry while nothing is known of its server. Servers allow a hundred and more.
const THOUGHT: usize = 100;
/// How long a request waits for a place on a connection where no further connection can be opened.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the server speaks, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Spoken {
    #[default]
    Unknown,
    Http1,
    Http2,
}

#[derive(Debug, Default)]
pub(super) struct Sharing {
    all: RefCell<Vec<Rc<Carrier>>>,
    spoken: Cell<Spoken>,
    /// Connections that are being opened.
    opening: Cell<usize>,
    /// Requests that wait for a place.
    waiting: Cell<usize>,
    /// How many attempts to open a connection failed, and how the last one did.
    failures: Cell<(u64, Option<NoLease>)>,
    changed: Rc<Notify>,
}

/// A connection that carries many requests, in its place.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) shared: Rc<Shared>,
    /// When the connection is too old for another request; `None` for never.
    pub(super) until: Option<Instant>,
    /// How many requests it may still carry.
    pub(super) requests_left: Cell<u64>,
    /// When a request was last seen on it.
    pub(super) unused_since: Cell<Instant>,
    #[expect(dead_code, reason = "it gives its place back")]
    pub(super) place: Place,
}

impl Carrier {
    /// Whether it takes no more requests, now or later.
    fn is_over(&self, now: Instant) -> bool {
        self.requests_left.get() == 0
            || self.until.is_some_and(|until| now >= until)
            || self.shared.is_closed()
    }
}

/// How a request that waited goes on.
pub(super) enum Turn<T> {
    /// On a connection that is there.
    Carried(T),
    /// It opens a connection.
    Opens(Opening),
}

/// A connection that is being opened; others wait for it until this is dropped.
#[derive(Debug)]
pub(super) struct Opening(Rc<Sharing>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
        self.0.changed.notify_waiters();
    }
}

impl Opening {
    /// It came to nothing: those that waited for it hear why.
    pub(super) fn fail(self, why: NoLease) {
        let (count, _) = self.0.failures.get();
        self.0.failures.set((count + 1, Some(why)));
    }

    /// The server speaks HTTP/1.1.
    pub(super) fn found_http1(self) {
        self.0.spoken.set(Spoken::Http1);
    }
}

/// A request that waits.
struct Waiting<'s>(&'s Sharing);

impl<'s> Waiting<'s> {
    fn begin(sharing: &'s Sharing) -> Self {
        sharing.waiting.set(sharing.waiting.get() + 1);
        Self(sharing)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

impl Sharing {
    /// What is told when a connection takes a request, or ends.
    pub(super) fn changed(&self) -> Rc<Notify> {
        Rc::clone(&self.changed)
    }

    /// Whether there are such connections.
    pub(super) fn is_used(&self) -> bool {
        self.spoken.get() == Spoken::Http2
    }

    /// A connection with a place for one more request, which is counted. None while others wait: it is theirs.
    pub(super) fn take(&self, now: Instant) -> Option<Rc<Carrier>> {
        if self.waiting.get() > 0 { None } else { self.take_first(now) }
    }

    /// The same for one whose turn it is.
    pub(super) fn take_first(&self, now: Instant) -> Option<Rc<Carrier>> {
        let mut all = self.all.borrow_mut();
        let mut is_over = false;
        let found = all.iter().find(|carrier| {
            let is_usable = !carrier.is_over(now);
            is_over |= !is_usable;
            is_usable && carrier.shared.has_place()
        });
        let found = found.cloned();
        if is_over {
            all.retain(|carrier| !carrier.is_over(now));
        }
        let found = found?;
        found.requests_left.set(found.requests_left.get() - 1);
        Some(found)
    }

    /// Whether a place is free.
    fn has_place(&self, now: Instant) -> bool {
        self.all.borrow().iter().any(|carrier| !carrier.is_over(now) && carrier.shared.has_place())
    }

    /// A new connection, which has a place for the request that opened it.
    pub(super) fn add(&self, carrier: &Rc<Carrier>) {
        self.spoken.set(Spoken::Http2);
        self.all.borrow_mut().push(Rc::clone(carrier));
    }

    /// Waits until this request can go on; `look` finds a place, for one that is its turn. `None` where the server speaks HTTP/1.1,
    /// so that there is nothing to share.
    ///
    /// # Errors
    /// The connection that it waited for could not be opened, or there was no place in time.
    pub(super) async fn turn<T>(
        self: &Rc<Self>,
        now: impl Fn() -> Instant,
        look: impl Fn(&Self) -> Option<T>,
    ) -> Result<Option<Turn<T>>, NoLease> {
        let until = Deadline::now() + PATIENCE;
        let (failed, _) = self.failures.get();
        let mut is_its_turn = self.waiting.get() == 0;
        loop {
            if self.spoken.get() == Spoken::Http1 {
                return Ok(None);
            }
            if is_its_turn && let Some(found) = look(self) {
                // There may be more: the next one looks.
                if self.waiting.get() > 0 && self.has_place(now()) {
                    self.changed.notify_one();
                }
                return Ok(Some(Turn::Carried(found)));
            }
            match self.failures.get() {
                (count, Some(why)) if count > failed => return Err(why),
                _ => {}
            }
            if self.waiting.get() >= self.coming() * self.places_of_one() {
                self.opening.set(self.opening.get() + 1);
                return Ok(Some(Turn::Opens(Opening(Rc::clone(self)))));
            }
            let waiting = Waiting::begin(self);
            let is_told = timeout_at(until, self.changed.notified()).await.is_ok();
            drop(waiting);
            if !is_told {
                return Err(NoLease::Full);
            }
            is_its_turn = true;
        }
    }

    /// Waits until `look` finds a place, for a request that cannot open a connection before.
    pub(super) async fn freed<T>(&self, look: impl Fn(&Self) -> Option<T>) -> T {
        loop {
            self.changed.notified().await;
            if let Some(found) = look(self) {
                return found;
            }
        }
    }

    /// The connections that are being opened, and those whose servers have not yet said how many requests they take.
    fn coming(&self) -> usize {
        let is_coming = |carrier: &&Rc<Carrier>| !carrier.shared.is_settled() && !carrier.shared.is_closed();
        self.opening.get() + self.all.borrow().iter().filter(is_coming).count()
    }

    /// How many requests one connection is thought to carry: as many as the last one of which that is known.
    fn places_of_one(&self) -> usize {
        let all = self.all.borrow();
        let known = all.iter().rev().find(|carrier| carrier.shared.is_settled());
        known.map_or(THOUGHT, |carrier| carrier.shared.allowed()).clamp(1, MOST_STREAMS)
    }

    /// Closes what is not used, and what was not for so long; and lets what is over end with its last request.
    pub(super) fn sweep(&self, now: Instant, may_keep: bool, idle: Duration) {
        self.all.borrow_mut().retain(|carrier| {
            let is_unused = carrier.shared.in_flight() == 0;
            if !is_unused {
                carrier.unused_since.set(now);
            }
            let is_old = now.saturating_duration_since(carrier.unused_since.get()) >= idle;
            !carrier.is_over(now) && !(is_unused && (is_old || !may_keep))
        });
    }

    /// Closes those that are not used.
    pub(super) fn give_way(&self) {
        self.all.borrow_mut().retain(|carrier| carrier.shared.in_flight() > 0);
    }

    /// Takes no more requests. Those under way go on.
    pub(super) fn retire(&self) {
        self.all.borrow_mut().clear();
    }
}
