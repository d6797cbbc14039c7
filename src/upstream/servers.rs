//! The servers of each upstream as one thread sees them: the endpoints of the configuration, and in place of one with a name
//! each of its addresses.
//!
//! A request keeps the list that holds when it begins. When the addresses of a name change, the thread makes another list: what
//! stays keeps its connections, and a server that is gone gets no new requests, closes what is unused, and ends what is under
//! way in its own time.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::bounds::Bounds;
use super::budget::Budget;
use super::check::Schedule;
use super::dial::Dialer;
use super::endpoint::Endpoint;
use super::error::{NoLease, SendError};
use super::health::{Health, Servers, Standing};
use super::loaded::Loaded;
use super::names::{Ages, Name, Server};
use super::origin::OwnHost;
use super::pool::{Lease, Life, Pool, Room};
use super::repeats::Repeats;
use super::select::{Candidates, Choice, Turns, Weights};
use super::tls::{Identity, Needs};
use super::{Checks, HostField, Protocol, Settings, Timeouts};
use crate::dial::{AT_ONCE, interleaved};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::Environment;
use crate::vocabulary::upstream::Repetition;

#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) loaded: Loaded,
    /// By environment.
    pub(super) sides: [Rc<Side>; 2],
}

/// One environment of one upstream.
#[derive(Debug)]
pub(super) struct Side {
    endpoints: Vec<Listed>,
    /// Those of them that have one.
    names: Box<[Arc<Name>]>,
    identity: Arc<Identity>,
    room: Room,
    life: Life,
    pub(super) protocol: Protocol,
    ages: Ages,
    clock: Clock,
    targets: RefCell<Rc<Targets>>,
    /// Which addresses of its names it follows: the sum of their versions, since each only grows.
    followed: Cell<u64>,
    /// Whether no more requests come here.
    retired: Cell<bool>,
    pub(super) turns: Turns,
    pub(super) repeats: Repeats,
    /// `None`: they are never checked.
    checks: Option<Rc<Checks>>,
    pub(super) timeouts: Timeouts,
}

/// An endpoint as the configuration lists it.
#[derive(Debug)]
struct Listed {
    endpoint: Endpoint,
    servers: Servers,
    weight: u16,
    /// The Host field, where it is not the client's.
    sent: Option<HeaderValue>,
    /// Its own.
    of_endpoint: HeaderValue,
}

/// The servers to which requests go at the moment.
#[derive(Debug, Default)]
pub(super) struct Targets {
    all: Vec<Rc<Target>>,
    weights: Option<Weights>,
    /// `None`: they are not checked.
    checks: Option<Rc<Checks>>,
}

/// One server.
#[derive(Debug)]
pub(super) struct Target {
    /// The name of its endpoint in records.
    pub(super) label: Arc<str>,
    /// The Host field, where it is not the client's.
    pub(super) host: Option<OwnHost>,
    pub(super) pool: Rc<Pool>,
    /// The place of its endpoint.
    of: usize,
    /// Whose address it is.
    name: Option<Arc<Name>>,
    weight: u16,
    /// Its checks, and the Host field that they have.
    schedule: Rc<Schedule>,
    check_host: HeaderValue,
}

impl Upstream {
    pub(super) fn new(
        loaded: &Loaded,
        (health, bounds): (&Health, &Bounds),
        budget: &Budget,
        clock: &Clock,
    ) -> Self {
        let settings = loaded.settings();
        let side = |environment| {
            let room = Room {
                budget: budget.clone(),
                of_upstream: bounds.of(&settings.name, environment).connections,
                idle: Arc::clone(bounds.idle()),
            };
            let endpoints = listed(settings, environment, health);
            let side = Side {
                names: endpoints.iter().filter_map(Listed::name).cloned().collect(),
                endpoints,
                identity: Arc::clone(loaded.identity(environment)),
                room,
                life: settings.life.clone(),
                protocol: settings.protocol,
                ages: settings.names,
                clock: clock.clone(),
                targets: RefCell::default(),
                followed: Cell::new(0),
                retired: Cell::new(false),
                turns: Turns::default(),
                repeats: Repeats::default(),
                checks: settings.checks.clone().map(Rc::new),
                timeouts: settings.timeouts.clone(),
            };
            side.follow();
            Rc::new(side)
        };
        Self { loaded: loaded.clone(), sides: Environment::ALL.map(side) }
    }

