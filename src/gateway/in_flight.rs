//! Requests in flight: judged again once a second, for as long as they last.
//!
//! A key is judged before its request is forwarded, and the stream that it opened may then go on for hours.
//! So every forwarded request stands in its worker's list, and a sweep asks of each what a new request with
//! the same key would be told now. Where nothing happened that costs a comparison with the fence; only what
//! an event has touched, or what has aged, is looked up, through the cache and once for all requests of a
//! key. A short request pays for a place in the list and no more: it has mostly gone before a sweep comes by.
//!
//! A store that cannot answer ends nothing before the stale window does; except where a route refuses while this
//! gateway is cut off, which it does from the end of the lease on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use slab::Slab;

use super::Gateway;
use super::caller::Prepared;
use super::cut::Cut;
use super::snapshot::Snapshot;
use crate::policy::route::Route;
use crate::store::cache::{Known, Resolved};
use crate::store::{Found, StoreFault};
use crate::vocabulary::clock::Now;
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::admission::{Attempt, admit};
use crate::vocabulary::rejection::{Rejection, Unauthenticated, Unavailable};

/// Keys that one sweep looks up at the same time.
const LOOKUPS_AT_ONCE: usize = 16;
/// How long a lookup waits that found too many others under way.
const CROWDED: Duration = Duration::from_millis(20);
/// How often it does so before it leaves the key to the next sweep.
const CROWDED_AT_MOST: usize = 25;

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
    /// Where it came from, as the key's address list counts.
    client: IpAddr,
    /// What it is handled by to its end, and the route's number there.
    snapshot: Rc<Snapshot>,
    route: usize,
    cut: Cut,
}

impl InFlight {
    /// Takes a request in; the place is to be given to [`InFlight::leave`].
    pub(super) fn enter(
        &self,
        known: Rc<Known<Prepared>>,
        client: IpAddr,
        snapshot: Rc<Snapshot>,
        route: usize,
        cut: Cut,
    ) -> usize {
        self.requests.borrow_mut().insert(Request { known, client, snapshot, route, cut })
    }

    pub(super) fn leave(&self, place: usize) {
        self.requests.borrow_mut().try_remove(place);
    }
}

/// Ends what may not go on, as far as that is known here, and has the rest looked up.
pub(super) fn sweep(gateway: &Rc<Gateway>) {
    let mut in_doubt = in_doubt(gateway, gateway.clock.now());
    in_doubt.retain(|(digest, _)| gateway.in_flight.in_doubt.borrow_mut().insert(*digest));
    let share = in_doubt.len().div_ceil(LOOKUPS_AT_ONCE).max(1);
    while !in_doubt.is_empty() {
        let some = in_doubt.split_off(in_doubt.len().saturating_sub(share));
        let gateway = Rc::clone(gateway);
        tokio::task::spawn_local(async move {
            for (digest, places) in some {
                let resolved = look_up(&gateway, &digest).await;
                gateway.in_flight.in_doubt.borrow_mut().remove(&digest);
                conclude(&gateway, &digest, &places, &resolved);
            }
        });
    }
}

/// Judges every request by what this process knows, and names the keys of which that is not enough, with the
/// places of their requests.
fn in_doubt(gateway: &Gateway, now: Now) -> Vec<(Digest, Vec<usize>)> {
    let mut in_doubt: HashMap<Digest, Vec<usize>> = HashMap::new();
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
                    in_doubt.entry(request.known.digest).or_default().push(place);
                }
            }
        }
        // What time alone takes away needs no lookup.
        request.judge(now);
    }
    in_doubt.into_iter().collect()
}

async fn look_up(gateway: &Gateway, digest: &Digest) -> Resolved<Prepared> {
    for _ in 0..CROWDED_AT_MOST {
        match gateway.keys.load_known(digest).await.0 {
            Resolved::Unavailable(StoreFault::Exhausted) => tokio::time::sleep(CROWDED).await,
            resolved => return resolved,
        }
    }
    Resolved::Unavailable(StoreFault::Exhausted)
}

/// Judges a key's requests by what its lookup came to.
fn conclude(gateway: &Gateway, digest: &Digest, places: &[usize], resolved: &Resolved<Prepared>) {
    let now = gateway.clock.now();
    let mut requests = gateway.in_flight.requests.borrow_mut();
    for place in places {
        // The place may be another's by now.
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
    /// Orders its end where a new request like it would be refused.
    fn judge(&self, now: Now) {
        let Found { key, org } = &*self.known.found;
        let attempt = Attempt {
            digest: &self.known.digest,
            // The prefix was compared with the record when the request came in; neither changes.
            environment: key.environment,
            needs: self.route().access.needs(),
            now: now.wall,
        };
        if let Err(why) = admit(key, org, &attempt, || Some(self.client)) {
            self.cut.order(why.into());
        }
    }

    /// Orders its end where its route lets nobody in now, whoever it is; tells whether it did.
    fn ends_where_fenced(&self, gateway: &Gateway) -> bool {
        let fenced = gateway.keys.is_fenced(self.route().on_partition);
        if fenced {
            self.cut.order(Rejection::Unavailable(Unavailable::Store));
        }
        fenced
    }

    fn route(&self) -> &Route {
        &self.snapshot.routes().routes()[self.route]
    }
}
