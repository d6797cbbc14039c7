//! A store that is watched: how long it takes, and whether it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prometheus::proto::MetricFamily;

use super::changes::LAG_BUCKETS;
use super::family::{gauge, histogram, histograms};
use super::histogram::Histogram;
use crate::store::answers::Answers;
use crate::store::events::{EventSink, Seq, Subject};
use crate::store::keeper::Keeper;
use crate::store::outbox::{News, Outbox};
use crate::store::quotas::{Admission, Quota, Quotas};
use crate::store::trails::Trails;
use crate::store::usage::Usage;
use crate::store::{CommitError, Committed, Lookup, Mutation, Propagation, Store, StoreFault, StoreFuture};
use crate::vocabulary::audit::{Ends, Entry, Trail};
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};
use crate::vocabulary::key::usage::{Usage as KeyUsage, Used};

/// What is known of a store from watching it.
#[derive(Debug)]
pub struct StoreMeter {
    up: AtomicBool,
    has_answered: AtomicBool,
    operations: [(&'static str, Histogram<9>); Operation::ALL.len()],
    lag: Histogram<14>,
}

impl Default for StoreMeter {
    fn default() -> Self {
        let operations = Operation::ALL.map(|operation| (operation.label(), Histogram::new(&STORE_BUCKETS)));
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

    pub(super) fn families(&self) -> [MetricFamily; 3] {
        let operations = self.operations.iter();
        [
            gauge(
                "keygate_store_up",
                "Whether the store answered the last time it was asked.",
                f64::from(self.is_up()),
            ),
            histograms(
                "keygate_store_request_duration_seconds",
                "How long the store took.",
                operations.map(|(operation, took)| ([("op", *operation)], std::iter::once(took))),
            ),
            histogram(
                "keygate_revocation_lag_seconds",
                "From an event's being written to its being applied here. In Redis it is dated by Redis' clock, which is read \
                 once a second (half that reading's round trip is the error); with the embedded store it is from commit on.",
                &self.lag,
            ),
        ]
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

/// What a store is asked to do.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Lookup,
    Read,
    Commit,
    Trail,
    Answer,
    Usage,
    Outbox,
    Quota,
}

impl Operation {
    const ALL: [Self; 8] = [
        Self::Lookup,
        Self::Read,
        Self::Commit,
        Self::Trail,
        Self::Answer,
        Self::Usage,
        Self::Outbox,
        Self::Quota,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Read => "read",
            Self::Commit => "commit",
            Self::Trail => "trail",
            Self::Answer => "answer",
            Self::Usage => "usage",
            Self::Outbox => "outbox",
            Self::Quota => "quota",
        }
    }
}

/// A store and its meter. Not measured are what an operator asks of its keeper, and waiting for other gateways,
/// which has a measure of its own.
#[derive(Debug)]
pub struct MeasuredStore {
    store: Arc<dyn Store>,
    meter: Arc<StoreMeter>,
    clock: Clock,
}

impl MeasuredStore {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Clock) -> (Arc<Self>, Arc<StoreMeter>) {
        let meter = Arc::new(StoreMeter::default());
        (Arc::new(Self { store, meter: Arc::clone(&meter), clock }), meter)
    }

    async fn measure<T>(
        &self,
        operation: Operation,
        answer: StoreFuture<'_, T>,
        answered: impl Fn(&T) -> bool,
    ) -> T {
        // Whoever asks may give up, and then it has not answered.
        let mut asked = Asked { store: self, operation, begun: self.clock.mono(), answered: false };
        let outcome = answer.await;
        asked.answered = answered(&outcome);
        outcome
    }

    fn measured<'s, T: Send + 's>(
        &'s self,
        operation: Operation,
        answer: StoreFuture<'s, Result<T, StoreFault>>,
    ) -> StoreFuture<'s, Result<T, StoreFault>> {
        Box::pin(self.measure(operation, answer, Result::is_ok))
    }
}

/// One operation under way. Measured when it ends, in whatever way.
struct Asked<'s> {
    store: &'s MeasuredStore,
    operation: Operation,
    begun: Instant,
    answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let MeasuredStore { meter, clock, .. } = self.store;
        let took = clock.mono().saturating_duration_since(self.begun);
        meter.operations[self.operation as usize].1.observe_shared(took);
        meter.up.store(self.answered, Ordering::Relaxed);
        meter.has_answered.fetch_or(self.answered, Ordering::Relaxed);
    }
}

