//! How many connections to upstreams the process may have: those in use, those that are kept, those that are being opened.
//!
//! Each takes a file descriptor, and those that are left are for others: clients, the store, operators. A request on a
//! connection that is there already asks nothing here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::bounds::Occupied;

/// How long a request waits for the place of a new connection. Within a second every thread has closed the connections that
/// it keeps unused.
const PATIENCE: Duration = Duration::from_secs(2);

/// The places of connections to upstreams.
#[derive(Clone, Debug)]
pub struct Budget {
    places: Arc<Semaphore>,
    at_most: usize,
}

/// The place of one connection; given back when it is dropped.
#[derive(Debug)]
#[must_use]
#[expect(dead_code, reason = "they give their places back")]
pub struct Place {
    of_process: OwnedSemaphorePermit,
    of_upstream: Option<Occupied>,
}

impl Place {
    const fn new(of_process: OwnedSemaphorePermit) -> Self {
        Self { of_process, of_upstream: None }
    }

    /// A place that is also one of those that an upstream has.
    pub(super) fn with(self, of_upstream: Option<Occupied>) -> Self {
        Self { of_upstream, ..self }
    }
}

impl Budget {
    /// `at_most` connections; at least one.
    #[must_use]
    pub fn new(at_most: usize) -> Self {
        let at_most = at_most.clamp(1, Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(at_most)), at_most }
    }

    #[must_use]
    pub const fn at_most(&self) -> usize {
        self.at_most
    }

    /// The places that are free.
    #[must_use]
    pub fn left(&self) -> usize {
        self.places.available_permits()
    }

    /// Whether so few places are left that none may be kept without use.
    pub(super) fn is_tight(&self) -> bool {
        self.left() < self.at_most.div_ceil(8)
    }

    /// Whether so few places are left that clients could be refused for those that are kept without use.
    pub(super) fn is_short(&self) -> bool {
        self.left() < self.at_most.div_ceil(2)
    }

    /// The places, for attempts to connect that run side by side.
    pub(super) fn places(&self) -> Arc<Semaphore> {
        Arc::clone(&self.places)
    }

    /// A place, if one is free.
    pub(super) fn place_at_once(&self) -> Option<Place> {
        Arc::clone(&self.places).try_acquire_owned().ok().map(Place::new)
    }

    /// A place, in the order of the requests; `None` where there is none in time.
    pub async fn place(&self) -> Option<Place> {
        let place = timeout(PATIENCE, Arc::clone(&self.places).acquire_owned()).await;
        place.ok().and_then(Result::ok).map(Place::new)
    }
}