    /// One for both environments where they have the same endpoints.
    pub(super) fn sides_with_endpoints_of_their_own(&self) -> &[Rc<Side>] {
        let settings = self.loaded.settings();
        if settings.live == settings.test { &self.sides[..1] } else { &self.sides }
    }
}

impl Listed {
    const fn name(&self) -> Option<&Arc<Name>> {
        match &self.servers {
            Servers::One(_) => None,
            Servers::Named(name) => Some(name),
        }
    }
}

/// The endpoints to which requests go.
fn listed(settings: &Settings, environment: Environment, health: &Health) -> Vec<Listed> {
    let made = |endpoint: &Endpoint, weight| {
        let of_endpoint = HeaderValue::try_from(endpoint.host_field())
            .unwrap_or(const { HeaderValue::from_static("localhost") });
        Listed {
            endpoint: endpoint.clone(),
            servers: health.find(&settings.name, endpoint).unwrap_or_else(|| Servers::unknown(endpoint)),
            weight,
            sent: match &settings.host {
                HostField::Client => None,
                HostField::Endpoint => Some(of_endpoint.clone()),
                HostField::Named(name) => Some(name.clone()),
            },
            of_endpoint,
        }
    };
    settings.weighted(environment).map(|(endpoint, weight)| made(endpoint, weight)).collect()
}

impl Side {
    /// The servers at the moment.
    pub(super) fn targets(&self) -> Rc<Targets> {
        if self.is_outdated() {
            self.follow();
        }
        Rc::clone(&self.targets.borrow())
    }

    /// The servers after the first lookup of a name, for which it waits for so long at most. None where no name has an address.
    pub(super) async fn first_targets(&self, within: Duration) -> Rc<Targets> {
        let until = Instant::now() + within;
        for name in &self.names {
            name.look(self.ages, &self.clock);
        }
        for name in &self.names {
            name.first(until.saturating_duration_since(Instant::now())).await;
            let targets = self.targets();
            if !targets.is_empty() {
                return targets;
            }
        }
        self.targets()
    }

    /// Begins what is due, see [`Upstreams::check`](super::send::Upstreams::check); `None` where there is never anything.
    pub(super) fn check(&self) -> Option<Duration> {
        let lookups = self.names.iter().map(|name| name.look(self.ages, &self.clock)).min();
        let targets = self.targets();
        let checks = targets.checks.as_ref().and_then(|checks| {
            let look = |target: &Rc<Target>| target.schedule.look(checks, &target.pool, &target.check_host);
            targets.all.iter().map(look).min()
        });
        [lookups, checks].into_iter().flatten().min()
    }

    /// Closes all unused connections and keeps none from now on. Requests under way go on.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.targets.borrow().pools().for_each(Pool::retire);
    }

    fn version(&self) -> u64 {
        self.names.iter().map(|name| name.version()).sum()
    }

    fn is_outdated(&self) -> bool {
        self.version() != self.followed.get() && !self.retired.get()
    }

    /// Makes the list of the servers that there are now.
    #[cold]
    fn follow(&self) {
        // Read first: what changes meanwhile is followed the next time.
        self.followed.set(self.version());
        let before = Rc::clone(&self.targets.borrow());
        let all: Vec<_> = (0..self.endpoints.len()).flat_map(|of| self.targets_of(of, &before)).collect();
        let is_gone = |target: &&Rc<Target>| !all.iter().any(|other| Rc::ptr_eq(target, other));
        before.all.iter().filter(is_gone).for_each(|target| target.pool.retire());
        let checks = self.checks.clone().filter(|checks| checks.concern(all.len()));
        if checks.is_none() {
            all.iter().for_each(|target| target.pool.standing().forget_checks());
        }
        let weights: Vec<u16> = all.iter().map(|target| target.weight).collect();
        *self.targets.borrow_mut() = Rc::new(Targets { all, weights: Weights::new(&weights), checks });
    }

    /// Those of the endpoint at this place. What was there `before` stays.
    fn targets_of(&self, of: usize, before: &Targets) -> Vec<Rc<Target>> {
        let kept = |address: Option<SocketAddr>| {
            let is_it = |target: &&Rc<Target>| {
                target.of == of && (address.is_none() || target.pool.address() == address)
            };
            before.all.iter().find(is_it).cloned()
        };
        let made = |address, standing: &Standing| Rc::new(self.target(of, address, standing.clone()));
        match &self.endpoints[of].servers {
            Servers::One(standing) => vec![kept(None).unwrap_or_else(|| made(None, standing))],
            Servers::Named(name) => {
                let servers = name.servers();
                let target = |Server { address, standing }: &Server| {
                    kept(Some(*address)).unwrap_or_else(|| made(Some(*address), standing))
                };
                servers.iter().map(target).collect()
            }
        }
    }

    /// The server at this address of the endpoint's name, or the endpoint's own.
    fn target(&self, of: usize, address: Option<SocketAddr>, standing: Standing) -> Target {
        let Listed { endpoint, weight, sent, of_endpoint, .. } = &self.endpoints[of];
        let own_host = |sent| OwnHost { sent, of_endpoint: of_endpoint.clone() };
        Target {
            label: endpoint.label().into(),
            check_host: sent.clone().unwrap_or_else(|| of_endpoint.clone()),
            host: sent.clone().map(own_host),
            schedule: Rc::default(),
            pool: Rc::new(Pool::new(
                Dialer::new(endpoint, address, &self.identity),
                standing,
                (&self.timeouts, self.life.clone(), self.protocol),
                self.room.clone(),
                self.clock.clone(),
            )),
            of,
            name: self.endpoints[of].name().cloned(),
            weight: *weight,
        }
    }
}

