//! One thread's connections to one endpoint: those that it keeps, and new ones.
//!
//! No lock and no other thread: a worker opens, keeps and closes its own. Each environment of each upstream
//! has pools of its own, so a connection that carried a live key's request never carries a test key's.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::Request;

use super::Timeouts;
use super::connection::{Connection, Received, Undelivered};
use super::dial::Dialer;
use super::endpoint::Endpoint;
use super::health::Reachable;
use super::request_body::RequestBody;
use crate::vocabulary::clock::Clock;

/// Greatest number of unused connections.
const KEPT_AT_MOST: usize = 256;

#[derive(Debug)]
pub(super) struct Pool {
    dialer: Dialer,
    reachable: Reachable,
    connect_timeout: Duration,
    idle_timeout: Duration,
    kept: RefCell<Vec<Kept>>,
    /// Whether no more requests come here, so that no connection is worth keeping.
    retired: Cell<bool>,
    clock: Clock,
}

#[derive(Debug)]
struct Kept {
    connection: Connection,
    since: Instant,
}

/// A connection for one request. Dropping the lease closes the connection; [`Lease::release`] keeps it for the
/// next request.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Connection,
    is_reused: bool,
    pool: Rc<Pool>,
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
        self.connection.send(request)
    }

    /// Gives the connection back. `answer.rs` decides when that is safe.
    pub(super) fn release(self) {
        let Self { connection, pool, .. } = self;
        let mut kept = pool.kept.borrow_mut();
        if !connection.is_closed() && kept.len() < KEPT_AT_MOST && !pool.retired.get() {
            kept.push(Kept { connection, since: pool.clock.mono() });
        }
    }
}

impl Pool {
    pub(super) fn new(endpoint: Endpoint, reachable: Reachable, timeouts: &Timeouts, clock: Clock) -> Self {
        Self {
            dialer: Dialer::new(endpoint),
            reachable,
            connect_timeout: timeouts.connect,
            idle_timeout: timeouts.idle,
            kept: RefCell::default(),
            retired: Cell::new(false),
            clock,
        }
    }

    /// A kept connection, else a new one; `None` if the endpoint cannot be connected to.
    pub(super) async fn lease(self: &Rc<Self>) -> Option<Lease> {
        let (connection, is_reused) = match self.take() {
            Some(connection) => (connection, true),
            None => (self.open().await?, false),
        };
        Some(Lease { connection, is_reused, pool: Rc::clone(self) })
    }

    /// The connection used last, if it is still good: the others may then age and be closed.
    fn take(&self) -> Option<Connection> {
        let mut all = self.kept.borrow_mut();
        if all.is_empty() {
            return None;
        }
        let now = self.clock.mono();
        while let Some(kept) = all.pop() {
            if kept.connection.is_ready() && !self.is_too_old(&kept, now) {
                return Some(kept.connection);
            }
        }
        None
    }

    async fn open(&self) -> Option<Connection> {
        let opening = async { Connection::open(self.dialer.dial(&self.clock).await?).await };
        let opened = tokio::time::timeout(self.connect_timeout, opening)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        self.reachable.note(self.dialer.endpoint(), opened.as_ref().err());
        opened.ok()
    }

    /// Closes the connections that have been unused for too long.
    pub(super) fn sweep(&self) {
        let now = self.clock.mono();
        self.kept.borrow_mut().retain(|kept| !self.is_too_old(kept, now));
    }

    /// Closes all unused connections and keeps none from now on. What is under way goes on.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.kept.borrow_mut().clear();
    }

    fn is_too_old(&self, kept: &Kept, now: Instant) -> bool {
        now.saturating_duration_since(kept.since) >= self.idle_timeout
    }
}
