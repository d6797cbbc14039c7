//! One thread's connections to one endpoint: those that it keeps, and new ones.
//!
//! No lock and no other thread: a worker opens, keeps and closes its own. Each environment of each upstream
//! has pools of its own, so a connection that carried a live key's request never carries a test key's.

mod opening;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request};
use tokio::sync::Notify;

use super::Total;
use super::bounds::Places;
use super::budget::{Budget, Place};
use super::connection::{Connection, Received, Unanswered, Undelivered};
use super::dial::{Dialer, Stream};
use super::error::{BrokenOff, NoLease, Unopened};
use super::health::Standing;
use super::request_body::RequestBody;
use super::sharing::{Carrier, Sharing};
use super::tls::Needs;
use super::{Protocol, Timeouts};
use crate::telemetry::Event;
use crate::vocabulary::clock::Clock;

/// Greatest number of unused connections.
const KEPT_AT_MOST: usize = 256;
/// The share of its greatest age, and of its greatest number of requests, that a connection has at least. Each has its own by chance,
/// so that those that were opened together do not end together.
const LEAST_SHARE: f32 = 0.75;

/// How long a connection is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// From its beginning until its last request begins. A connection that is always in use is never idle for long, so without an
    /// end a load balancer in front of the servers could not move it to another one.
    pub age: Total,
    /// `None`: any number.
    pub requests: Option<u32>,
}

impl Default for Life {
    fn default() -> Self {
        Self { age: Total::AtMost(Duration::from_mins(1)), requests: None }
    }
}

impl Life {
    /// The age of one connection.
    fn age_of_one(&self) -> Option<Duration> {
        match self.age {
            Total::Unlimited => None,
            Total::AtMost(age) => Some(age.mul_f32(1.0 - fastrand::f32() * (1.0 - LEAST_SHARE))),
        }
    }

    /// The number of requests of one connection, at least 1.
    fn requests_of_one(&self) -> u64 {
        let Some(most) = self.requests.map(u64::from) else { return u64::MAX };
        let least = (most as f32 * LEAST_SHARE).ceil() as u64;
        fastrand::u64(least.clamp(1, most)..=most)
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    dialer: Dialer,
    standing: Standing,
    room: Room,
    idle_timeout: Duration,
    silence: Duration,
    protocol: Protocol,
    life: Life,
    kept: RefCell<Vec<Kept>>,
    sharing: Rc<Sharing>,
    /// Requests that have a lease or wait for one.
    in_flight: Cell<usize>,
    /// Requests that were answered, modulo 2³².
    answered: Cell<u32>,
    /// Whether no more requests come here, so that no connection is worth keeping.
    retired: Cell<bool>,
    clock: Clock,
}

/// Where the connections of a pool have their places.
#[derive(Clone, Debug)]
pub(super) struct Room {
    pub(super) budget: Budget,
    /// `None`: the upstream has no limit of its own.
    pub(super) of_upstream: Option<Places>,
    /// See [`Bounds::idle`](super::bounds::Bounds::idle).
    pub(super) idle: Arc<Notify>,
}

impl Room {
    /// # Errors
    /// Where there is no place in time.
    async fn place(&self) -> Result<Place, NoLease> {
        let of_upstream = match &self.of_upstream {
            Some(places) => Some(places.place(&self.idle).await.ok_or(NoLease::Full)?),
            None => None,
        };
        let place = self.budget.place().await.ok_or(NoLease::Crowded)?;
        Ok(place.with(of_upstream))
    }

    /// Whether so few places are left that none may be kept without use.
    fn is_tight(&self) -> bool {
        self.budget.is_tight() || self.is_wanted()
    }

