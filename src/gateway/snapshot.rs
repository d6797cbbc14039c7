//! One snapshot handles a request from its head to its record.
//!
//! Everything that may change while the gateway runs is in a [`Plan`]. It is made and checked elsewhere, never changed, and
//! replaced as a whole. A worker compiles it into a [`Snapshot`] of its own, with its connections to the upstreams and the
//! cells that it counts in. A request keeps the snapshot that holds when it begins: it is never judged by one policy and
//! forwarded, counted or recorded by another.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::Settings;
use super::crowds::{Crowds, ThreadCrowds};
use super::headers::HeaderRules;
use super::shares::ThreadShares;
use crate::policy::pattern::Pattern;
use crate::policy::route::{Route, RouteTable};
use crate::telemetry::RecordedRoute;
use crate::telemetry::metrics::{Cells, RouteCells, UpstreamCells};
use crate::upstream::bounds::{Bounds, Places};
use crate::upstream::budget::Budget;
use crate::upstream::health::Health;
use crate::upstream::loaded::Loaded;
use crate::upstream::send::Upstreams;
use crate::upstream::{self, UpstreamId};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::{Environment, KeyFormat, Prefixes};

/// The settings that can change while the gateway runs.
#[derive(Debug)]
pub struct Plan {
    settings: Settings,
    routes: RouteTable,
    upstreams: Vec<Loaded>,
    rules: HeaderRules,
    health: Arc<Health>,
    crowds: Arc<Crowds>,
}

/// What is known of upstreams. It outlives a plan.
#[derive(Clone, Debug)]
pub struct Experience {
    health: Arc<Health>,
    crowds: Arc<Crowds>,
}

impl Experience {
    /// None so far; for a gateway with so many threads.
    #[must_use]
    pub fn none(threads: usize) -> Self {
        Self { health: Arc::default(), crowds: Arc::new(Crowds::none(threads)) }
    }
}

impl Plan {
    /// An [`UpstreamId`] in `routes` is a place in `upstreams`. `before` is what is known of the upstreams so far.
    #[must_use]
    pub fn new(settings: Settings, routes: RouteTable, upstreams: Vec<Loaded>, before: &Experience) -> Self {
        Self {
            rules: HeaderRules::new(settings.headers.clone()),
            health: Arc::new(Health::new(&upstreams, &before.health)),
            crowds: Arc::new(Crowds::new(&upstreams, &before.crowds)),
            settings,
            routes,
            upstreams,
        }
    }

    #[must_use]
    pub const fn health(&self) -> &Arc<Health> {
        &self.health
    }

    #[must_use]
    pub fn experience(&self) -> Experience {
        Experience { health: Arc::clone(&self.health), crowds: Arc::clone(&self.crowds) }
    }

    #[must_use]
    pub const fn crowds(&self) -> &Arc<Crowds> {
        &self.crowds
    }

    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    #[must_use]
    pub fn routes(&self) -> &[Route] {
        self.routes.routes()
    }

    fn known(&self) -> (&Health, &Bounds) {
        (&self.health, self.crowds.bounds())
    }
}

/// What keys may look like.
#[derive(Debug)]
pub struct Shapes {
    pub format: KeyFormat,
    /// Whether a key with another prefix than those of the format may be refused without a lookup: every other gateway
    /// knows that this one does so. It sees when the store has another list of prefixes. `None`: it may not be refused.
    pub only_these: Option<watch::Receiver<Option<Prefixes>>>,
}

impl Shapes {
    /// Whether no key can have another prefix, as far as is known in this process.
    pub(super) fn are_all(&self) -> bool {
        let is_latest = |list: &watch::Receiver<_>| matches!(list.has_changed(), Ok(false));
        self.format.is_complete() && self.only_these.as_ref().is_some_and(is_latest)
    }
}

