//! All counts of one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use prometheus::proto::MetricFamily;

use super::cell::change;
use super::connections::{
    self, Connected, CutConnections, Excess, OpenConnections, ResetStreams, Unserved, UnservedConnections,
};
use super::decisions::{self, Decisions};
use super::named::Named;
use super::requests::{self, RemovedFields, RouteCells, UpstreamCells};
use crate::vocabulary::believed::Removed;
use crate::vocabulary::cache_level::Level;
use crate::vocabulary::reason::Reason;

/// All counts of one thread.
///
/// The cells of routes and upstreams are found by their names when a policy is loaded, and kept by the part that
/// counts in them. They stay when a later policy no longer has the name: a count never goes back.
#[derive(Debug)]
pub struct Cells {
    routes: Named<RouteCells>,
    upstreams: Named<UpstreamCells>,
    in_flight: AtomicI64,
    connections: Arc<OpenConnections>,
    cut_connections: CutConnections,
    unserved_connections: UnservedConnections,
    reset_streams: Arc<ResetStreams>,
    decisions: Decisions,
    removed_fields: RemovedFields,
}

impl Cells {
    pub(super) fn new() -> Self {
        Self {
            routes: Named::new(),
            upstreams: Named::new(),
            in_flight: AtomicI64::new(0),
            connections: Arc::default(),
            cut_connections: CutConnections::default(),
            unserved_connections: UnservedConnections::default(),
            reset_streams: Arc::default(),
            decisions: Decisions::new(),
            removed_fields: RemovedFields::default(),
        }
    }

    /// The cells of a route, by its id. `None`: of the requests that match no route.
    #[must_use]
    pub fn route(&self, id: Option<&str>) -> Arc<RouteCells> {
        self.routes.find_or_make(id.unwrap_or(NO_ROUTE), RouteCells::new)
    }

    /// The cells of an upstream, by its name.
    #[must_use]
    pub fn upstream(&self, name: &str) -> Arc<UpstreamCells> {
        self.upstreams.find_or_make(name, UpstreamCells::new)
    }

    /// A request has begun.
    pub fn begin(&self) {
        change(&self.in_flight, 1);
    }

    /// A request has ended.
    pub fn end(&self) {
        change(&self.in_flight, -1);
    }

    /// A client has connected.
    #[must_use]
    pub fn connected(&self) -> Connected {
        Connected::new(Arc::clone(&self.connections))
    }

    /// Where the streams are counted that h2 resets by itself.
    #[must_use]
    pub const fn reset_streams(&self) -> &Arc<ResetStreams> {
        &self.reset_streams
    }

    /// An HTTP/2 connection was cut, because its client did this in excess.
    pub fn connection_cut(&self, why: Excess) {
        self.cut_connections.count(why);
    }

    /// A connection ended before its first request, without an answer.
    pub fn connection_unserved(&self, why: Unserved) {
        self.unserved_connections.count(why);
    }

    /// A key was found, and it opens its request.
    pub fn authenticated(&self) {
        self.decisions.authenticated();
    }

    /// A request was refused.
    pub fn refused(&self, reason: Reason) {
        self.decisions.refused(reason);
    }

    /// An answer that had begun was ended, because its key lost its right.
    pub fn cut(&self, reason: Reason) {
        self.decisions.cut(reason);
    }

    /// A field of this kind was removed from a request.
    pub fn field_removed(&self, removed: Removed) {
        self.removed_fields.count(removed);
    }

    /// A key was looked up, and this level answered.
    pub fn looked_up(&self, level: Level) {
        self.decisions.looked_up(level);
    }
}

/// The sums of all threads.
pub(super) fn families(threads: &[Arc<Cells>]) -> Vec<MetricFamily> {
    let routes = Named::gather(threads.iter().map(|cells| &cells.routes));
    let upstreams = Named::gather(threads.iter().map(|cells| &cells.upstreams));
    let in_flight = threads.iter().map(|cells| cells.in_flight.load(Ordering::Relaxed)).sum();
    let mut families = Vec::new();
    families.extend(requests::families(&routes, &upstreams, in_flight));
    families.extend(decisions::families(&threads.iter().map(|cells| &cells.decisions)));
    families.push(connections::family(&threads.iter().map(|cells| &*cells.connections)));
    families.push(connections::cut_family(&threads.iter().map(|cells| &cells.cut_connections)));
    families.push(connections::unserved_family(&threads.iter().map(|cells| &cells.unserved_connections)));
    families.push(connections::reset_family(&threads.iter().map(|cells| &*cells.reset_streams)));
    families.push(requests::removed_family(&threads.iter().map(|cells| &cells.removed_fields)));
    families
}

/// The label of requests that match no route.
const NO_ROUTE: &str = "_none";
