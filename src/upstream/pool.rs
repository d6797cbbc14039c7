//! One thread's connections to one endpoint: those that it keeps, and new ones.
//!
//! No lock and no other thread: a worker opens, keeps and closes its own. Each environment of each upstream
//! has pools of its own, so a connection that carried a live key's request never carries a test key's.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use tokio::sync::Notify;

use super::Timeouts;
use super::bounds::Places;
use super::budget::{Budget, Place};
use super::connection::{Connection, Received, Unanswered, Undelivered};
use super::dial::{Dialer, Stream};
use super::endpoint::Endpoint;
use super::error::{BrokenOff, Unopened};
use super::health::Standing;
use super::request_body::RequestBody;
use super::tls::Identity;
use crate::telemetry::Event;
use crate::vocabulary::clock::Clock;

/// Greatest number of unused connections.
const KEPT_AT_MOST: usize = 256;
/// How old a connection to an endpoint with a name gets, at most, before its last request begins. Each has an age of its own
/// between this and three quarters of it, so that those that were opened together do not end together.
///
/// So that a name whose addresses change is followed under steady traffic too: a connection that is always in use is
/// never idle for long. With the age of what the resolver said it takes 65 seconds in all.
const GREATEST_AGE: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Pool {
    dialer: Dialer,
    standing: Standing,
    room: Room,
    idle_timeout: Duration,
    kept: RefCell<Vec<Kept>>,
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
    place: Place,
}

/// Why there is no connection for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLease {
    /// The endpoint cannot be connected to.
    Unreachable,
    /// The endpoint can be connected to, and there was no handshake of TLS.
    NoTls,
    /// The process has as many connections as it may.
    Crowded,
    /// The upstream has as many as it may.
    Full,
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
        let endpoint = dialer.endpoint().to_string();
        let line = || format!("upstream {endpoint} broke off in the middle of an answer: {cause}");
        Event::UpstreamBrokenBody.log_of(&endpoint, clock.mono(), line);
    }

    /// Gives the connection back. `answer.rs` decides when that is safe.
    pub(super) fn release(self) {
        let Self { open, request: InFlight(ref pool), .. } = self;
        let now = pool.clock.mono();
        let is_young = open.until.is_none_or(|until| now < until);
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
        (endpoint, identity): (Endpoint, &Arc<Identity>),
        standing: Standing,
        timeouts: &Timeouts,
        room: Room,
        clock: Clock,
    ) -> Self {
        Self {
            dialer: Dialer::new(endpoint, room.budget.places(), identity),
            room,
            standing,
            idle_timeout: timeouts.idle,
            kept: RefCell::default(),
            in_flight: Cell::new(0),
            answered: Cell::new(0),
            retired: Cell::new(false),
            clock,
        }
    }

    pub(super) const fn standing(&self) -> &Standing {
        &self.standing
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        self.dialer.endpoint()
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

    /// A kept connection, else a new one, within the time `connect`.
    pub(super) async fn lease(self: &Rc<Self>, connect: Duration) -> Result<Lease, NoLease> {
        match self.take() {
            Some(open) => Ok(Lease { open, is_reused: true, request: InFlight::begin(self) }),
            None => self.lease_new(connect).await,
        }
    }

    /// A new connection, within the time `connect`.
    pub(super) async fn lease_new(self: &Rc<Self>, connect: Duration) -> Result<Lease, NoLease> {
        // Boxed, since it is rare and would make every request larger.
        let request = InFlight::begin(self);
        let open = Box::pin(self.open(connect)).await?;
        Ok(Lease { open, is_reused: false, request })
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
        self.dialer.dial(within, &self.clock).await
    }

    /// Opens a connection, for one request or for those that come.
    ///
    /// # Errors
    /// See [`Dialer::dial`].
    pub(super) async fn connect(&self, within: Duration) -> Result<Connection, Unopened> {
        // What follows the stream waits for nothing.
        Connection::open(self.reach(within).await?).await.map_err(Unopened::Connect)
    }

    async fn open(&self, within: Duration) -> Result<Open, NoLease> {
        let place = self.room.place().await?;
        let opened = self.connect(within).await;
        let failure = opened.as_ref().err().map(|unopened| unopened as &dyn fmt::Display);
        self.standing.note_connecting(self.dialer.endpoint(), failure, self.clock.mono());
        let connection = opened.map_err(|unopened| match unopened {
            Unopened::Connect(_) => NoLease::Unreachable,
            Unopened::Tls(_) => NoLease::NoTls,
        })?;
        let until = self.dialer.may_move().then(|| {
            let age = GREATEST_AGE.mul_f32(1.0 - fastrand::f32() / 4.0);
            self.clock.mono() + age
        });
        Ok(Open { connection, until, place })
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
    }

    /// Closes the unused connections, if a request waits for the place of one.
    pub(super) fn give_way(&self) {
        if self.room.is_wanted() {
            self.kept.borrow_mut().clear();
        }
    }

    /// Closes all unused connections and keeps none from now on. Requests under way go on.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.kept.borrow_mut().clear();
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
