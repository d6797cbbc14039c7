//! How many requests and connections an upstream may have at once, of all threads together.
//!
//! Each list of servers has its own bounds: those for live keys, and those for test keys; where these are the same servers, the
//! bounds are the same too. Counts outlive the configuration: what took a place under one limit counts under the next one too.
//!
//! A place is taken and given back with one atomic operation. Without a limit nothing is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::loaded::Loaded;
use crate::vocabulary::key::Environment;

/// How long a request waits for the place of its connection. A request that may be in flight has one as soon as the threads have
/// closed what they keep unused.
const PATIENCE: Duration = Duration::from_secs(2);

/// The limits of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections, in use and kept; `None` for as many as the process may have.
    pub connections: Option<usize>,
    /// Requests in flight: from before they are sent to the end of their answers, or of their WebSockets.
    pub requests: Option<usize>,
    /// Whether a connection may carry many requests at a time.
    pub are_connections_shared: bool,
    /// Requests that wait until they may be in flight.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: None, requests: None, waiting: 1024, are_connections_shared: false }
    }
}

impl Limits {
    /// The most requests in flight. Each needs a connection, unless they share them.
    fn in_flight(&self) -> Option<usize> {
        let connections = self.connections.filter(|_| !self.are_connections_shared);
        [self.requests, connections].into_iter().flatten().min()
    }
}

/// A number of places, for requests or for connections.
#[derive(Clone, Debug)]
pub struct Places {
    at_most: usize,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: AtomicUsize,
    /// How many wait for a place in [`Places::place`].
    wanted: AtomicUsize,
    given_back: Notify,
}

impl Places {
    fn new(at_most: usize, state: &Arc<State>) -> Self {
        Self { at_most, state: Arc::clone(state) }
    }

    /// So many places.
    #[must_use]
    pub fn of(at_most: usize) -> Self {
        Self::new(at_most, &Arc::default())
    }

    #[must_use]
    pub const fn at_most(&self) -> usize {
        self.at_most
    }

    /// Whether these are the same places, and as many.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.at_most == other.at_most && Arc::ptr_eq(&self.state, &other.state)
    }

    #[must_use]
    pub fn taken(&self) -> usize {
        self.state.taken.load(Ordering::Relaxed)
    }

    /// The places that are free; none while there are more taken than a later configuration allows.
    #[must_use]
    pub fn left(&self) -> usize {
        self.at_most.saturating_sub(self.taken())
    }

    /// Takes a place, if one is free; it must be [given back](Places::give_back).
    #[must_use]
    pub fn take(&self) -> bool {
        let more = |taken: usize| (taken < self.at_most).then_some(taken + 1);
        self.state.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    pub fn give_back(&self) {
        // All operations are in one order: who begins to wait sees this place, or is seen to want it.
        self.state.taken.fetch_sub(1, Ordering::SeqCst);
        if self.is_wanted() {
            self.state.given_back.notify_one();
        }
    }

    /// Whether somebody waits for a place.
    pub(super) fn is_wanted(&self) -> bool {
        self.state.wanted.load(Ordering::SeqCst) > 0
    }

    /// A place, as soon as one is free; `None` where there is none in time. `idle` is told that places are kept without use.
    pub(super) async fn place(&self, idle: &Notify) -> Option<Occupied> {
        if self.take() {
            return Some(Occupied(self.clone()));
        }
        let _wanting = Wanting::begin(&self.state.wanted);
        let taking = async {
            loop {
                let given_back = self.state.given_back.notified();
                if self.take() {
                    return;
                }
                idle.notify_waiters();
                given_back.await;
            }
        };
        timeout(PATIENCE, taking).await.is_ok().then(|| Occupied(self.clone()))
    }
}

/// Somebody waits for a place, until this is dropped.
struct Wanting<'w>(&'w AtomicUsize);

impl<'w> Wanting<'w> {
    fn begin(wanted: &'w AtomicUsize) -> Self {
        wanted.fetch_add(1, Ordering::SeqCst);
        Self(wanted)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A place that is given back when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Occupied(Places);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// The bounds of one list of servers.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// For requests in flight.
    pub requests: Option<Places>,
    /// For connections.
    pub connections: Option<Places>,
    /// How many requests may wait.
    pub waiting: usize,
    counts: Counts,
}

/// What was counted. Kept while there is no limit, for the next one.
#[derive(Clone, Debug, Default)]
struct Counts {
    requests: Arc<State>,
    connections: Arc<State>,
}

impl Bound {
    fn new(limits: &Limits, counts: Counts) -> Self {
        Self {
            requests: limits.in_flight().map(|at_most| Places::new(at_most, &counts.requests)),
            connections: limits.connections.map(|at_most| Places::new(at_most, &counts.connections)),
            waiting: limits.waiting,
            counts,
        }
    }

    /// Whether both are the bounds of the same servers.
    #[must_use]
    pub fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.counts.requests, &other.counts.requests)
    }
}

/// The bounds of all upstreams of a configuration.
#[derive(Debug, Default)]
pub struct Bounds {
    all: Vec<(Box<str>, [Bound; 2])>,
    idle: Arc<Notify>,
}

impl Bounds {
    /// The bounds of these upstreams. One that `before` has as well keeps its counts.
    #[must_use]
    pub fn new(upstreams: &[Loaded], before: &Self) -> Self {
        let of = |loaded: &Loaded| {
            let settings = loaded.settings();
            let [live, test] = Environment::ALL.map(|one| before.of(&settings.name, one).counts);
            let were_shared = Arc::ptr_eq(&live.requests, &test.requests);
            let test = if settings.live == settings.test {
                live.clone()
            } else if were_shared {
                Counts::default()
            } else {
                test
            };
            (settings.name.clone(), [live, test].map(|counts| Bound::new(&settings.limits, counts)))
        };
        Self { all: upstreams.iter().map(of).collect(), idle: Arc::clone(&before.idle) }
    }

    /// The bounds of the servers of `upstream` for this environment.
    #[must_use]
    pub fn of(&self, upstream: &str, environment: Environment) -> Bound {
        let known = self.all.iter().find(|(name, _)| **name == *upstream);
        known.map_or_else(Bound::default, |(_, bounds)| bounds[environment as usize].clone())
    }

    /// Tells that places are wanted which threads keep without use.
    #[must_use]
    pub const fn idle(&self) -> &Arc<Notify> {
        &self.idle
    }
}
