//! The configuration in force, and the state that metrics read from it and from other parts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::downstream::connection::Serving;
use crate::downstream::{tls, watchdog};
use crate::gateway::Plan;
use crate::lifecycle::{Swept, Trimming, Trouble};
use crate::operators::admin::ServerView;
use crate::operators::outbox::Backlog;
use crate::store::Store;
use crate::store::cache::ReadThrough;
use crate::store::keeper::{LinkState, MemoryVitals, Standing, Vitals};
use crate::telemetry::metrics::{ChangeMeter, CrowdState, EndpointState, NameState, Reloads, State};
use crate::telemetry::{self, Lost, Notice};
use crate::tls::LoadErrors;
use crate::upstream::budget::Budget;
use crate::upstream::health::NameSeen;
use crate::vocabulary::clock::{Clock, UnixMillis};

/// The parts that a reload replaces, for metrics.
#[derive(Debug)]
pub(super) struct InForce {
    config_hash: u64,
    /// The end of each certificate, by its file.
    certificates: Vec<(Box<str>, UnixMillis)>,
    pub(super) plan: Arc<Plan>,
    pub(super) reloads: Reloads,
}

impl InForce {
    pub(super) fn new(config_hash: u64, serving: &Serving, plan: &Arc<Plan>, reloads: Reloads) -> Self {
        let certificates = serving.tls.iter().flat_map(tls::Acceptor::certificates);
        let certificates = certificates.map(|one| (one.file.display().to_string().into(), one.not_after));
        Self { config_hash, certificates: certificates.collect(), plan: Arc::clone(plan), reloads }
    }

    /// The servers of the upstreams, for operators.
    pub(super) fn servers(&self) -> Vec<ServerView> {
        let servers = self.plan.health().servers().into_iter().map(|seen| ServerView {
            upstream: seen.upstream.into(),
            server: seen.label.into(),
            state: seen.state,
        });
        servers.collect()
    }
}

const fn name_state(NameSeen { is_resolved, healthy, unhealthy }: NameSeen) -> NameState {
    NameState { is_resolved, healthy, unhealthy }
}

/// The data stays usable after a thread has panicked while it held the lock.
pub(super) fn lock(in_force: &Mutex<InForce>) -> MutexGuard<'_, InForce> {
    in_force.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How connections are served, with certificates that are read now. A certificate that clients will refuse does
/// not keep the gateway from starting: a restart must not turn one expired name into an outage of all names.
pub(super) fn serving(
    tls: &tls::Settings,
    watchdog: watchdog::Settings,
    clock: &Clock,
) -> Result<Serving, LoadErrors<tls::LoadError>> {
    let tls = tls::Acceptor::load(tls)?;
    let certificates = tls.iter().flat_map(tls::Acceptor::certificates);
    for complaint in certificates.filter_map(|certificate| certificate.complaint(clock.now().wall)) {
        Notice::CertificateUnusable.log(&complaint);
    }
    Ok(Serving { watchdog, tls })
}

/// The parts of which metrics show the present state.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) store: Arc<dyn Store>,
    pub(super) cache: Arc<ReadThrough>,
    pub(super) budget: Budget,
    pub(super) in_force: Arc<Mutex<InForce>>,
    pub(super) records: Arc<Lost>,
    pub(super) changes: Option<Arc<ChangeMeter>>,
    pub(super) swept: Option<Swept>,
    pub(super) troubles: Option<Trouble>,
    pub(super) trimming: Option<Trimming>,
    pub(super) backlog: Option<Arc<Backlog>>,
    pub(super) clock: Clock,
}

impl Observed {
    /// The state at this moment: the moment of a scrape.
    pub(super) fn state(&self) -> State {
        let in_force = lock(&self.in_force);
        let keeper = self.store.keeper();
        let Vitals { standing, lapsed, breakers, is_suspect, is_full, memory } = keeper.vitals();
        let (lease_held, leases) = match standing {
            Standing::Alone => (None, None),
            Standing::Out => (Some(false), None),
            Standing::Among(leases) => (Some(true), Some(leases)),
        };
        let endpoints = in_force.plan.health().endpoints().map(|seen| EndpointState {
            upstream: seen.upstream.into(),
            endpoint: seen.label.into(),
            is_healthy: seen.state.is_healthy(),
            repeated: seen.repeated,
            name: seen.name.map(name_state),
        });
        let crowds = in_force.plan.crowds().seen().map(|seen| CrowdState {
            upstream: seen.upstream.into(),
            environment: seen.environment.as_str(),
            in_flight: seen.in_flight,
            at_most: seen.at_most,
            waiting: seen.waiting,
        });
        State {
            crowds: crowds.collect(),
            certificates: in_force.certificates.clone(),
            endpoints: endpoints.collect(),
            upstream_connections: (
                self.budget.at_most().saturating_sub(self.budget.left()),
                self.budget.at_most(),
            ),
            cache_entries: self.cache.entries(),
            lookups_waiting: self.cache.waiting(),
            lookups: self.cache.meter(),
            event_link_up: keeper.link_state() == LinkState::Up,
            lease_held,
            leases,
            lapsed,
            store_suspect: is_suspect,
            store_full: is_full,
            breakers,
            memory: memory
                .map(|MemoryVitals { records, set_back, dropped, .. }| (records, set_back, dropped)),
            changes: self.changes.clone(),
            older_than_trail: self.swept.as_ref().map(Swept::older),
            news_waiting: self.backlog.as_ref().and_then(|backlog| backlog.waiting()),
            news_held: self.backlog.as_ref().and_then(|backlog| backlog.held()),
            clock_ahead: self.clock.ahead_of_store().map(|ahead| ahead as f64 / 1000.0),
            trimming_held: self.trimming.as_ref().and_then(Trimming::is_held),
            troubles_dropped: self.troubles.as_ref().map_or(0, Trouble::dropped),
            records_lost: self.records.read(),
            lines_lost: telemetry::lost_lines(),
            events: telemetry::events_so_far(),
            config_hash: in_force.config_hash,
            reloads: in_force.reloads,
        }
    }
}
