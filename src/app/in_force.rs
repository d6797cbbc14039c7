//! What is in force at the moment, and what metrics read of it and of the other parts.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::downstream::tls;
use crate::downstream::worker::Serving;
use crate::gateway::Plan;
use crate::lifecycle::{Lifecycle, Trouble};
use crate::operators::outbox::Backlog;
use crate::store::Store;
use crate::store::cache::ReadThrough;
use crate::store::keeper::LinkState;
use crate::telemetry::RecordWriter;
use crate::telemetry::metrics::{Reloads, State};
use crate::upstream::health::Health;
use crate::vocabulary::clock::UnixMillis;

/// What a reload replaces, as metrics tell of it.
#[derive(Debug)]
pub(super) struct InForce {
    config_hash: u64,
    /// The end of each certificate, by its file.
    certificates: Vec<(Box<str>, UnixMillis)>,
    pub(super) health: Arc<Health>,
    pub(super) reloads: Reloads,
}

impl InForce {
    pub(super) fn new(config_hash: u64, serving: &Serving, plan: &Plan, reloads: Reloads) -> Self {
        let certificates = serving.tls.iter().flat_map(tls::Acceptor::certificates);
        let certificates = certificates.map(|one| (one.file.display().to_string().into(), one.not_after));
        Self { config_hash, certificates: certificates.collect(), health: Arc::clone(plan.health()), reloads }
    }
}

/// What is in it can be used also when whoever held it panicked.
pub(super) fn lock(in_force: &Mutex<InForce>) -> MutexGuard<'_, InForce> {
    in_force.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is read of the parts at the moment of a scrape.
pub(super) fn state(
    store: Arc<dyn Store>,
    keys: Arc<ReadThrough>,
    in_force: Arc<Mutex<InForce>>,
    records: &RecordWriter,
    lifecycle: Option<&Lifecycle>,
    backlog: Option<Arc<Backlog>>,
) -> impl Fn() -> State + Send + Sync + use<> {
    let dropped = records.dropped();
    let changes = lifecycle.map(|lifecycle| Arc::clone(lifecycle.change_meter()));
    let troubles = lifecycle.map(|lifecycle| lifecycle.troubles().clone());
    move || {
        let in_force = lock(&in_force);
        State {
            certificates: in_force.certificates.clone(),
            health: Arc::clone(&in_force.health),
            cache_entries: keys.entries(),
            event_link_up: store.keeper().link_state() == LinkState::Up,
            vitals: store.keeper().vitals(),
            changes: changes.clone(),
            news_waiting: backlog.as_ref().and_then(|backlog| backlog.waiting()),
            troubles_dropped: troubles.as_ref().map_or(0, Trouble::dropped),
            records_dropped: dropped.load(Ordering::Relaxed),
            config_hash: in_force.config_hash,
            reloads: in_force.reloads,
        }
    }
}
