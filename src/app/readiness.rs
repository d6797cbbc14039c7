//! The examination of a gateway for `/readyz`: whether any request could be let through, and what is degraded.
//!
//! While the store is heard from, some route lets something through. So the routes, the cache and the store are only looked
//! at when it is not.

use std::sync::Arc;
use std::time::Duration;

use super::clocks;
use super::in_force::{Observed, lock};
use crate::config::Config;
use crate::operators::ops::{Health, Part};
use crate::policy::access::Access;
use crate::policy::route::Route;
use crate::policy::target::{Operation, Target};
use crate::store::cache::{self, OnPartition, ReadThrough};
use crate::store::keeper::{Keeper, LinkState, Standing, Vitals};
use crate::store::{LEASE, Role};
use crate::telemetry::metrics::StoreMeter;

const REFUSES_ALL: &str = "the gateway is cut off from its store, and every route refuses keys then (on_partition = \"refuse\"); \
                           ops.ready_when_cut_off = true keeps it ready";
const KNOWS_NOTHING: &str = "the store does not answer, and no key is known here that could be let in without it; \
                             ops.ready_when_cut_off = true keeps the gateway ready";

/// The settings that an examination goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Examined {
    role: Role,
    on_partition: OnPartition,
    signup: bool,
    ready_when_cut_off: bool,
}

/// Says how long the gateway may let keys in that it knows when it is cut off, so that changes count it for so long.
pub(super) fn tell_reach(keeper: &dyn Keeper, routes: &[Route], cache: &cache::Settings) {
    let takes_keys = |route: &&Route| !matches!(route.access, Access::Public { .. });
    let lets_in = routes.iter().filter(takes_keys).any(|route| is_open(route, cache.on_partition));
    let known_for = cache.ttl.saturating_add(cache.stale_window);
    keeper.serve_without_lease(if lets_in { known_for } else { Duration::ZERO });
}

/// Whether a route lets keys in that are known here while the gateway is cut off.
fn is_open(route: &Route, on_partition: OnPartition) -> bool {
    route.on_partition.unwrap_or(on_partition) == OnPartition::Serve
}

/// How requests could be let through, whatever the upstreams do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ways {
    /// Without a key, to an upstream: always.
    public: bool,
    /// With a key, to an upstream: by a key that is known here, or that the store finds.
    forwarded: bool,
    /// By an operation of keygate's own, which needs the store.
    served: bool,
}

impl Examined {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            role: config.role,
            on_partition: config.cache.on_partition,
            signup: config.signup.enabled,
            ready_when_cut_off: config.ops.ready_when_cut_off,
        }
    }

    pub(super) async fn examine(self, seen: &Observed, meter: &StoreMeter, is_verbose: bool) -> Health {
        let keeper = seen.store.keeper();
        let has_answered = meter.has_answered() || keeper.link_state() == LinkState::Up;
        Health {
            store_has_answered: has_answered && keeper.is_fit(),
            lets_through: self.lets_through(seen).await,
            parts: if is_verbose { parts(seen, meter).await } else { Vec::new() },
        }
    }

    async fn lets_through(self, seen: &Observed) -> Result<(), &'static str> {
        let (cache, is_cut_off) = (&seen.cache, seen.cache.has_lost_store());
        if self.ready_when_cut_off || !is_cut_off && !is_file_closed(&seen.store.keeper().vitals()) {
            return Ok(());
        }
        let plan = Arc::clone(&lock(&seen.in_force).plan);
        self.ways(plan.routes(), is_cut_off).lead_through(cache).await
    }

    fn ways(self, routes: &[Route], is_cut_off: bool) -> Ways {
        let mut ways = Ways::default();
        for route in routes {
            let is_public = matches!(route.access, Access::Public { .. });
            let is_open = is_public || !is_cut_off || is_open(route, self.on_partition);
            match route.target {
                Target::Upstream(_) if is_public => ways.public = true,
                Target::Upstream(_) => ways.forwarded |= is_open,
                Target::Operation(Operation::Signup) => {
                    ways.served |= self.role == Role::Full && self.signup;
                }
                Target::Operation(_) => ways.served |= self.role == Role::Full && is_open,
            }
        }
        ways
    }
}

