//! Requests in flight: judged again once a second, for as long as they last.
//!
//! A key is judged before its request is forwarded, and the stream that the request opened may go on for hours. So every
//! request that is forwarded with a key is in its worker's list, and a sweep decides on each as on a new request with the same key. Where
//! nothing happened, that costs a comparison with the fence. Only keys that an event has touched, or whose records are
//! old, are looked up, through the cache and once for all requests of a key. A short request costs a place in the list and
//! no more: mostly it has ended before a sweep.
//!
//! A store that cannot answer ends no request before the stale window is over. A route with `on_partition = "refuse"` ends
//! its requests as soon as the gateway's lease is over.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;

use slab::Slab;

use super::Gateway;
use super::caller::Prepared;
use super::cut::Cut;
use super::snapshot::Snapshot;
use crate::policy::route::{Route, RuleNumbers};
use crate::store::Found;
use crate::store::cache::{Known, Resolved};
use crate::vocabulary::clock::Now;
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::admission::{Attempt, admit};
use crate::vocabulary::network::ClientNetwork;
use crate::vocabulary::rejection::{Rejection, Unauthenticated, Unavailable};

/// Keys that one sweep looks up at the same time.
const LOOKUPS_AT_ONCE: usize = 16;

/// A worker's requests in flight.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    requests: RefCell<Slab<Request>>,
    /// Keys that are being looked up for a sweep.
    in_doubt: RefCell<HashSet<Digest>>,
}

#[derive(Debug)]
struct Request {
    known: Rc<Known<Prepared>>,
    /// The client's address, which the key's list of addresses is compared with.
    client: IpAddr,
    /// The snapshot that handles it, and the rules that it must satisfy there.
    snapshot: Rc<Snapshot>,
    rules: RuleNumbers,
    cut: Cut,
}

impl InFlight {
    /// Enters a request. [`InFlight::leave`] takes the place that this returns.
    pub(super) fn enter(
        &self,
        known: Rc<Known<Prepared>>,
        client: IpAddr,
        snapshot: Rc<Snapshot>,
        rules: RuleNumbers,
        cut: Cut,
    ) -> usize {
        self.requests.borrow_mut().insert(Request { known, client, snapshot, rules, cut })
    }

    pub(super) fn leave(&self, place: usize) {
        self.requests.borrow_mut().try_remove(place);
    }
}

/// Ends the requests that may not go on, as far as this process knows, and looks up the keys of which it does not know
/// enough.
pub(super) fn sweep(gateway: &Rc<Gateway>) {
    let mut in_doubt = in_doubt(gateway, gateway.clock.now());
    in_doubt.retain(|(digest, _)| gateway.in_flight.in_doubt.borrow_mut().insert(*digest));
    let share = in_doubt.len().div_ceil(LOOKUPS_AT_ONCE).max(1);
    while !in_doubt.is_empty() {
        let some = in_doubt.split_off(in_doubt.len().saturating_sub(share));
        let gateway = Rc::clone(gateway);
        tokio::task::spawn_local(async move {
            for (digest, InDoubt { network, places }) in some {
                let (resolved, _) = gateway.keys.load_known(&digest, network).await;
                gateway.in_flight.in_doubt.borrow_mut().remove(&digest);
                conclude(&gateway, &digest, &places, &resolved);
            }
        });
    }
}

/// The requests whose key must be looked up.
struct InDoubt {
    /// The client's network of one of them.
    network: ClientNetwork,
    places: Vec<usize>,
}

/// Judges every request by what this process knows. Returns the keys of which that is not enough.
fn in_doubt(gateway: &Gateway, now: Now) -> Vec<(Digest, InDoubt)> {
    let mut in_doubt: HashMap<Digest, InDoubt> = HashMap::new();
    for (place, request) in &mut *gateway.in_flight.requests.borrow_mut() {
        if request.ends_where_fenced(gateway) {
            continue;
        }
        if !gateway.keys.is_current(&request.known, now) {
            match gateway.keys.find(&request.known.digest, now) {
                Some((Resolved::Known(known), _)) => request.known = known,
                Some((Resolved::Absent, _)) => {
                    request.cut.order(Rejection::Unauthenticated(Unauthenticated::Unknown));
                    continue;
                }
                Some((Resolved::Unavailable(_), _)) | None => {
                    let network = ClientNetwork::of(request.client);
                    let empty = InDoubt { network, places: Vec::new() };
                    in_doubt.entry(request.known.digest).or_insert(empty).places.push(place);
                }
            }
        }
        // A key that ends by time alone needs no lookup.
        request.judge(now);
    }
    in_doubt.into_iter().collect()
}

/// Judges the requests of a key by the result of its lookup.
fn conclude(gateway: &Gateway, digest: &Digest, places: &[usize], resolved: &Resolved<Prepared>) {
    let now = gateway.clock.now();
    let mut requests = gateway.in_flight.requests.borrow_mut();
    for place in places {
        // Another request may have the place by now.
        let Some(request) = requests.get_mut(*place).filter(|request| request.known.digest == *digest) else {
            continue;
        };
        if request.ends_where_fenced(gateway) {
            continue;
        }
        match resolved {
            Resolved::Known(known) => {
                request.known = Rc::clone(known);
                request.judge(now);
            }
            Resolved::Absent => request.cut.order(Rejection::Unauthenticated(Unauthenticated::Unknown)),
            Resolved::Unavailable(_) if gateway.keys.is_spent(&request.known, now) => {
                request.cut.order(Rejection::Unavailable(Unavailable::Store));
            }
            Resolved::Unavailable(_) => {}
        }
    }
}

impl Request {
    /// Orders its end if a new request like it would be refused.
    fn judge(&self, now: Now) {
        let Found { key, org, digest } = &*self.known.found;
        let admitted = self.rules().try_for_each(|rule| {
            let attempt = Attempt {
                digest,
                // The prefix was compared with the record when the request came in; neither changes.
                environment: key.environment,
                needs: rule.access.needs(),
                now: now.wall,
            };
            admit(key, org, &attempt, || Some(self.client))
        });
        if let Err(why) = admitted {
            self.cut.order(why.into());
        }
    }

    /// Orders its end if its route refuses every key now; tells whether it did.
    fn ends_where_fenced(&self, gateway: &Gateway) -> bool {
        let fenced = self.rules().any(|rule| gateway.keys.is_fenced(rule.on_partition));
        if fenced {
            self.cut.order(Rejection::Unavailable(Unavailable::Store));
        }
        fenced
    }

    fn rules(&self) -> impl Iterator<Item = &Route> {
        self.rules.of(self.snapshot.routes())
    }
}