    /// Whether a request waits for a place that the upstream has.
    fn is_wanted(&self) -> bool {
        self.of_upstream.as_ref().is_some_and(Places::is_wanted)
    }
}

#[derive(Debug)]
struct Kept {
    open: Open,
    since: Instant,
}

/// An open connection in its place.
#[derive(Debug)]
struct Open {
    connection: Connection,
    /// When the connection is too old to be kept; `None` for never.
    until: Option<Instant>,
    /// How many requests it may still carry, with the one that it carries.
    requests_left: u64,
    /// That of the connection. Where others share it, that of this request: it takes as much memory as one that has a connection
    /// to itself.
    place: Place,
    /// The connection that others share.
    carrier: Option<Rc<Carrier>>,
}

/// A connection for one request. Dropping the lease closes the connection; [`Lease::release`] keeps it for the
/// next request.
#[derive(Debug)]
pub(super) struct Lease {
    open: Open,
    is_reused: bool,
    request: InFlight,
}

/// A request at this endpoint, counted until this is dropped.
#[derive(Debug)]
struct InFlight(Rc<Pool>);

impl InFlight {
    fn begin(pool: &Rc<Pool>) -> Self {
        pool.in_flight.set(pool.in_flight.get() + 1);
        Self(Rc::clone(pool))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

impl Lease {
    /// Whether the connection carried a request before.
    pub(super) const fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// See [`Connection::send`].
    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Received, Undelivered>> + use<> {
        self.open.connection.send(request)
    }

    /// After a request broke off: what was sent, if not a byte came after it. Once.
    pub(super) fn unanswered(&self) -> Option<Unanswered> {
        self.open.connection.unanswered()
    }

    /// See [`Connection::is_waiting`].
    pub(super) fn is_waiting(&self) -> bool {
        self.open.connection.is_waiting()
    }

    /// See [`Connection::take_links`].
    pub(super) fn take_links(&self, cx: &Context<'_>) -> Vec<HeaderValue> {
        self.open.connection.take_links(cx)
    }

    /// See [`Connection::forget_links`].
    pub(super) fn forget_links(&self) {
        self.open.connection.forget_links();
    }

    /// See [`Connection::abandon`].
    pub(super) fn abandon(&self) {
        self.open.connection.abandon();
    }

    /// See [`Connection::spoke_unasked`].
    pub(super) fn spoke_unasked(&self) -> Option<BrokenOff> {
        self.open.connection.spoke_unasked()
    }

    /// See [`Connection::explained`].
    pub(super) fn explained(&self, cause: BrokenOff) -> BrokenOff {
        self.open.connection.explained(cause)
    }

    /// The body of the answer broke off. Logged, since its client cannot be told why.
    pub(super) fn note_broken_body(&self, cause: impl fmt::Display) {
        let Pool { dialer, clock, .. } = &*self.request.0;
        let line = || format!("upstream {} broke off in the middle of an answer: {cause}", dialer.shown());
        Event::UpstreamBrokenBody.log_of(dialer.shown(), clock.mono(), line);
    }

    /// Gives the connection back. `answer.rs` decides when that is safe.
    pub(super) fn release(self) {
        let Self { mut open, request: InFlight(ref pool), .. } = self;
        if open.carrier.is_some() {
            return;
        }
        let now = pool.clock.mono();
        open.requests_left -= 1;
        let is_young = open.requests_left > 0 && open.until.is_none_or(|until| now < until);
        let mut kept = pool.kept.borrow_mut();
        if is_young && !open.connection.is_closed() && kept.len() < KEPT_AT_MOST && pool.may_keep() {
            kept.push(Kept { open, since: now });
        }
    }

    /// The place of the connection, which goes on as something else than HTTP.
    pub(super) fn into_place(self) -> Place {
        self.open.place
    }
}

impl Pool {
    pub(super) fn new(
        dialer: Dialer,
        standing: Standing,
        (timeouts, life, protocol): (&Timeouts, Life, Protocol),
        room: Room,
        clock: Clock,
    ) -> Self {
        Self {
            dialer,
            room,
            standing,
            idle_timeout: timeouts.idle,
            silence: timeouts.silence,
            protocol,
            life,
            kept: RefCell::default(),
            sharing: Rc::default(),
            in_flight: Cell::new(0),
            answered: Cell::new(0),
            retired: Cell::new(false),
            clock,
        }
    }

    pub(super) const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The name of its server in messages.
    pub(super) const fn shown(&self) -> &str {
        self.dialer.shown()
    }

    /// `None` for a socket of this machine.
    pub(super) const fn address(&self) -> Option<SocketAddr> {
        self.dialer.address()
    }

    /// The requests that have a connection to it, or wait for one.
    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// The requests that were answered, modulo 2³².
    pub(super) const fn answered(&self) -> u32 {
        self.answered.get()
    }

    pub(super) fn note_answer(&self) {
        self.answered.set(self.answered.get().wrapping_add(1));
    }

    pub(super) const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// A place on a connection that is there, if there is one.
    pub(super) fn lease_kept(self: &Rc<Self>, needs: Needs) -> Option<Lease> {
        if self.sharing.is_used() && needs == Needs::Nothing {
            let place = self.room.budget.place_at_once()?;
            return self.sharing.take(self.clock.mono()).map(|carrier| self.lease_on(carrier, place, true));
        }
        self.take().map(|open| Lease { open, is_reused: true, request: InFlight::begin(self) })
    }

    /// The connection used last, if it is still good: the others may then age and be closed.
    fn take(&self) -> Option<Open> {
        let mut all = self.kept.borrow_mut();
        if all.is_empty() {
            return None;
        }
        let now = self.clock.mono();
        while let Some(kept) = all.pop() {
            if kept.open.connection.is_ready() && !self.is_too_old(&kept, now) {
                return Some(kept.open);
            }
        }
        None
    }

    /// The place of a connection that is opened beside the requests; `None` where none is free.
    pub(super) fn place_at_once(&self) -> Option<Place> {
        self.room.budget.place_at_once()
    }

    /// Opens a stream beside the requests. See [`Dialer::dial`].
    ///
    /// # Errors
    /// See there.
    pub(super) async fn reach(&self, within: Duration) -> Result<Stream, Unopened> {
        self.dialer.dial(within, Needs::Nothing).await
    }

    fn note_connecting(&self, failure: Option<&dyn fmt::Display>, now: Instant) {
        self.standing.note_connecting(self.shown(), failure, now);
    }

    /// Whether a connection may be kept for a request that has not come.
    fn may_keep(&self) -> bool {
        !self.retired.get() && !self.room.is_tight()
    }

    /// Closes the connections that have been unused for too long. To be called once a second.
    pub(super) fn sweep(&self) {
        let now = self.clock.mono();
        let may_keep = self.may_keep() && !self.room.budget.is_short();
        self.kept.borrow_mut().retain(|kept| may_keep && !self.is_too_old(kept, now));
        self.sharing.sweep(now, may_keep, self.idle_timeout);
    }

    /// Closes the unused connections, if a request waits for the place of one.
    pub(super) fn give_way(&self) {
        if self.room.is_wanted() {
            self.kept.borrow_mut().clear();
            self.sharing.give_way();
        }
    }

    /// Closes all unused connections and keeps none from now on. Requests under way go on.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.kept.borrow_mut().clear();
        self.sharing.retire();
    }

    /// Whether no more requests come here.
    pub(super) const fn is_retired(&self) -> bool {
        self.retired.get()
    }

    fn is_too_old(&self, kept: &Kept, now: Instant) -> bool {
        now.saturating_duration_since(kept.since) >= self.idle_timeout
            || kept.open.until.is_some_and(|until| now >= until)
    }
}