impl Ways {
    async fn lead_through(self, cache: &ReadThrough) -> Result<(), &'static str> {
        let Self { public, forwarded, served } = self;
        if public || forwarded && cache.knows_a_usable_key() {
            return Ok(());
        }
        match forwarded || served {
            false => Err(REFUSES_ALL),
            true if cache.is_answered().await => Ok(()),
            true => Err(KNOWS_NOTHING),
        }
    }
}

/// Whether the file of an embedded store is being opened again.
fn is_file_closed(vitals: &Vitals) -> bool {
    vitals.breakers.iter().any(|(link, is_open)| *link == "file" && *is_open)
}

/// What is wrong with each part. A part that this gateway does not have is left out.
async fn parts(seen: &Observed, meter: &StoreMeter) -> Vec<Part> {
    let keeper = seen.store.keeper();
    let vitals = keeper.vitals();
    let mut parts = vec![Part { name: "store", trouble: of_the_store(seen, &vitals, meter).await }];
    parts.push(Part { name: "writes", trouble: of_writes(&vitals) });
    if vitals.standing != Standing::Alone {
        let link = match keeper.link_state() {
            LinkState::Up => None,
            LinkState::Down(why) => Some(format!("changes made through other gateways do not arrive: {why}")),
        };
        let lease = (vitals.standing == Standing::Out)
            .then(|| "this gateway holds none, so changes do not wait for it".to_owned());
        let lapsed = vitals.lapsed.filter(|lapsed| *lapsed > 0).map(|lapsed| {
            format!(
                "{lapsed} whose lease has lapsed may let keys in that they know; see `keygate store status`"
            )
        });
        parts.push(Part { name: "event link", trouble: link });
        parts.push(Part { name: "lease", trouble: lease });
        parts.push(Part { name: "other gateways", trouble: lapsed });
    }
    let turned_away = vitals.breakers.iter().filter(|(link, is_open)| *is_open && *link != "file");
    let turned_away: Vec<&str> = turned_away.map(|(link, _)| *link).collect();
    let turned_away = (!turned_away.is_empty())
        .then(|| format!("open: {} are turned away without asking the store", turned_away.join(" and ")));
    parts.push(Part { name: "breakers", trouble: turned_away });
    parts.push(Part { name: "upstreams", trouble: of_upstreams(seen) });
    parts.extend(clocks::trouble(&seen.clock).map(|trouble| Part { name: "clock", trouble }));
    parts
}

async fn of_the_store(seen: &Observed, vitals: &Vitals, meter: &StoreMeter) -> Option<String> {
    if is_file_closed(vitals) {
        return Some(
            "its file has failed and is opened again as soon as that works; the log says why".to_owned(),
        );
    }
    if seen.cache.has_lost_store() {
        return Some(format!(
            "not heard from for over {LEASE:?}: routes with on_partition = \"refuse\" refuse keys"
        ));
    }
    // Where nobody has asked since, it may answer again.
    let was_failing = seen.cache.is_failing() || !meter.is_up();
    (was_failing && !seen.cache.is_answered().await)
        .then(|| "it does not answer lookups of keys; the log says why".to_owned())
}

fn of_writes(vitals: &Vitals) -> Option<String> {
    if vitals.is_full == Some(true) {
        return Some("the disk is full: only changes that take rights away are written".to_owned());
    }
    if vitals.is_suspect == Some(true) {
        return Some("the store answers and takes no changes: another may have taken its place".to_owned());
    }
    is_file_closed(vitals).then(|| "no change is written until the file is open again".to_owned())
}

/// They never make the gateway unready.
fn of_upstreams(seen: &Observed) -> Option<String> {
    let plan = Arc::clone(&lock(&seen.in_force).plan);
    let unused = plan.health().servers().into_iter().filter(|server| !server.state.is_healthy());
    let unused: Vec<String> =
        unused.map(|server| format!("{} of {}", server.label, server.upstream)).collect();
    (!unused.is_empty()).then(|| {
        format!(
            "not connected to, or without answers: {}; this does not make the gateway unready",
            unused.join(", ")
        )
    })
}
