//! One thread's counts: what keys were found and refused is counted here, requests and connections in files of
//! their own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::proto::MetricFamily;

use super::connections::Protocol;
use super::family::{counter, counters};
use super::requests::{RouteCells, UpstreamCells};
use crate::store::cache::Level;
use crate::vocabulary::rejection::Rejection;

/// One thread's counts.
///
/// Those of routes and upstreams are found by their names when a policy is loaded, and kept by whoever counts
/// in them. They stay when a policy no longer has the name: what was counted is never taken back.
#[derive(Debug)]
pub struct Cells {
    pub(super) routes: Named<RouteCells>,
    pub(super) upstreams: Named<UpstreamCells>,
    pub(super) in_flight: AtomicI64,
    /// By [`Protocol`].
    pub(super) connections: [AtomicI64; Protocol::ALL.len()],
    auth: [AtomicU64; AUTH_REASONS.len()],
    cut: [AtomicU64; CUT_REASONS.len()],
    /// By [`Level`].
    cache: [AtomicU64; Level::ALL.len()],
}

impl Cells {
    pub(super) fn new() -> Self {
        Self {
            routes: Mutex::default(),
            upstreams: Mutex::default(),
            in_flight: AtomicI64::new(0),
            connections: [const { AtomicI64::new(0) }; Protocol::ALL.len()],
            auth: [const { AtomicU64::new(0) }; AUTH_REASONS.len()],
            cut: [const { AtomicU64::new(0) }; CUT_REASONS.len()],
            cache: [const { AtomicU64::new(0) }; Level::ALL.len()],
        }
    }

    /// The cells of a route, by its id; of the requests that fall under none, with `None`.
    #[must_use]
    pub fn route(&self, id: Option<&str>) -> Arc<RouteCells> {
        named(&self.routes, id.unwrap_or(NO_ROUTE), RouteCells::new)
    }

    /// The cells of an upstream, by its name.
    #[must_use]
    pub fn upstream(&self, name: &str) -> Arc<UpstreamCells> {
        named(&self.upstreams, name, UpstreamCells::new)
    }

    /// A request has begun.
    pub fn begin(&self) {
        change(&self.in_flight, 1);
    }

    /// A request has ended.
    pub fn end(&self) {
        change(&self.in_flight, -1);
    }

    /// A key was found to open its request.
    pub fn authenticated(&self) {
        add(&self.auth[0], 1);
    }

    /// A request was refused; counted here if that was about its key.
    pub fn refused(&self, rejection: &Rejection) {
        let reason = rejection.reason();
        if let Some(at) = AUTH_REASONS.iter().position(|known| *known == reason) {
            add(&self.auth[at], 1);
        }
    }

    /// An answer that had begun was ended, because its key may no longer do what it did.
    pub fn cut(&self, why: &Rejection) {
        add(&self.cut[position(&CUT_REASONS, why.reason())], 1);
    }

    /// A key was looked up, and this level answered.
    pub fn looked_up(&self, level: Level) {
        add(&self.cache[level as usize], 1);
    }
}

pub(super) fn families(threads: &[Arc<Cells>]) -> [MetricFamily; 4] {
    let sum = |cell: &dyn Fn(&Cells) -> &AtomicU64| threads.iter().map(|cells| read(cell(cells))).sum();
    [
        counters(
            "keygate_auth_decisions_total",
            "What authentication and authorisation came to.",
            numbered("reason", AUTH_REASONS, |n| sum(&|cells| &cells.auth[n])),
        ),
        counters(
            "keygate_answers_cut_total",
            "Answers and tunnels ended because their keys may no longer do what they did.",
            numbered("reason", CUT_REASONS, |n| sum(&|cells| &cells.cut[n])),
        ),
        counters(
            "keygate_cache_lookups_total",
            "Lookups of keys, by the level of the cache that answered.",
            numbered("result", Level::ALL.map(Level::as_str), |n| sum(&|cells| &cells.cache[n])),
        ),
        counter(
            "keygate_stale_served_total",
            "Requests let through on a stale key while the store could not answer.",
            sum(&|cells| &cells.cache[Level::Stale as usize]),
        ),
    ]
}