impl Targets {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn at(&self, at: usize) -> &Target {
        &self.all[at]
    }

    pub(super) fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.all.iter().map(|target| &*target.pool)
    }

    /// A request got no answer there, or none so far. Without checks nothing would find out whether the suspicion is right.
    pub(super) fn suspect(&self, target: &Target) {
        if self.checks.is_some() {
            target.pool.standing().suspect();
        }
    }

    /// Whether checks ask them something.
    pub(super) fn are_asked(&self) -> bool {
        self.checks.as_ref().is_some_and(|checks| checks.question.is_some())
    }

    /// What becomes of a request that none of them takes.
    pub(super) fn unreached(&self) -> SendError {
        if self.is_empty() { SendError::Unresolved } else { SendError::Unreachable }
    }

    /// A new connection to the server at this place, or to another address of its name, which is tried beside it where it takes none
    /// at once. Those that took none are not chosen again.
    pub(super) async fn lease_new(
        &self,
        at: usize,
        way: (Duration, Needs),
        choice: &mut Choice<'_>,
    ) -> Result<(usize, Lease), NoLease> {
        let order = self.order(at, choice);
        let pools: Vec<_> = order.iter().map(|at| &self.all[*at].pool).collect();
        let leased = Pool::lease_new(&pools, way).await.map(|(nth, lease)| (order[nth], lease));
        match &leased {
            Ok((reached, _)) if *reached == at => return leased,
            Ok((reached, _)) => choice.skip(*reached),
            Err(NoLease::Unreachable) => order[1..].iter().for_each(|other| choice.skip(*other)),
            Err(NoLease::NoTls | NoLease::Crowded | NoLease::Full) => {}
        }
        // Another address took it, or none did.
        if let Some(name) = &self.all[at].name {
            name.want();
        }
        leased
    }

    /// This server, and after it the other addresses of its name: those that are in use first, and of these the families in turn.
    fn order(&self, at: usize, choice: &Choice<'_>) -> Vec<usize> {
        let target = &self.all[at];
        if target.name.is_none() {
            return vec![at];
        }
        let count = self.all.len();
        let others = (1..count).map(|n| (at + n) % count);
        let others = others.filter(|other| self.all[*other].of == target.of && !choice.was_tried(*other));
        let (used, passed_over): (Vec<_>, Vec<_>) = others.partition(|other| self.is_in_use(*other));
        let order = [at].into_iter().chain(used).collect();
        let is_v4 = |at: &usize| self.all[*at].pool.address().is_some_and(|address| address.is_ipv4());
        let mut order = interleaved(order, is_v4);
        order.extend(passed_over);
        order.truncate(AT_ONCE);
        order
    }
}

impl Candidates for Targets {
    fn count(&self) -> usize {
        self.all.len()
    }

    fn weights(&self) -> Option<&Weights> {
        self.weights.as_ref()
    }

    fn in_flight(&self, at: usize) -> usize {
        self.all[at].pool.in_flight()
    }

    fn is_in_use(&self, at: usize) -> bool {
        self.all[at].pool.standing().is_in_use()
    }

    fn admits(&self, at: usize) -> bool {
        let pool = &self.all[at].pool;
        pool.standing().admits(pool.clock().mono())
    }
}

impl Target {
    pub(super) fn note_repetition(&self, why: Repetition) {
        self.pool.standing().note_repetition(why);
    }
}