impl Store for MeasuredStore {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        let answer = self.store.lookup(digest);
        Box::pin(self.measure(Operation::Lookup, answer, |lookup| !matches!(lookup, Lookup::Unavailable(_))))
    }

    fn spared(&self) -> Option<StoreFault> {
        self.store.spared()
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        self.measured(Operation::Read, self.store.key(id))
    }

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        self.measured(Operation::Read, self.store.org(id))
    }

    fn keys(
        &self,
        org: Option<OrgId>,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<KeyRecord>>, StoreFault>> {
        self.measured(Operation::Read, self.store.keys(org, after, limit))
    }

    fn orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<OrgRecord>>, StoreFault>> {
        self.measured(Operation::Read, self.store.orgs(after, limit))
    }

    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        let answer = self.store.commit(mutation);
        Box::pin(
            self.measure(Operation::Commit, answer, |committed| {
                !matches!(committed, Err(CommitError::Fault(_)))
            }),
        )
    }

    fn propagation(&self, event: Seq, within: Duration) -> StoreFuture<'_, Result<Propagation, StoreFault>> {
        self.store.propagation(event, within)
    }

    fn import(
        &self,
        keys: Vec<KeyRecord>,
    ) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>> {
        self.measured(Operation::Commit, self.store.import(keys))
    }

    fn subscribe(&self, sink: Arc<dyn EventSink>) {
        self.store.subscribe(sink);
    }

    fn keeper(&self) -> &dyn Keeper {
        self.store.keeper()
    }

    fn trails(&self) -> &dyn Trails {
        self
    }

    fn answers(&self) -> &dyn Answers {
        self
    }

    fn usage(&self) -> &dyn Usage {
        self
    }

    fn outbox(&self) -> &dyn Outbox {
        self
    }

    fn quotas(&self) -> &dyn Quotas {
        self
    }
}

impl Trails for MeasuredStore {
    fn ends(&self, trail: Trail) -> StoreFuture<'_, Result<Ends, StoreFault>> {
        self.measured(Operation::Trail, self.store.trails().ends(trail))
    }

    fn entries(
        &self,
        trail: Trail,
        before: Option<u64>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Entry>, StoreFault>> {
        self.measured(Operation::Trail, self.store.trails().entries(trail, before, limit))
    }

    fn trim(&self, trail: Trail, through: u64) -> StoreFuture<'_, Result<u64, StoreFault>> {
        self.measured(Operation::Trail, self.store.trails().trim(trail, through))
    }

    fn restore(
        &self,
        trail: Trail,
        ends: Ends,
        entries: Vec<Entry>,
    ) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.measured(Operation::Trail, self.store.trails().restore(trail, ends, entries))
    }
}

impl Answers for MeasuredStore {
    fn find(&self, index: [u8; 32], now: UnixMillis) -> StoreFuture<'_, Result<Option<Vec<u8>>, StoreFault>> {
        self.measured(Operation::Answer, self.store.answers().find(index, now))
    }
}

impl Usage for MeasuredStore {
    fn note(&self, used: Vec<Used>) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.measured(Operation::Usage, self.store.usage().note(used))
    }

    fn of(&self, keys: Vec<KeyId>) -> StoreFuture<'_, Result<Vec<Option<KeyUsage>>, StoreFault>> {
        self.measured(Operation::Usage, self.store.usage().of(keys))
    }
}

impl Outbox for MeasuredStore {
    fn claim(
        &self,
        now: UnixMillis,
        until: UnixMillis,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<News>, StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().claim(now, until, limit))
    }

    fn news(&self, orgs: Vec<OrgId>) -> StoreFuture<'_, Result<Vec<Option<News>>, StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().news(orgs))
    }

    fn backlog(&self) -> StoreFuture<'_, Result<u64, StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().backlog())
    }

    fn delivered(&self, org: OrgId) -> StoreFuture<'_, Result<(), StoreFault>> {
        self.measured(Operation::Outbox, self.store.outbox().delivered(org))
    }
}

impl Quotas for MeasuredStore {
    fn admit(&self, quotas: Vec<Quota>, now: UnixMillis) -> StoreFuture<'_, Result<Admission, StoreFault>> {
        self.measured(Operation::Quota, self.store.quotas().admit(quotas, now))
    }
}

/// Upper bounds in nanoseconds: from memory to a time-out.
const STORE_BUCKETS: [u64; 9] =
    [50_000, 100_000, 250_000, 1_000_000, 5_000_000, 25_000_000, 100_000_000, 250_000_000, 1_000_000_000];