/// A series for each value of a label, counted by the value's number.
fn numbered<const V: usize>(
    label: &'static str,
    values: [&'static str; V],
    count: impl Fn(usize) -> u64,
) -> impl Iterator<Item = ([(&'static str, &'static str); 1], u64)> {
    values.into_iter().enumerate().map(move |(n, value)| ([(label, value)], count(n)))
}

/// Cells by names. Locked when a policy is loaded and when somebody scrapes.
pub(super) type Named<T> = Mutex<BTreeMap<Box<str>, Arc<T>>>;

/// The cells of this name, made if need be.
fn named<T>(cells: &Named<T>, name: &str, new: impl FnOnce() -> T) -> Arc<T> {
    let mut cells = cells.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(cells.entry(name.into()).or_insert_with(|| Arc::new(new())))
}

/// The cells of all threads by their names.
pub(super) type Gathered<T> = BTreeMap<Box<str>, Vec<Arc<T>>>;

pub(super) fn gather<T>(threads: &[Arc<Cells>], cells: impl Fn(&Cells) -> &Named<T>) -> Gathered<T> {
    let mut gathered = Gathered::new();
    for thread in threads {
        for (name, cells) in &*cells(thread).lock().unwrap_or_else(PoisonError::into_inner) {
            gathered.entry(name.clone()).or_default().push(Arc::clone(cells));
        }
    }
    gathered
}

/// Adds to a cell that only this thread writes: a plain load and store, where `fetch_add` would lock the bus.
pub(super) fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// The same for a cell that can go down.
pub(super) fn change(cell: &AtomicI64, by: i64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

pub(super) fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

/// A label value's number; the last for what has none.
pub(super) fn position(labels: &[&str], label: &str) -> usize {
    labels.iter().position(|known| *known == label).unwrap_or(labels.len() - 1)
}

/// What authentication and authorisation came to.
const AUTH_REASONS: [&str; 19] = [
    "authenticated",
    "key_missing",
    "key_not_bearer",
    "key_malformed",
    "key_unknown",
    "key_revoked",
    "key_disabled",
    "key_expired",
    "key_rotated",
    "key_wrong_environment",
    "organisation_suspended",
    "organisation_pending",
    "address_not_allowed",
    "scope_missing",
    "escalation",
    "no_route",
    "not_served_here",
    "store_unavailable",
    "lookups_exhausted",
];
/// Why an answer that had begun was cut.
const CUT_REASONS: [&str; 10] = [
    "key_unknown",
    "key_revoked",
    "key_disabled",
    "key_expired",
    "key_rotated",
    "organisation_suspended",
    "address_not_allowed",
    "scope_missing",
    "store_unavailable",
    "_other",
];
/// The label of requests that fall under no route.
const NO_ROUTE: &str = "_none";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_the_list_is_one_that_a_refusal_can_have() {
        use crate::vocabulary::key::admission::Dead;
        use crate::vocabulary::key::scope::Scope;
        use crate::vocabulary::rejection::{Forbidden, NotFound, Unauthenticated, Unavailable};
        let dead = [Dead::Revoked, Dead::Disabled, Dead::Expired, Dead::SecretEnded, Dead::WrongEnvironment];
        let causes = [
            Unauthenticated::Missing,
            Unauthenticated::NotBearer,
            Unauthenticated::Malformed,
            Unauthenticated::Unknown,
        ];
        let refusals =
            causes.into_iter().chain(dead.map(Unauthenticated::Dead)).map(Rejection::Unauthenticated).chain(
                [
                    Rejection::Forbidden(Forbidden::OrganisationSuspended),
                    Rejection::Forbidden(Forbidden::OrganisationPending),
                    Rejection::Forbidden(Forbidden::Address),
                    Rejection::MissingScope(Scope::parse("a:b").unwrap()),
                    Rejection::Escalation(""),
                    Rejection::NotFound(NotFound::NoRoute),
                    Rejection::NotFound(NotFound::NotServedHere),
                    Rejection::Unavailable(Unavailable::Store),
                    Rejection::Unavailable(Unavailable::Lookups),
                ],
            );
        let reasons: Vec<&str> = refusals.map(|refusal| refusal.reason()).collect();
        assert_eq!(reasons, AUTH_REASONS[1..]);
    }
}