/// A plan as one worker uses it.
#[derive(Debug)]
pub(super) struct Snapshot {
    plan: Arc<Plan>,
    /// What keys may look like. It follows the store and not the configuration.
    shapes: Arc<Shapes>,
    upstreams: Upstreams,
    crowds: ThreadCrowds,
    /// By the number of the route; the last entry is for requests without a route.
    route_cells: Box<[Arc<RouteCells>]>,
    upstream_cells: Box<[Arc<UpstreamCells>]>,
    /// By the number of the route and of its pattern. A worker has its own, so that no other counts their references.
    recorded: Box<[Box<[RecordedRoute]>]>,
}

impl Snapshot {
    pub(super) fn new(
        plan: Arc<Plan>,
        shapes: Arc<Shapes>,
        cells: &Cells,
        budget: Budget,
        clock: Clock,
    ) -> Self {
        let upstreams = Upstreams::new(&plan.upstreams, plan.known(), budget, clock);
        let crowds = ThreadCrowds::new(&plan.crowds, None);
        Self::with_upstreams((plan, shapes), upstreams, crowds, cells)
    }

    /// The snapshot of another plan. It takes over the connections that it can use.
    pub(super) fn renew(&self, plan: Arc<Plan>, cells: &Cells) -> Self {
        self.with(plan, Arc::clone(&self.shapes), cells)
    }

    /// The same plan, for keys of other shapes.
    pub(super) fn with_shapes(&self, shapes: Arc<Shapes>, cells: &Cells) -> Self {
        self.with(Arc::clone(&self.plan), shapes, cells)
    }

    fn with(&self, plan: Arc<Plan>, shapes: Arc<Shapes>, cells: &Cells) -> Self {
        let upstreams = self.upstreams.renew(&plan.upstreams, plan.known());
        let crowds = ThreadCrowds::new(&plan.crowds, Some(&self.crowds));
        Self::with_upstreams((plan, shapes), upstreams, crowds, cells)
    }

    fn with_upstreams(
        (plan, shapes): (Arc<Plan>, Arc<Shapes>),
        upstreams: Upstreams,
        crowds: ThreadCrowds,
        cells: &Cells,
    ) -> Self {
        let routes = plan.routes.routes().iter().map(|route| Some(&*route.id)).chain([None]);
        Self {
            route_cells: routes.map(|id| cells.route(id)).collect(),
            recorded: plan.routes.routes().iter().map(recorded).collect(),
            upstream_cells: plan
                .upstreams
                .iter()
                .map(|upstream| cells.upstream(&upstream.settings().name))
                .collect(),
            upstreams,
            crowds,
            plan,
            shapes,
        }
    }

    pub(super) fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.plan.settings
    }

    pub(super) fn routes(&self) -> &RouteTable {
        &self.plan.routes
    }

    pub(super) fn rules(&self) -> &HeaderRules {
        &self.plan.rules
    }

    pub(super) const fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    /// The shares of the places that the upstream has for this environment, where it has a limit.
    pub(super) fn crowd(
        &self,
        id: UpstreamId,
        environment: Environment,
    ) -> Option<&Rc<ThreadShares<Places>>> {
        self.crowds.find(id, environment)
    }

    /// See [`Bounds::idle`].
    pub(super) fn wanted(&self) -> &Arc<Notify> {
        self.plan.crowds.bounds().idle()
    }

    pub(super) fn upstream(&self, id: UpstreamId) -> &upstream::Settings {
        self.plan.upstreams[id.0].settings()
    }

    /// The cells of the route with this number; `None` is for requests without a route.
    pub(super) fn route_cells(&self, number: Option<usize>) -> &RouteCells {
        &self.route_cells[number.unwrap_or(self.route_cells.len() - 1)]
    }

    /// The route with this number, with its pattern of this number, for a record.
    pub(super) fn recorded_route(&self, number: usize, template: usize) -> RecordedRoute {
        self.recorded[number][template].clone()
    }

    pub(super) fn upstream_cells(&self, id: UpstreamId) -> &UpstreamCells {
        &self.upstream_cells[id.0]
    }
}

fn recorded(route: &Route) -> Box<[RecordedRoute]> {
    let id: Arc<str> = (*route.id).into();
    let of = |pattern: &Pattern| RecordedRoute { id: Arc::clone(&id), template: pattern.to_string().into() };
    route.patterns.iter().map(of).collect()
}
