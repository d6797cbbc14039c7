//! A store that is watched: how long it takes, and whether it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Histogram, LAG_BUCKETS, STORE_BUCKETS};
use crate::clock::Clock;
use crate::id::{KeyId, OrgId};
use crate::key::Digest;
use crate::key::record::{KeyRecord, OrgRecord, Versioned};
use crate::store::events::{EventSink, Seq, Subject};
use crate::store::keeper::Keeper;
use crate::store::side::Side;
use crate::store::trails::Trails;
use crate::store::{CommitError, Committed, Lookup, Mutation, Propagation, Store, StoreFault, StoreFuture};

/// What is known of a store from watching it.
#[derive(Debug)]
pub struct StoreMeter {
    up: AtomicBool,
    has_answered: AtomicBool,
    pub(super) operations: [(&'static str, Histogram<9>); 3],
    pub(super) lag: Histogram<14>,
}

impl Default for StoreMeter {
    fn default() -> Self {
        let operations =
            ["lookup", "read", "commit"].map(|operation| (operation, Histogram::new(&STORE_BUCKETS)));
        let (up, has_answered) = (AtomicBool::new(true), AtomicBool::new(false));
        Self { up, has_answered, operations, lag: Histogram::new(&LAG_BUCKETS) }
    }
}

impl StoreMeter {
    /// Whether it answered the last time it was asked.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether it has ever answered.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }
}

/// Measures how late events come, and does nothing about them.
impl EventSink for StoreMeter {
    fn apply(&self, _: Seq, _: &[Subject]) {}

    fn reset(&self, _: Seq) {}

    fn note_lag(&self, lag: Duration) {
        self.lag.observe_shared(lag);
    }
}

/// A store and its meter.
#[derive(Debug)]
pub struct MeasuredStore {
    store: Arc<dyn Store>,
    meter: Arc<StoreMeter>,
    clock: Clock,
}

const LOOKUP: usize = 0;
const READ: usize = 1;
const COMMIT: usize = 2;

impl MeasuredStore {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Clock) -> (Arc<Self>, Arc<StoreMeter>) {
        let meter = Arc::new(StoreMeter::default());
        (Arc::new(Self { store, meter: Arc::clone(&meter), clock }), meter)
    }

    async fn measure<T>(
        &self,
        operation: usize,
        answer: StoreFuture<'_, T>,
        answered: impl Fn(&T) -> bool,
    ) -> T {
        // Whoever asks may give up, and then it has not answered.
        let mut asked = Asked { store: self, operation, begun: self.clock.mono(), answered: false };
        let outcome = answer.await;
        asked.answered = answered(&outcome);
        outcome
    }
}

/// One operation under way. Measured when it ends, in whatever way.
struct Asked<'s> {
    store: &'s MeasuredStore,
    operation: usize,
    begun: Instant,
    answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let MeasuredStore { meter, clock, .. } = self.store;
        let took = clock.mono().saturating_duration_since(self.begun);
        meter.operations[self.operation].1.observe_shared(took);
        meter.up.store(self.answered, Ordering::Relaxed);
        meter.has_answered.fetch_or(self.answered, Ordering::Relaxed);
    }
}

impl Store for MeasuredStore {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        let answer = self.store.lookup(digest);
        Box::pin(self.measure(LOOKUP, answer, |lookup| !matches!(lookup, Lookup::Unavailable(_))))
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        Box::pin(self.measure(READ, self.store.key(id), Result::is_ok))
    }

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        Box::pin(self.measure(READ, self.store.org(id), Result::is_ok))
    }

    fn keys(
        &self,
        org: Option<OrgId>,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<KeyRecord>>, StoreFault>> {
        Box::pin(self.measure(READ, self.store.keys(org, after, limit), Result::is_ok))
    }

    fn orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<OrgRecord>>, StoreFault>> {
        Box::pin(self.measure(READ, self.store.orgs(after, limit), Result::is_ok))
    }

    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        let answer = self.store.commit(mutation);
        Box::pin(self.measure(COMMIT, answer, |committed| !matches!(committed, Err(CommitError::Fault(_)))))
    }

    fn propagation(&self, event: Seq, within: Duration) -> StoreFuture<'_, Result<Propagation, StoreFault>> {
        self.store.propagation(event, within)
    }

    fn import(
        &self,
        keys: Vec<KeyRecord>,
    ) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>> {
        Box::pin(self.measure(COMMIT, self.store.import(keys), Result::is_ok))
    }

    fn subscribe(&self, sink: Arc<dyn EventSink>) {
        self.store.subscribe(sink);
    }

    fn keeper(&self) -> &dyn Keeper {
        self.store.keeper()
    }

    fn trails(&self) -> &dyn Trails {
        self.store.trails()
    }

    fn side(&self) -> &dyn Side {
        self.store.side()
    }
}
